"""What any training needs: when it ends, and how it saves on the way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch


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


def used_up(*budgets: tuple[float, float | None]) -> float:
    """How much of the scarcest budget is used up: from pairs of what is used and of all, ``None`` for no limit."""
    return max(0.0 if limit is None else used / limit if limit else 1.0 for used, limit in budgets)


def save_or_warn(save: Callable[[], None], on_warning: Callable[[str], None] | None) -> None:
    """A checkpoint on the way: one that can't be written is no reason to end a training."""
    try:
        save()
    except OSError as error:
        if on_warning is not None:
            on_warning(error.strerror or str(error))


def run(
    progress: Callable[[], float],
    step: Callable[[float], None],
    save: Callable[[], None] | None,
    save_every: float,
    on_warning: Callable[[str], None] | None,
    at_end: Callable[[], None] | None = None,
) -> bool:
    """Call ``step(progress())`` while the progress is below 1 and nobody interrupts.

    Args:
        progress: how much of the training is done.
        step: does more of it.
        save: writes a checkpoint, every ``save_every`` seconds and at the end; ``None`` for no checkpoints.
        on_warning: called when a checkpoint on the way could not be written.
        at_end: called before the last checkpoint.

    Returns:
        Whether SIGINT ended it.
    """
    with interrupts() as interrupted:
        saved_at = time.perf_counter()
        while not interrupted.is_set() and (done := progress()) < 1:
            step(done)
            if save is not None and time.perf_counter() - saved_at > save_every:
                save_or_warn(save, on_warning)
                saved_at = time.perf_counter()
        if at_end is not None:
            at_end()
        if save is not None:
            save()
    return interrupted.is_set()


def thinned(history: list[Any], every: int) -> tuple[list[Any], int]:
    """A history of a row every so many steps, at most about a thousand: from then on half of them, half as often."""
    return (history[1::2], 2 * every) if len(history) >= 1000 else (history, every)


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Torch's random numbers follow from ``key`` inside, and go on as if nothing had been outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
