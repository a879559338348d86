"""Photographs to learn from: every image of a folder or a zip, at one size, with or without classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from ._photo_files import Source, open_source, read_labels
from .errors import DataError
from .images import naming_damage

__all__ = ["PhotoBatch", "Photos", "load_photos"]

PathLike = str | os.PathLike[str]
_WHITE = (255, 255, 255)


class PhotoBatch(NamedTuple):
    """What a step of training looks at."""

    images: Tensor  #: (N, 3, R, R) float32 in [-1, 1]
    labels: Tensor | None  #: (N, label_dim) float32, one-hot where they are classes


@dataclass
class Photos:
    """A set of images, all of one power-of-two size. Made by :func:`load_photos`, or from a tensor.

    Attributes:
        images: (N, 3, R, R) uint8; or, where that does not fit into memory, what gives them for indices (B,).
        names: of the files, one for each image.
        resolution: R.
        labels: (N, label_dim) float32, or ``None``.
        class_names: where the labels are classes.
        mirror: whether the set holds the mirror image of each image too.
        n_broken: files that could not be read and were left out.
        n_enlarged: images that had fewer pixels than R along a side.
    """

    images: Tensor | Callable[[np.ndarray], Tensor]
    names: tuple[str, ...]
    resolution: int
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    mirror: bool = False
    n_broken: int = 0
    n_enlarged: int = 0

    def __len__(self) -> int:
        """Images, without their mirror images."""
        return len(self.names)

    @property
    def label_dim(self) -> int:
        """0 without labels."""
        return 0 if self.labels is None else self.labels.shape[1]

    def at(self, index: np.ndarray, device: torch.device | str = "cpu") -> PhotoBatch:
        """The images ``index`` (B,); from ``len(self)`` on, where ``mirror`` is set, their mirror images."""
        plain, flipped = index % len(self), torch.from_numpy(index >= len(self))
        pixels = self.images[torch.from_numpy(plain)] if isinstance(self.images, Tensor) else self.images(plain)
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)  # (B, 3, R, R)
        labels = None if self.labels is None else self.labels[torch.from_numpy(plain)].to(device)
        return PhotoBatch(pixels.to(device).float() / 127.5 - 1, labels)

    def shuffled(self, start: int, count: int, seed: int = 0, device: torch.device | str = "cpu") -> PhotoBatch:
        """``count`` images from place ``start`` of an endless sequence that shows each image once before any again.

        The sequence depends on ``seed`` only, so a training goes on in the middle of it by a number.
        """
        total = len(self) * (2 if self.mirror else 1)
        places = np.arange(start, start + count)
        index = np.empty_like(places)
        for epoch in np.unique(places // total):
            mine = places // total == epoch
            index[mine] = _order(total, seed, int(epoch))[places[mine] % total]
        return self.at(index, device)


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def load_photos(
    path: PathLike,
    resolution: int | None = None,
    *,
    labels: bool = False,
    mirror: bool = False,
    skip_broken: bool = False,
    at_least: int = 1,
    memory: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Photos:
    """Read every PNG, JPEG, WebP, BMP and TIFF in a folder (and the folders in it) or a zip, in order of their names.

    StyleGAN's ``dataset.zip`` is such a zip. Grey images become RGB, transparent ones lie on white, photographs are
    turned the way the camera was held.

    Args:
        path: of the folder or the zip.
        resolution: size that images get, a power of two: the largest square in their middle, resized. ``None`` takes
            them as they are; they must then all have one square, power-of-two size.
        labels: read classes, from ``dataset.json`` or else the names of the folders.
        mirror: add the mirror image of each image.
        skip_broken: leave out files that can't be read instead of raising; ``Photos.n_broken`` counts them.
        at_least: how many images are needed.
        memory: bytes that decoded images may take; beyond, they are decoded anew whenever they are looked at. Half of
            what is free by default.
        on_progress: called with the number of images that were read and of all.

    Raises:
        DataError: no such folder or zip, a damaged file, too few images, sizes that differ, no labels. The message
            names the file.
        ImportError: pillow is missing.
    """
    if resolution is not None and (resolution < 4 or resolution & (resolution - 1)):
        raise ValueError(f"fastvfx.data.load_photos: expected resolution to be a power of two from 4, got {resolution}")
    source = open_source(Path(path))
    all_names = list(source.names)
    if resolution is None:
        resolution = _own_resolution(source, all_names, skip_broken)
    _require_enough(path, len(all_names), at_least)
    limit = _free_memory() // 2 if memory is None else memory
    reader = partial(_read, source, resolution)
    fits = len(all_names) * 3 * resolution**2 <= limit
    kept: list[str] = []
    enlarged = 0
    pixels = torch.empty((len(all_names) if fits else 0, 3, resolution, resolution), dtype=torch.uint8)
    # What does not fit is decoded here only if that is the way to find the broken ones.
    if fits or skip_broken:
        for done, image in enumerate(_in_parallel(reader, all_names, skip_broken), 1):
            if image is not None:
                if fits:
                    pixels[len(kept)] = torch.from_numpy(image.pixels)
                kept.append(image.name)
                enlarged += image.enlarged
            if on_progress is not None:
                on_progress(done, len(all_names))
    else:
        kept = all_names
    _require_enough(path, len(kept), at_least, broken=len(all_names) - len(kept))
    source.names = kept
    known = read_labels(source) if labels else None
    return Photos(
        pixels[: len(kept)] if fits else partial(_read_some, reader, tuple(kept)),
        tuple(kept),
        resolution,
        None if known is None else torch.from_numpy(known.values),
        () if known is None else known.names,
        mirror,
        n_broken=len(all_names) - len(kept),
        n_enlarged=enlarged,
    )


class _Image(NamedTuple):
    name: str
    pixels: np.ndarray  # (3, R, R) uint8
    enlarged: bool


def _read(source: Source, resolution: int, name: str) -> _Image:
    pil = require("PIL.Image", extra="data", purpose="reading images")
    with naming_damage(source.where(name)), pil.open(BytesIO(source.read(name))) as image:
        # A JPEG can be decoded at a half or a quarter of its size; twice the target keeps the resampling good.
        image.draft("RGB", (2 * resolution, 2 * resolution))
        image.load()
        picture = _to_rgb(image)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if (width, height) != (resolution, resolution):
        picture = picture.crop((left, top, left + side, top + side))
        picture = picture.resize((resolution, resolution), pil.Resampling.LANCZOS, reducing_gap=3.0)
    return _Image(name, np.asarray(picture).transpose(2, 0, 1).copy(), side < resolution)


def _to_rgb(image: Any) -> Any:
    pil = require("PIL.Image", extra="data", purpose="reading images")
    ops = require("PIL.ImageOps", extra="data", purpose="reading images")
    image = ops.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip these at 255.
        image = pil.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(max=255).astype(np.uint8))
    elif image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, (*_WHITE, 255)), image)
    return image.convert("RGB")


def _in_parallel(
    reader: Callable[[str], _Image], names: list[str], skip_broken: bool = False
) -> Iterator[_Image | None]:
    """The images in order, ``None`` for a broken one that is to be skipped."""

    def attempt(name: str) -> _Image | None:
        try:
            return reader(name)
        except DataError:
            if skip_broken:
                return None
            raise

    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    try:
        yield from pool.map(attempt, names)
    finally:  # after an error, don't decode the rest first
        pool.shutdown(cancel_futures=True)


def _read_some(reader: Callable[[str], _Image], names: tuple[str, ...], index: np.ndarray) -> Tensor:
    wanted = [names[i] for i in index]
    return torch.from_numpy(np.stack([image.pixels for image in _in_parallel(reader, wanted) if image is not None]))


def _own_resolution(source: Source, names: list[str], skip_broken: bool) -> int:
    """The one size that all images have."""
    pil = require("PIL.Image", extra="data", purpose="reading images")
    first: tuple[str, tuple[int, int]] | None = None
    for name in names:
        try:
            with naming_damage(source.where(name)), pil.open(BytesIO(source.read(name))) as image:
                size = image.size
        except DataError:
            if skip_broken:
                continue
            raise
        if first is None:
            first = (name, size)
            if size[0] != size[1] or size[0] < 4 or size[0] & (size[0] - 1):
                raise DataError(
                    f"{source.where(name)}: its size is {size[0]}x{size[1]}, not square with a power of two; "
                    "choose a resolution to crop and resize images to"
                )
        elif size != first[1]:
            raise DataError(
                f"{source.where(name)}: its size is {size[0]}x{size[1]}, that of {first[0]} {first[1][0]}x"
                f"{first[1][1]}; choose a resolution to crop and resize images to"
            )
    if first is None:
        raise DataError(f"{source.path}: none of its {len(names)} images can be read")
    return first[1][0]


def _require_enough(path: PathLike, n: int, at_least: int, broken: int = 0) -> None:
    if n < at_least:
        left_out = f" ({broken} more can't be read)" if broken else ""
        raise DataError(f"{path}: {n} images{left_out}, expected at least {at_least}")


def _free_memory() -> int:
    """Bytes; 4 GiB where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 4 << 30
