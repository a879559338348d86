"""What the ``fastvfx gan`` commands do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastvfx

from .. import _ext
from .._backend import use_native
from ..data import Photos, atomic_write, load_photos, write_image, write_video
from ..models.gan import (
    GanConfig,
    Sampler,
    Trainer,
    feature_distance,
    feature_network,
    frechet_distance,
    grid,
    kernel_distance,
    load_sampler,
    perceptual_path_length,
    picture,
    preset,
)
from ..models.gan.features import collect
from ..models.gan.networks import has_styles
from ..models.plot import Curve, line_plot
from .common import METRICS, begin, checked_folder, prepare, processor, progress, say, write_json
from .errors import UserError

if TYPE_CHECKING:
    from .gan_commands import Eval, Generate, Train

_GRIDS = 16  # of samples, over a whole training, closer together at the beginning
_BATCH = 32  # images that are generated or looked at at a time


def train(options: Train) -> int:
    """``fastvfx gan train``. Returns the exit code."""
    for name in ("max_seconds", "max_kimg", "max_steps", "batch", "learning_rate", "samples"):
        _above_zero(options, name)
    if options.gamma is not None and options.gamma < 0:
        raise UserError(f"expected --gamma of at least 0, got {options.gamma:g}")
    if options.seed < 0:
        raise UserError(f"expected --seed of at least 0, got {options.seed}")
    prepare("gan", options.device, options.backend, options.threads)
    out = checked_folder(options.out)
    photos = _photos(options.data, options.resolution, options.labels, options.mirror, options.skip_broken)
    config = _config(options, photos)
    trainer = _trainer(photos, config, options.device)
    checkpoint = begin(trainer, out, options.resume)
    write_image(out / "photos.png", grid(photos.shuffled(0, options.samples).images))

    limits = {"max_seconds": options.max_seconds, "max_kimg": options.max_kimg, "max_steps": options.max_steps}
    if all(limit is None for limit in limits.values()):
        limits["max_seconds"] = 600.0
    gallery = _Gallery(trainer, out, options.samples)
    with progress("training", 1.0) as advance:

        def on_step(trainer: Trainer, done: float) -> None:
            gallery.add_if_due(done)
            advance(done, _status(trainer))

        interrupted = trainer.fit(**limits, checkpoint=checkpoint, on_step=on_step, on_warning=say)  # type: ignore[arg-type]
    metrics = _metrics(options, trainer, interrupted)
    write_json(out / METRICS, metrics)
    gallery.add()
    _plot(trainer, out / "loss.svg")
    if interrupted:
        say(f"interrupted after {trainer.step} steps; saved {checkpoint}, go on with --resume")
        return 130
    say(
        f"{trainer.step} steps, {trainer.images / 1000:.1f} kimg in {trainer.seconds:.1f} s "
        f"({metrics['seconds_per_kimg']:.1f} s/kimg), {metrics['backend']}; results in {out}"
    )
    return 0


def generate(options: Generate) -> int:
    """``fastvfx gan generate``. Returns the exit code."""
    seeds = parse_seeds(options.seeds)
    for name in ("columns", "frames", "fps"):
        _above_zero(options, name)
    suffix = options.out.suffix.lower()
    if suffix not in ("", ".png", ".mp4"):
        raise UserError(f"{options.out}: expected a folder, a .png or a .mp4 file")
    prepare("gan", options.device, options.backend, options.threads)
    sampler = load_sampler(options.checkpoint, options.device)
    z = sampler.latents(seeds)
    c = _label(sampler, len(seeds), options.label)
    if suffix == ".mp4":
        _film(sampler, z, c, options, options.out)
    else:
        with progress("generating", len(seeds)) as advance:
            images = _generated(sampler, z, c, options.truncation, advance)
        if suffix == ".png":
            write_image(options.out, grid(images, options.columns))
        else:
            for seed, image in zip(seeds, images, strict=True):
                write_image(options.out / f"seed{seed:04d}.png", picture(image))
            write_image(options.out / "grid.png", grid(images, options.columns))
            if options.interpolate:
                _film(sampler, z, c, options, options.out / "interpolation.mp4")
    say(f"wrote {options.out}")
    return 0


def evaluate(options: Eval) -> int:
    """``fastvfx gan eval``. Returns the exit code."""
    if options.images < 2:
        raise UserError(f"expected --images of at least 2, got {options.images}")
    if options.paths < 0:
        raise UserError(f"expected --paths of at least 0, got {options.paths}")
    if options.seed < 0:
        raise UserError(f"expected --seed of at least 0, got {options.seed}")
    prepare("gan", options.device, options.backend, options.threads)
    sampler = load_sampler(options.checkpoint, options.device)
    labels = sampler.generator.c_dim > 0
    photos = _photos(options.data, sampler.generator.img_resolution, labels, False, options.skip_broken)
    if photos.label_dim != sampler.generator.c_dim:
        raise UserError(f"{options.data}: {photos.label_dim} classes, the generator has {sampler.generator.c_dim}")
    features = feature_network(options.features, options.device)
    n = min(options.images, len(photos))
    torch.manual_seed(options.seed)
    order = torch.randperm(len(photos))[:n].numpy()
    batches = [photos.at(order[i : i + _BATCH]) for i in range(0, n, _BATCH)]
    z = torch.randn((n, sampler.generator.z_dim), device=options.device)

    def images() -> Iterator[Tensor]:
        with progress("generating", n) as advance:
            for i, batch in enumerate(batches):
                # Classes are as frequent among generated images as among photographs.
                c = None if batch.labels is None else batch.labels.to(options.device)
                yield sampler.images(z[i * _BATCH :][: len(batch.images)], c, options.truncation).to(options.device)
                advance(min((i + 1) * _BATCH, n), "")

    growth = getattr(sampler.generator, "growth", None)  # pictures are as large as the network has grown
    shown = (batch.images if growth is None else growth.images(batch.images) for batch in batches)
    real = collect(features, (part.to(options.device) for part in shown))
    fake = collect(features, images())
    result: dict[str, Any] = {
        f"FD-{options.features}": frechet_distance(real, fake),
        f"KID-{options.features}": kernel_distance(real, fake, subset_size=min(1000, n)),
        "images": n,
        "truncation": options.truncation,
    }
    if options.paths and has_styles(sampler.generator):
        result[f"PPL-{options.features}"] = _path_length(sampler, features, options, batches[0].labels)
    print(json.dumps(result))
    return 0


# --- parts ----------------------------------------------------------------------------------------------------------


def parse_seeds(text: str) -> list[int]:
    """``"0-3,7"`` as [0, 1, 2, 3, 7].

    Raises:
        UserError: it can't be read so.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"expected --seeds like 0-15 or 1,5,9, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or max(last, len(seeds) + last - first) >= 1 << 32:
            raise UserError(f"expected --seeds in rising ranges below 2^32, got {text!r}")
        seeds += range(first, last + 1)
    return seeds


def _above_zero(options: Any, name: str) -> None:
    value = getattr(options, name)
    if value is not None and not value > 0:
        raise UserError(f"expected --{name.replace('_', '-')} above 0, got {value:g}")


def _photos(path: Path, resolution: int | None, labels: bool, mirror: bool, skip_broken: bool) -> Photos:
    if resolution is not None and (resolution < 8 or resolution & (resolution - 1)):
        raise UserError(f"expected --resolution to be a power of two from 8, got {resolution}")
    with progress("reading", 1.0) as advance:
        photos = load_photos(
            path,
            resolution,
            labels=labels,
            mirror=mirror,
            skip_broken=skip_broken,
            at_least=2,
            on_progress=lambda done, total: advance(done / total, f"{done} images"),
        )
        advance(1.0, f"{len(photos)} images")
    if photos.n_broken:
        say(f"left out {photos.n_broken} files that can't be read")
    if photos.n_enlarged:
        say(f"{photos.n_enlarged} images are smaller than {photos.resolution} pixels and were enlarged")
    return photos


def _config(options: Train, photos: Photos) -> GanConfig:
    name = options.preset or ("stylegan2" if options.device == "cuda" else "stylegan2-small")
    try:
        config = preset(
            name,
            photos.resolution,
            label_dim=photos.label_dim,
            batch=options.batch,
            bfloat16=options.precision == "bfloat16",
            augment=None if options.augment == "preset" else options.augment == "ada",
            seed=options.seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.gamma is not None:
        r2 = options.gamma if config.loss.r2_gamma else 0.0
        config = replace(config, loss=replace(config.loss, r1_gamma=options.gamma, r2_gamma=r2))
    if options.learning_rate is not None:
        rate = options.learning_rate
        optimizers = {k: replace(getattr(config.train, k), learning_rate=rate) for k in ("generator", "discriminator")}
        config = replace(config, train=replace(config.train, **optimizers))
    return config


def _trainer(photos: Photos, config: GanConfig, device: str) -> Trainer:
    try:
        return Trainer(photos, config, device=device)
    except ValueError as error:
        raise UserError(str(error)) from None


class _Gallery:
    """Grids of samples: always the same latents, a file each time, and the newest as samples.png."""

    def __init__(self, trainer: Trainer, out: Path, n: int) -> None:
        self.trainer, self.out = trainer, out
        self.sampler = Sampler(trainer.ema.network)
        self.z = self.sampler.latents(range(n))
        self.c = None
        if trainer.photos.labels is not None:
            self.c = trainer.photos.labels[torch.arange(n) % len(trainer.photos)].to(trainer.device)
        self.done = 0

    def add_if_due(self, progress: float) -> None:
        due = int(_GRIDS * progress**0.5)
        if due > self.done:
            self.add()
        self.done = max(due, self.done)

    def add(self) -> None:
        sheet = grid(self.sampler.images(self.z, self.c))
        write_image(self.out / "samples" / f"step{self.trainer.step:07d}.png", sheet)
        write_image(self.out / "samples.png", sheet)


def _status(trainer: Trainer) -> str:
    row = trainer.history[-1] if trainer.history else {}
    text = f"step {trainer.step}  {trainer.images / 1000:.1f} kimg"
    for name, label in (("loss_g", "G"), ("loss_d", "D"), ("p", "augment")):
        if name in row:
            text += f"  {label} {row[name]:.3f}"
    return text


def _plot(trainer: Trainer, path: Path) -> None:
    colors = {"loss_g": "#0b6bcb", "loss_d": "#c2410c", "r1": "#15803d", "p": "#7c3aed"}
    curves = []
    for name, color in colors.items():
        points = [(row["kimg"], row[name]) for row in trainer.history if name in row]
        if points:
            curves.append(Curve(name, color, _smooth(points)))
    if curves:
        with atomic_write(path, "w") as file:
            file.write(line_plot(curves, "thousands of photographs", "terms of the loss"))


def _smooth(points: list[tuple[float, float]], at_most: int = 200) -> list[tuple[float, float]]:
    """Means of neighbours, so that a curve has at most so many points."""
    size = -(-len(points) // at_most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _metrics(options: Train, trainer: Trainer, interrupted: bool) -> dict[str, Any]:
    native = use_native("gan", torch.device(options.device))
    return {
        "steps": trainer.step,
        "kimg": trainer.images / 1000,
        "train_seconds": trainer.seconds,
        "seconds_per_kimg": trainer.seconds / max(trainer.images / 1000, 1e-9),
        "interrupted": interrupted,
        "data": str(options.data),
        "photos": len(trainer.photos),
        "resolution": trainer.photos.resolution,
        "class_names": list(trainer.photos.class_names),
        "mirror": options.mirror,
        "preset": options.preset,
        "parameters_generator": sum(p.numel() for p in trainer.generator.parameters()),
        "parameters_discriminator": sum(p.numel() for p in trainer.discriminator.parameters()),
        "seed": options.seed,
        "backend": "native" if native else "reference",
        "device": options.device,
        "threads": torch.get_num_threads(),
        "isa": None if _ext._C is None or not native else _ext._C.active_isa(),
        "processor": processor(options.device),
        "fastvfx": fastvfx.__version__,
        "torch": torch.__version__,
        "config": trainer.config.to_dict(),
        "history": trainer.history,
    }


def _label(sampler: Sampler, n: int, label: str | None) -> Tensor | None:
    names = sampler.class_names
    if label is not None and label in names:
        number: int | None = names.index(label)
    elif label is None or label.isdecimal():
        number = None if label is None else int(label)
    else:
        raise UserError(
            f"expected --label to be a number{' or one of ' + ', '.join(names) if names else ''}, got {label}"
        )
    try:
        return sampler.labels(n, number)
    except ValueError as error:
        raise UserError(f"--label: {error}") from None


def _generated(sampler: Sampler, z: Tensor, c: Tensor | None, truncation: float, advance: Any) -> Tensor:
    parts = []
    for start in range(0, len(z), _BATCH):
        part = slice(start, start + _BATCH)
        parts.append(sampler.images(z[part], None if c is None else c[part], truncation))
        advance(min(start + _BATCH, len(z)), "")
    return torch.cat(parts)


def _film(sampler: Sampler, z: Tensor, c: Tensor | None, options: Generate, path: Path) -> None:
    total = len(z) * options.frames
    with progress("filming", total) as advance:

        def frames() -> Iterator[Tensor]:
            for i, frame in enumerate(sampler.path(z, c, options.frames, options.truncation)):
                yield picture(frame)
                advance(i + 1, "")

        write_video(path, frames(), fps=options.fps)


def _path_length(sampler: Sampler, features: Any, options: Eval, labels: Tensor | None) -> float:
    generator = sampler.generator
    c = None if labels is None else labels[:1].to(options.device)
    lengths = []
    with torch.no_grad():
        for start in range(0, options.paths, _BATCH):
            n = 2 * min(_BATCH, options.paths - start)
            z = torch.randn((n, generator.z_dim), device=options.device)
            ws = generator.mapping(z, None if c is None else c.expand(n, -1))
            lengths.append(
                perceptual_path_length(
                    lambda w: generator.synthesis(w, noise_mode="const"), ws, feature_distance(features)
                )
            )
    return float(torch.cat(lengths).mean())
