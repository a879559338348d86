"""The commands and their options; the docstrings here are the text of ``--help``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from .gan_commands import Gan
from .options import Backend, Count, Device, Number, Out, Resume, Seed, Threads
from .video_commands import Video

Capture = Positional[Annotated[Path, arg(metavar="DATA")]]
Checkpoint = Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]


@dataclass(frozen=True)
class Info:
    """Say what was built, what will run here, and why something is missing."""

    def __call__(self) -> int:
        from .info import info

        print(info())
        return 0


@dataclass(frozen=True)
class Train:
    """Learn a scene from photographs with known cameras.

    DATA is a folder with transforms.json (instant-ngp, nerfstudio) or transforms_train.json (Blender), or such a file.
    Writes into OUT: checkpoint.safetensors, metrics.json, the held-out views beside the truth in test/, and film.mp4.
    Without --max-seconds and --max-steps training takes a minute. Ctrl-C ends it early and keeps what was learned.
    --backend is for the training: pictures are always rendered the fastest way.

    Example: fastvfx nerf train examples/still_life --out runs/still_life --max-seconds 60
    """

    data: Capture
    """The capture."""
    out: Out
    max_seconds: Number = None
    """Stop after so many seconds of training (without evaluation and saving)."""
    max_steps: Count = None
    """Stop after so many steps; results then repeat exactly with the same seed."""
    device: Device = "cpu"
    """Where to train."""
    backend: Backend = "auto"
    seed: Seed = 0
    resume: Resume = False
    downscale: int = 1
    """Train on images reduced by this whole factor."""
    test_every: int = 8
    """Hold out every N-th image where the capture itself names no test views; 0 holds out none."""
    background: Literal["white", "black", "gray"] = "white"
    """Behind images with alpha when views are compared and pictures written."""
    film_frames: int = 60
    """Length of film.mp4; 0 for none."""
    threads: Threads = None

    def __call__(self) -> int:
        from .nerf import train

        return train(self)


@dataclass(frozen=True)
class Render:
    """Render a film along a camera path, or the views of a capture, from a checkpoint.

    Example: fastvfx nerf render runs/still_life/checkpoint.safetensors --out film.mp4 --frames 120 --fps 30
    Example: fastvfx nerf render runs/still_life/checkpoint.safetensors --out views --views examples/still_life
    """

    checkpoint: Checkpoint
    """The file that training wrote."""
    out: Path
    """A .mp4 file, or a folder for numbered .png files."""
    views: Annotated[Path | None, arg(metavar="DATA")] = None
    """A capture whose views to render instead of a film."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which of its views."""
    path: Literal["orbit", "poses"] = "orbit"
    """Of the film: around the scene, or through the training cameras."""
    frames: int = 120
    """Of the film."""
    fps: float = 24.0
    """Frames per second of a .mp4."""
    width: Count = None
    """Of the film in pixels; the height follows. The size of the training images by default."""
    background: Literal["white", "black", "gray"] = "white"
    """Where the scene is empty."""
    device: Device = "cpu"
    """Where to render."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .nerf import render

        return render(self)


@dataclass(frozen=True)
class Eval:
    """Compare a checkpoint with the views of a capture; the result is a line of JSON on standard output.

    Example: fastvfx nerf eval runs/still_life/checkpoint.safetensors examples/still_life
    """

    checkpoint: Checkpoint
    """The file that training wrote."""
    data: Capture
    """The capture."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder for the rendered views, the truth beside them, and metrics.json."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which views."""
    downscale: int = 1
    """As in training."""
    test_every: int = 8
    """As in training."""
    background: Literal["white", "black", "gray"] = "white"
    """Behind images with alpha."""
    device: Device = "cpu"
    """Where to render."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .nerf import evaluate

        return evaluate(self)


@dataclass(frozen=True)
class Report:
    """Compare finished trainings of one capture in a page: pictures beside the truth, PSNR against time, speed.

    Example: fastvfx nerf report runs/native runs/reference --out report.html
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]]
    """Folders that `fastvfx nerf train` wrote."""
    out: Path
    """The page, one file with everything in it."""
    title: Annotated[str | None, arg(metavar="TEXT")] = None
    """Its heading."""

    def __call__(self) -> int:
        from ..models.nerf.report import write_report

        write_report(self.out, self.runs, self.title)
        print(f"{self.out}")
        return 0


@dataclass(frozen=True)
class Nerf:
    """Scenes from photographs (neural radiance fields)."""

    command: OmitArgPrefixes[
        Annotated[Train, subcommand("train")]
        | Annotated[Render, subcommand("render")]
        | Annotated[Eval, subcommand("eval")]
        | Annotated[Report, subcommand("report")]
    ]

    def __call__(self) -> int:
        return self.command()


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments ask for. Exits for ``--help`` and for arguments that do not parse."""
    commands: Any = (
        Annotated[Info, subcommand("info")]
        | Annotated[Nerf, subcommand("nerf")]
        | Annotated[Gan, subcommand("gan")]
        | Annotated[Video, subcommand("video")]
    )
    return tyro.cli(
        commands,
        config=(OmitSubcommandPrefixes, FlagCreatePairsOff),
        prog="fastvfx",
        description="Fast differentiable operators and models for neural visual effects.",
        args=arguments,
    )
