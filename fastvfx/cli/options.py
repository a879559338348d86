"""Options that several commands have, with the text that ``--help`` has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

Number = Annotated[float | None, arg(metavar="NUMBER")]
Count = Annotated[int | None, arg(metavar="INT")]
Device = Literal["cpu", "cuda"]

Out = Annotated[Path, arg(help="Folder for the results; made if needed.")]
Resume = Annotated[
    bool, arg(help="Go on from OUT/checkpoint.safetensors if there is one; limits count from the very beginning.")
]
Seed = Annotated[int, arg(help="Of everything random.")]
Backend = Annotated[
    Literal["auto", "native", "reference"],
    arg(help="auto: the native kernels where they were built; native: these or an error; reference: plain PyTorch."),
]
Threads = Annotated[int | None, arg(metavar="INT", help="Processor threads; all by default.")]
