"""What the ``fastvfx nerf`` commands do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastvfx

from .. import _ext
from .._backend import backend, use_native
from ..data import PosedImages, camera_path, load_transforms, parse_color, write_image, write_video
from ..models.nerf import Evaluation, Nerf, NerfConfig, Probe, Trainer, load_scene
from ..models.nerf import evaluate as evaluate_views
from .common import METRICS, begin, checked_folder, prepare, processor, progress, say, write_json
from .errors import UserError

if TYPE_CHECKING:
    from .app import Eval, Render, Train


def train(options: Train) -> int:
    """``fastvfx nerf train``. Returns the exit code."""
    for name, value in (("--max-seconds", options.max_seconds), ("--max-steps", options.max_steps)):
        if value is not None and not value > 0:
            raise UserError(f"expected {name} above 0, got {value:g}")
    if options.film_frames < 0:
        raise UserError(f"expected --film-frames of at least 0, got {options.film_frames}")
    prepare("nerf", options.device, options.backend, options.threads)
    out = checked_folder(options.out)
    data = _load(options, "train")
    test = _load_test(options, data)
    background = _background(options)
    trainer = Trainer(data, NerfConfig.for_bounds(data.bounds, options.seed), device=options.device)
    checkpoint = begin(trainer, out, options.resume)

    max_seconds = 60.0 if options.max_seconds is None and options.max_steps is None else options.max_seconds
    probe = None if test is None else _Fast(Probe(test, background.to(options.device)))
    with progress("training", 1.0) as advance:

        def on_step(trainer: Trainer, progress: float) -> None:
            quality = f"{trainer.history[-1].psnr:.2f} dB" if trainer.history else ""
            speed = trainer.samples / trainer.seconds / 1e6 if trainer.seconds else 0.0
            advance(progress, f"step {trainer.step}  loss {trainer.loss:.5f}  {speed:.2f} Msamples/s  {quality}")

        interrupted = trainer.fit(
            max_steps=options.max_steps,
            max_seconds=max_seconds,
            probe=probe,
            checkpoint=checkpoint,
            on_step=on_step,
            on_warning=say,
        )
        if not interrupted:
            on_step(trainer, 1.0)
    metrics = _metrics(options, trainer, interrupted)
    # What was learned so far is on the disk before the pictures are begun.
    write_json(out / METRICS, metrics)
    if interrupted:
        say(f"interrupted after {trainer.step} steps; saved {checkpoint}, go on with --resume")
        return 130
    with backend("auto"):
        if test is not None:
            metrics.update(_scores(_evaluate(trainer.model, test, background, out / "test")))
            write_json(out / METRICS, metrics)
        if options.film_frames:
            cameras = camera_path(trainer.data.cameras, options.film_frames)
            _film(trainer.model, cameras, out / "film.mp4", 24.0, background.to(options.device))
    say(_summary(metrics, out))
    return 0


def render(options: Render) -> int:
    """``fastvfx nerf render``. Returns the exit code."""
    prepare("nerf", options.device, options.backend, options.threads)
    if options.frames < 1:
        raise UserError(f"expected --frames of at least 1, got {options.frames}")
    if options.width is not None and options.width < 1:
        raise UserError(f"expected --width of at least 1, got {options.width}")
    if not options.fps > 0:
        raise UserError(f"expected --fps above 0, got {options.fps:g}")
    scene = load_scene(options.checkpoint, options.device)
    background = parse_color(options.background).to(options.device)
    if options.views is not None:
        data = load_transforms(options.views, options.split, bounds=scene.model.bounds)
        cameras = data.cameras
    else:
        scale = 1.0 if options.width is None else options.width / int(scene.cameras.width[0])
        cameras = camera_path(scene.cameras, options.frames, kind=options.path, scale=scale)
    if options.out.suffix.lower() == ".mp4":
        _film(scene.model, cameras.to(options.device), options.out, options.fps, background)
    elif options.out.suffix:
        raise UserError(f"{options.out}: expected a .mp4 file or a folder")
    else:
        pictures = _pictures(scene.model, cameras.to(options.device), background)
        for i, picture in enumerate(pictures):
            write_image(options.out / f"{i:04d}.png", picture)
    say(f"wrote {options.out}")
    return 0


def evaluate(options: Eval) -> int:
    """``fastvfx nerf eval``. Returns the exit code."""
    prepare("nerf", options.device, options.backend, options.threads)
    scene = load_scene(options.checkpoint, options.device)
    data = _load(options, options.split, bounds=scene.model.bounds)
    metrics = _scores(_evaluate(scene.model, data, _background(options), options.out))
    if options.out is not None:
        write_json(options.out / METRICS, metrics)
    print(json.dumps(metrics))
    return 0


# --- parts ----------------------------------------------------------------------------------------------------------


class _Fast:
    """A probe in the fastest backend: what was learned does not depend on it, only how long one waits for it does."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def __call__(self, model: Nerf) -> float:
        with backend("auto"):
            return self.probe(model)


def _load(options: Train | Eval, split: str, bounds: Any = None) -> PosedImages:
    if options.downscale < 1:
        raise UserError(f"expected --downscale of at least 1, got {options.downscale}")
    if options.test_every < 0:
        raise UserError(f"expected --test-every of at least 0, got {options.test_every}")
    return load_transforms(
        options.data, split, test_every=options.test_every, downscale=options.downscale, bounds=bounds
    )


def _load_test(options: Train, data: PosedImages) -> PosedImages | None:
    if options.test_every == 0:
        return None
    return _load(options, "test", data.bounds).to(options.device)


def _background(options: Train | Eval) -> Tensor:
    return parse_color(options.background)


def _evaluate(model: Nerf, data: PosedImages, background: Tensor, folder: Path | None) -> Evaluation:
    with progress("comparing held-out views", len(data)) as advance:
        return evaluate_views(
            model, data.to(model.device), background.to(model.device), folder=folder, on_view=lambda n: advance(n, "")
        )


def _pictures(model: Nerf, cameras: Any, background: Tensor) -> Iterator[Tensor]:
    with progress("rendering", len(cameras)) as advance:
        for i in range(len(cameras)):
            yield model.image(cameras, i, background).rgb.clamp(0, 1)
            advance(i + 1, "")


def _film(model: Nerf, cameras: Any, path: Path, fps: float, background: Tensor) -> None:
    write_video(path, _pictures(model, cameras, background), fps=fps)


def _metrics(options: Train, trainer: Trainer, interrupted: bool) -> dict[str, Any]:
    native = use_native("nerf", torch.device(options.device))
    seconds = max(trainer.seconds, 1e-9)
    last = trainer.history[-1].psnr if trainer.history else None
    return {
        "steps": trainer.step,
        "train_seconds": trainer.seconds,
        "psnr_test": last,  # of a sample of the pixels, until the views are compared
        "ssim_test": None,
        "backend": "native" if native else "reference",
        "device": options.device,
        "samples_per_second": trainer.samples / seconds,
        "rays_per_second": trainer.rays / seconds,
        "steps_per_second": trainer.step / seconds,
        "interrupted": interrupted,
        "data": str(options.data),
        "train_views": len(trainer.data),
        "split": trainer.data.split_rule,
        "bounds": trainer.data.bounds.source,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "isa": None if _ext._C is None or not native else _ext._C.active_isa(),
        "processor": processor(options.device),
        "fastvfx": fastvfx.__version__,
        "torch": torch.__version__,
        "history": [{"step": p.step, "seconds": p.seconds, "psnr": p.psnr} for p in trainer.history],
        "config": trainer.config.to_dict(),
    }


def _scores(result: Evaluation) -> dict[str, Any]:
    return {
        "psnr_test": result.psnr,
        "ssim_test": result.ssim,
        "render_rays_per_second": result.rays / max(result.seconds, 1e-9),
        "views": [{"name": v.name, "psnr": v.psnr, "ssim": v.ssim} for v in result.views],
    }


def _summary(metrics: dict[str, Any], out: Path) -> str:
    quality = "no held-out views"
    if metrics["psnr_test"] is not None:
        quality = f"PSNR {metrics['psnr_test']:.2f} dB, SSIM {metrics['ssim_test']:.3f} on held-out views"
    return (
        f"{quality}; {metrics['steps']} steps in {metrics['train_seconds']:.1f} s, "
        f"{metrics['samples_per_second'] / 1e6:.2f} Msamples/s, {metrics['backend']}; results in {out}"
    )
