"""Fitting a model to posed images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...data import Cameras, PosedImages, RayBatch, SceneBounds, over_background
from .. import checkpoint as files
from .._training import Diverged, run, used_up
from .config import NerfConfig
from .losses import color_loss, distortion_loss, opacity_entropy
from .renderer import Nerf, TrainingRays

FILES = files.Format("fastvfx.nerf")
_PROBES = 24  # over a whole training, closer together at the beginning
_CAMERA = ("camera_to_world", "fx", "fy", "cx", "cy", "width", "height", "distortion")
_CHECK_EVERY = 16  # steps between looks at the loss, which on a GPU wait for it


@dataclass(frozen=True)
class Progress:
    """A point of the training's history.

    Attributes:
        step: steps done.
        seconds: of training, without probes, checkpoints and evaluation.
        psnr: of the probe, dB.
    """

    step: int
    seconds: float
    psnr: float


class Trainer:
    """Fits a :class:`Nerf` to posed images. Everything random comes from the seed of the configuration.

    Args:
        data: the training views.
        config: all settings; those of :meth:`NerfConfig.for_bounds` if None.
        device: to train on; the views are copied there.

    Attributes:
        model, step, seconds, history: the state; ``seconds`` is the time spent in steps.
        samples: that went through both networks so far; ``rays`` likewise.
        loss: of the last step that was looked at.

    >>> trainer = Trainer(load_transforms("fox"))
    >>> trainer.fit(max_seconds=60)
    """

    def __init__(
        self, data: PosedImages, config: NerfConfig | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.data = data.to(device)
        self.config = config or NerfConfig.for_bounds(data.bounds)
        self.device = torch.device(device)
        self.model = Nerf(self.config, data.bounds).to(device)
        train = self.config.train
        self.optimizer = torch.optim.Adam(
            self.model.field.parameters(), lr=train.learning_rate, betas=train.betas, eps=train.eps, fused=True
        )
        self.generator = torch.Generator(device).manual_seed(train.seed)
        self.n_rays = max(1, train.target_samples // 256)
        self.step = 0
        self.seconds = 0.0
        self.samples = 0
        self.rays = 0
        self.loss = float("nan")
        self.history: list[Progress] = []

    # --- one step ---------------------------------------------------------------------------------------------------

    def train_step(self, progress: float = 0.0) -> Tensor:
        """One step of the optimiser; ``progress`` in [0, 1] sets its learning rate. Returns the loss."""
        self.model.update_occupancy(self.step, self.generator)
        batch = self.data.sample_rays(self.n_rays, self.generator)
        background = self._background(batch.colors)
        loss, rays = self.optimise(batch, background, self.step, progress)
        n_samples = rays.samples.t_starts.shape[0]
        self.step += 1
        self.samples += n_samples
        self.rays += self.n_rays
        self._adapt(n_samples, rays.n_marched)
        return loss

    def optimise(
        self, batch: RayBatch, background: Tensor, seed: int, progress: float = 0.0
    ) -> tuple[Tensor, TrainingRays]:
        """Loss, gradients and optimiser for one batch of rays; ``seed`` jitters their samples."""
        train = self.config.train
        rays = self.model.training_rays(
            batch.origins, batch.directions, background, seed, weights=train.distortion_weight > 0
        )
        loss = self._loss(rays, over_background(batch.colors, background))
        self.optimizer.zero_grad(set_to_none=True)
        if rays.samples.t_starts.shape[0]:  # else nothing depends on the parameters
            loss.backward()
            rate = train.learning_rate * (train.final_learning_rate / train.learning_rate) ** progress
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
        return loss.detach(), rays

    def _background(self, colors: Tensor) -> Tensor:
        if self.config.train.random_background:
            return torch.rand((colors.shape[0], 3), generator=self.generator, device=self.device)
        return torch.zeros((colors.shape[0], 3), device=self.device)

    def _loss(self, rays: TrainingRays, target: Tensor) -> Tensor:
        train = self.config.train
        loss = color_loss(rays.output.rgb, target, train.loss, train.huber_delta)
        if train.opacity_weight > 0:
            loss = loss + train.opacity_weight * opacity_entropy(rays.output.opacity)
        if train.distortion_weight > 0:
            assert rays.output.weights is not None
            loss = loss + train.distortion_weight * distortion_loss(
                rays.output.weights, rays.samples.t_starts, rays.samples.t_ends, rays.samples.offsets
            )
        return loss

    def _adapt(self, n_samples: int, n_marched: int) -> None:
        """Choose the number of rays of the next step, so that its samples cost what they should."""
        train = self.config.train
        # Samples that are pruned cost a fifth of the others.
        cost = n_samples + (n_marched - n_samples) / 5
        change = min(max(train.target_samples / max(cost, 1), 0.5), 2.0)
        self.n_rays = min(max(int(self.n_rays * change), 64), train.max_rays)

    # --- many steps -------------------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        probe: Callable[[Nerf], float] | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: float = 30.0,
        on_step: Callable[[Trainer, float], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> bool:
        """Train until ``max_steps`` or ``max_seconds`` in all are reached, those before a resumption included.

        The learning rate follows how much of the nearer limit is used up: results repeat exactly where that is the
        number of steps. SIGINT ends the training after the current step; a second one at once.

        Args:
            max_steps, max_seconds: at least one.
            probe: measures the model now and then; its time does not count.
            checkpoint: where to save, every ``checkpoint_every`` seconds and at the end.
            on_step: called after each step with the trainer and the progress in [0, 1].
            on_warning: called when a checkpoint on the way could not be written; training goes on.

        Returns:
            Whether it was interrupted.

        Raises:
            Diverged: the loss became NaN or infinite. The last checkpoint is kept.
            OSError: the checkpoint at the end can't be written; the one before it is kept.
        """
        if max_steps is None and max_seconds is None:
            raise ValueError("fastvfx.models.nerf.Trainer.fit: expected max_steps or max_seconds")

        def progress() -> float:
            return used_up((self.step, max_steps), (self.seconds, max_seconds))

        def step(done: float) -> None:
            self._probe_if_due(probe, done)
            start = time.perf_counter()
            loss = self.train_step(done)
            if self.step % _CHECK_EVERY == 0 or self.step == 1:
                self.loss = float(loss)
            self.seconds += time.perf_counter() - start
            if self.step % _CHECK_EVERY == 0 and not abs(self.loss) < float("inf"):
                raise Diverged(f"the loss is {self.loss} at step {self.step}; try a lower learning rate")
            if on_step is not None:
                on_step(self, done)

        def last_probe() -> None:
            if probe is not None and (not self.history or self.history[-1].step < self.step):
                self.history.append(Progress(self.step, self.seconds, probe(self.model)))

        save = None if checkpoint is None else partial(self.save, checkpoint)
        return run(progress, step, save, checkpoint_every, on_warning, last_probe)

    def _probe_if_due(self, probe: Callable[[Nerf], float] | None, progress: float) -> None:
        if probe is None or self.step == 0:
            return
        if progress >= ((len(self.history) + 1) / _PROBES) ** 1.5:
            self.history.append(Progress(self.step, self.seconds, probe(self.model)))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: files.PathLike) -> None:
        """Write a checkpoint: the model and what training goes on from.

        Raises:
            OSError: the file can't be written; an older one is kept.
        """
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        memory = files.optimizer_tensors(self.optimizer, self.model.field)
        tensors |= {f"optimizer.{name}": x for name, x in memory.items()}
        tensors |= {f"cameras.{name}": getattr(self.data.cameras, name) for name in _CAMERA}
        tensors["generator"] = self.generator.get_state()
        FILES.save(
            path,
            tensors,
            {
                "config": self.config.to_dict(),
                "bounds": self.model.bounds.to_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "samples": self.samples,
                "rays": self.rays,
                "n_rays": self.n_rays,
                "device": self.device.type,
                "history": [[p.step, p.seconds, p.psnr] for p in self.history],
            },
        )

    def restore(self, path: files.PathLike) -> None:
        """Go on from a checkpoint that was trained with the same configuration on the same kind of device.

        Raises:
            CheckpointError: the file is damaged, of another model, or does not fit.
        """
        stored = FILES.load(path)
        state = stored.state
        config, bounds = settings_of(stored, path)
        if config != self.config or bounds != self.model.bounds:
            raise files.CheckpointError(f"{path}: trained with other settings or on another scene, can't go on from it")
        if state["device"] != self.device.type:
            raise files.CheckpointError(f"{path}: trained on {state['device']}, can't go on on {self.device.type}")
        files.fill(self.model, stored.part("model"), str(path))
        files.fill_optimizer(self.optimizer, self.model.field, stored.part("optimizer"))
        self.generator.set_state(stored.tensors["generator"])
        self.step, self.seconds, self.n_rays = state["step"], state["seconds"], state["n_rays"]
        self.samples, self.rays = state["samples"], state["rays"]
        self.history = [Progress(*p) for p in state["history"]]


def settings_of(stored: files.Checkpoint, path: files.PathLike) -> tuple[NerfConfig, SceneBounds]:
    """The configuration and the bounds that a checkpoint was trained with."""
    try:
        return NerfConfig.from_dict(stored.state["config"]), SceneBounds.from_dict(stored.state["bounds"])
    except (KeyError, TypeError, ValueError) as error:
        raise files.CheckpointError(f"{path}: {error}") from error


class Scene(NamedTuple):
    """What a checkpoint is enough for."""

    model: Nerf
    cameras: Cameras  #: of the training views


def load_scene(path: files.PathLike, device: torch.device | str = "cpu") -> Scene:
    """The model of a checkpoint, ready to render, and the cameras that it was trained with.

    Raises:
        CheckpointError: the file is damaged or of another model.
    """
    stored = FILES.load(path)
    model = Nerf(*settings_of(stored, path))
    files.fill(model, stored.part("model"), str(path))
    try:
        cameras = Cameras(**{name: stored.tensors[f"cameras.{name}"] for name in _CAMERA})
    except (KeyError, ValueError) as error:
        raise files.CheckpointError(f"{path}: no cameras in it ({error})") from error
    return Scene(model.to(device).eval(), cameras.to(device))
