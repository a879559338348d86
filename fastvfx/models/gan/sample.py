"""Pictures from a trained generator: by seed, in a grid, along a path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _weights
from .. import checkpoint as files
from ..stylegan2 import weights as stylegan2
from ..stylegan3 import weights as stylegan3
from .networks import GENERATORS, build, has_styles
from .trainer import FILES, config_of


@dataclass
class Sampler:
    """A generator to make pictures with.

    Attributes:
        generator: in evaluation mode.
        class_names: of its labels, if they are classes and have names.
    """

    generator: Any
    class_names: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.generator.parameters()).device

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """A latent for each seed, the same as NVIDIA's programs make from it: (N, z_dim) float32."""
        z = [np.random.RandomState(seed).randn(self.generator.z_dim) for seed in seeds]
        return torch.from_numpy(np.stack(z)).float().to(self.device)

    def labels(self, n: int, label: int | None = None) -> Tensor | None:
        """One-hot labels (N, c_dim) of one class; ``None`` for a generator without labels.

        Raises:
            ValueError: a label where there are none, none where there are, or no such class.
        """
        c_dim = self.generator.c_dim
        if (label is None) != (c_dim == 0) or not 0 <= (label or 0) < max(c_dim, 1):
            expected = f"a label from 0 to {c_dim - 1}" if c_dim else "no label, the generator has none"
            raise ValueError(f"fastvfx.models.gan.Sampler: expected {expected}, got {label}")
        if label is None:
            return None
        c = torch.zeros((n, c_dim), device=self.device)
        c[:, label] = 1
        return c

    @torch.no_grad()
    def images(self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0, batch: int = 16) -> Tensor:
        """Images (N, 3, R, R), about [-1, 1], on the CPU. The noise is the same for all of them.

        Args:
            z: latents (N, z_dim).
            c: labels (N, c_dim).
            truncation: for generators with styles, 1 for all variety, 0 for the average image; for others, latents are
                multiplied by it.
            batch: images that are computed at a time.
        """
        parts = []
        for start in range(0, len(z), batch):
            z_part, c_part = z[start : start + batch], None if c is None else c[start : start + batch]
            if has_styles(self.generator):
                ws = self.generator.mapping(z_part, c_part, truncation_psi=truncation)
                parts.append(self._synthesize(ws))
            else:
                parts.append(self.generator(z_part * truncation, c_part).float().cpu())
        return torch.cat(parts)

    def _synthesize(self, ws: Tensor) -> Tensor:
        return self.generator.synthesis(ws, noise_mode="const").float().cpu()

    @torch.no_grad()
    def path(
        self, z: Tensor, c: Tensor | None, frames: int, truncation: float = 1.0, batch: int = 16
    ) -> Iterator[Tensor]:
        """Frames (3, R, R) on a closed way past the images of ``z`` (N, z_dim), ``frames`` from each to the next.

        The way is smooth (a cubic spline): in styles, or through latents of unchanged length.
        """
        styles = has_styles(self.generator)
        keys = self.generator.mapping(z, c, truncation_psi=truncation) if styles else z * truncation
        places = torch.arange(len(z) * frames, device=keys.device) / frames
        for start in range(0, len(places), batch):
            here = places[start : start + batch]
            points = _spline(keys, here)
            if styles:
                yield from self._synthesize(points)
            else:
                length = _spline(keys.norm(dim=1, keepdim=True), here)
                label = None if c is None else c[:1].expand(len(points), -1)
                yield from self.generator(torch.nn.functional.normalize(points) * length, label).float().cpu()


def load_sampler(path: files.PathLike, device: torch.device | str = "cpu") -> Sampler:
    """The generator of a checkpoint of :class:`Trainer`, or of a file of another program, ready to use.

    Args:
        path: what a training wrote (``.safetensors``); else a file of StyleGAN2 or StyleGAN3 as
            :func:`fastvfx.models.stylegan2.load_generator` takes it. Nothing in it is executed.
        device: to compute on.

    Raises:
        CheckpointError: the file is damaged or of another model.
    """
    if Path(path).suffix.lower() in (".pkl", ".pt", ".pth"):
        stored_there = _weights.choose(_weights.read(path), "G_ema", path)
        foreign = stylegan3 if stylegan3.is_stylegan3(stored_there.tensors) else stylegan2
        return Sampler(foreign.generator_of(stored_there, path).to(device).requires_grad_(False).eval())
    stored = FILES.load(path)
    config = config_of(stored, path)
    generator: Any = build(GENERATORS, config.generator)
    files.fill(generator, stored.part("ema"), str(path))
    if config.grow is not None:
        generator.growth = config.grow.schedule(generator.img_resolution).at(stored.state["images"])
    names = tuple(stored.state.get("class_names", ()))
    return Sampler(generator.to(device).requires_grad_(False).eval(), names)


def picture(image: Tensor) -> Tensor:
    """(3, H, W) in [-1, 1] as (H, W, 3) in [0, 1], for :func:`fastvfx.data.write_image`."""
    return (image.permute(1, 2, 0).float() * 0.5 + 0.5).clamp(0, 1)


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] side by side in one, (rows * H, columns * W, 3) in [0, 1]; missing ones are black.

    ``columns`` is about the root of N by default.
    """
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    padded = torch.full((rows * columns, channels, height, width), -1.0)
    padded[:n] = images
    sheet = padded.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return picture(sheet.reshape(channels, rows * height, columns * width))


def _spline(keys: Tensor, places: Tensor) -> Tensor:
    """Closed Catmull-Rom spline through ``keys`` (N, ...), at ``places`` (F,) in [0, N): (F, ...)."""
    n = len(keys)
    first = places.floor().long()
    t = (places - first).view(-1, *[1] * (keys.dim() - 1))
    p0, p1, p2, p3 = (keys[(first + k) % n] for k in (-1, 0, 1, 2))
    a, b = (p2 - p0) / 2, (p3 - p1) / 2
    return p1 + t * (a + t * (3 * (p2 - p1) - 2 * a - b + t * (2 * (p1 - p2) + a + b)))
