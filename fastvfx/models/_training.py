"""How any training ends: by Ctrl-C, or because its numbers are lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets; the second raises KeyboardInterrupt as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals go to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> Any:
        if event.is_set() and callable(before):
            return before(number, frame)
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
