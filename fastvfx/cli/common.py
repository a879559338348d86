"""What the commands share: settings of the process, progress bars, files."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import fastvfx

from .. import _ext
from .._backend import Backend, backend, use_native
from .._extras import require
from ..data import atomic_write
from .errors import UserError


def prepare(op: str, device: str, backend_name: Backend, threads: int | None) -> None:
    """Apply the options that every command has.

    Raises:
        UserError: one of them can't be had on this machine.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available to torch; `fastvfx info` says more")
    if threads is not None:
        if threads < 1:
            raise UserError(f"expected --threads of at least 1, got {threads}")
        torch.set_num_threads(threads)
    backend(backend_name)
    try:
        use_native(op, torch.device(device))
    except RuntimeError as error:
        raise UserError(f"--backend native: {error}") from None


#: What a training writes into its folder.
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.json"


def checked_folder(out: Path) -> Path:
    """``out``, to be called before anything long.

    Raises:
        UserError: it is a file, or would be in one.
    """
    for place in (out, *out.parents):
        if place.is_dir():
            break
        if place.exists():
            raise UserError(f"{place}: is a file, expected a folder for the results")
    return out


def begin(trainer: Any, out: Path, resume: bool) -> Path:
    """Make the folder; go on from the checkpoint in it, or keep that under another name.

    Returns:
        Where the checkpoint is to be written.
    """
    checkpoint = out / CHECKPOINT
    out.mkdir(parents=True, exist_ok=True)
    if resume and checkpoint.exists():
        trainer.restore(checkpoint)
        say(f"going on from step {trainer.step}")
    elif checkpoint.exists():
        checkpoint.replace(out / "previous.safetensors")
        say(f"kept the checkpoint that was there as {out / 'previous.safetensors'}")
    return checkpoint


def processor(device: str = "cpu") -> str:
    """The name of what computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def about(op: str, device: str) -> dict[str, Any]:
    """What computed, for metrics.json."""
    native = use_native(op, torch.device(device))
    return {
        "backend": "native" if native else "reference",
        "device": device,
        "threads": torch.get_num_threads(),
        "isa": None if _ext._C is None or not native else _ext._C.active_isa(),
        "processor": processor(device),
        "fastvfx": fastvfx.__version__,
        "torch": torch.__version__,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``; JSON has no NaN, so what could not be measured is null."""
    clean = json.loads(json.dumps(content), parse_constant=lambda _: None)
    with atomic_write(path, "w") as file:
        json.dump(clean, file, indent=1)
        file.write("\n")


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


_BAR = 20  # characters


@contextmanager
def progress(what: str, total: float) -> Iterator[Any]:
    """A progress bar on stderr; yields ``advance(done, text)``."""
    rich = require("rich.progress", extra="cli", purpose="progress bars")
    console = require("rich.console", extra="cli", purpose="progress bars").Console(stderr=True)
    # Where a terminal is narrow, the text gives way, not the bar and what it is of.
    room = max(console.width - len(what) - _BAR - 17, 8)
    column = require("rich.table", extra="cli", purpose="progress bars").Column(max_width=room, no_wrap=True)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(_BAR),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[text]}", table_column=column),
    )
    with rich.Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)
