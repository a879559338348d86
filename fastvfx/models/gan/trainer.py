"""Training of a generator against a discriminator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import PhotoBatch, Photos
from .. import checkpoint as files
from .._training import Diverged, run, seeded, thinned, used_up
from ..meter import Meter
from . import objectives
from .augment import AdaptiveProbability, Augment
from .config import GanConfig, OptimizerConfig
from .ema import Ema
from .losses import PathLength, clip_weights
from .networks import DISCRIMINATORS, GENERATORS, GROWING, build, has_styles

FILES = files.Format("fastvfx.gan")
_CHECK_EVERY = 16  # steps between looks at the losses on a GPU, which wait for it
_NETWORKS = ("generator", "discriminator")


class Trainer:
    """Trains a generator on photographs. Everything random follows from the seed of the configuration and the step.

    Args:
        photos: to learn from.
        config: all settings; :func:`preset` makes them.
        device: to train on.

    Attributes:
        generator, discriminator: the networks; ``ema.network`` is the generator to use.
        augment: what images go through before the discriminator, or ``None``.
        step, images, seconds: so far: updates of the generator, photographs that the discriminator saw, and time spent
            in steps.
        history: rows of ``step``, ``kimg``, ``seconds`` and the means of all terms since the row before.

    Raises:
        ValueError: networks and photographs do not fit.

    >>> photos = load_photos("flowers.zip", 64)
    >>> trainer = Trainer(photos, preset("stylegan2-small", 64))
    >>> trainer.fit(max_seconds=600)
    >>> images = trainer.ema.network(torch.randn(16, 512), truncation_psi=0.7)
    """

    def __init__(self, photos: Photos, config: GanConfig, *, device: torch.device | str = "cpu") -> None:
        self.photos, self.config, self.device = photos, config, torch.device(device)
        _check_fit(photos, config)
        train = config.train
        with seeded(self.device, train.seed):
            self.generator = build(GENERATORS, config.generator).to(device)
            self.discriminator = build(DISCRIMINATORS, config.discriminator).to(device)
        self.ema = Ema(self.generator, train.ema_kimg, train.ema_rampup)
        self.augment = None if config.augment is None else Augment(config.augment).to(device)
        self.control = None if self.augment is None else AdaptiveProbability(self.augment)
        self.path_length = PathLength(config.loss.path_length_decay).to(device)
        loss = config.loss
        self.regular_g = loss.path_length > 0 and has_styles(self.generator)
        self.regular_d = loss.discriminator_every > 1 and (loss.r1_gamma > 0 or loss.r2_gamma > 0)
        self.optimizers = {
            "generator": _optimizer(train.generator, self.generator, loss.generator_every if self.regular_g else None),
            "discriminator": _optimizer(
                train.discriminator, self.discriminator, loss.discriminator_every if self.regular_d else None
            ),
        }
        self.schedule = None if config.grow is None else config.grow.schedule(photos.resolution)
        self.resolution = photos.resolution if config.grow is None else config.grow.start
        self.step = self.images = self.images_at_update = 0
        self.seconds = 0.0
        self.meter = Meter()
        self.history: list[dict[str, float]] = []
        self.history_every = 1

    # --- one step ---------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """``n_critic`` updates of the discriminator and one of the generator.

        Raises:
            Diverged: a loss or a gradient is not finite. On a CPU the weights are still those of the step before.
        """
        config, train = self.config, self.config.train
        self._grow()
        with seeded(self.device, train.seed, self.step + 1):
            for _ in range(train.n_critic):
                batch = self._update_discriminator()
            self._update_generator(batch)
        self.ema.update(self.generator, train.batch * train.n_critic, self.images)
        self.step += 1
        if self.control is not None and config.augment is not None and self.step % config.augment.every == 0:
            self.control.update(self.images - self.images_at_update)
            self.images_at_update = self.images
        if self.device.type == "cpu" or self.step % _CHECK_EVERY == 0:
            self.check()

    def _grow(self) -> None:
        if self.schedule is None:
            return
        growth = self.schedule.at(self.images)
        for network in (self.generator, self.discriminator, self.ema.network):
            network.growth = growth  # type: ignore[assignment]
        if growth.resolution != self.resolution:
            # As the paper's program does: what the optimisers remember is about another network.
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
            self.resolution = growth.resolution

    def check(self) -> None:
        """Look at what the steps since the last look gave; on a GPU, this waits for it.

        Raises:
            Diverged: something is not finite.
        """
        means = self.meter.read()
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            raise self._diverged(bad, means)

    def _update_discriminator(self) -> PhotoBatch:
        loss, n = self.config.loss, self.config.train.batch
        batch = self.photos.shuffled(self.images, n, self.config.train.seed, self.device)
        if self.schedule is not None:
            batch = batch._replace(images=self.discriminator.growth.images(batch.images))  # type: ignore[operator,union-attr]
        lazily = self.regular_d and self.step % loss.discriminator_every == 0
        fake_c = self._labels(n)
        with torch.no_grad():
            fake = objectives.generate(self.generator, self._latents(n), fake_c, loss.style_mixing)
        pair = (batch.images, fake, batch.labels, fake_c)
        terms, real_logits = objectives.discriminator_terms(loss, self._judge, *pair)
        if self.control is not None:
            self.control.observe(real_logits)
        self.meter.add(real_sign=real_logits.detach().sign().mean())
        self._update("discriminator", terms)
        if lazily:
            self._update("discriminator", objectives.discriminator_penalties(loss, self._judge, *pair))
        if loss.clip is not None:
            clip_weights(self.discriminator, loss.clip)
        self.images += n
        return batch

    def _update_generator(self, batch: PhotoBatch) -> None:
        loss, n = self.config.loss, self.config.train.batch
        with objectives.frozen(self.discriminator):
            c = self._labels(n)
            fake = objectives.generate(self.generator, self._latents(n), c, loss.style_mixing, update_averages=True)
            terms = objectives.generator_terms(loss, self._judge, fake, c, batch.images, batch.labels)
            self._update("generator", terms)
        if self.regular_g and self.step % loss.generator_every == 0:
            z, c = self._latents(n), self._labels(n)
            self._update("generator", objectives.path_length_terms(loss, self.generator, self.path_length, z, c))

    def _update(self, name: str, terms: objectives.Terms) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values(), torch.zeros((), device=self.device)).backward()
        grads = [p.grad for p in getattr(self, name).parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        self.meter.add(**{key: value.detach() for key, value in terms.items()}, **{f"grad_{name}": norm})
        if self.device.type == "cpu" and not math.isfinite(float(norm)):
            raise self._diverged([f"grad_{name}"], {key: value.item() for key, value in terms.items()})
        optimizer.step()

    def _diverged(self, bad: list[str], values: dict[str, float]) -> Diverged:
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        return Diverged(
            f"{' and '.join(bad)} not finite at step {self.step} ({told}); try a lower learning rate or, for "
            "losses with a gradient penalty, a larger weight of it"
        )

    def _judge(self, images: Tensor, c: Tensor | None) -> Tensor:
        return self.discriminator(images if self.augment is None else self.augment(images), c)

    def _latents(self, n: int) -> Tensor:
        z_dim: Any = self.generator.z_dim
        return torch.randn((n, z_dim), device=self.device)

    def _labels(self, n: int) -> Tensor | None:
        """Labels of photographs at random, for images to be generated."""
        if self.photos.labels is None:
            return None
        return self.photos.labels[torch.randint(len(self.photos), (n,))].to(self.device)

    # --- many steps -------------------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        max_kimg: float | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: float = 60.0,
        on_step: Callable[[Trainer, float], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> bool:
        """Train until one of the limits is reached, what was done before a resumption included.

        SIGINT ends the training after the current step; a second one at once.

        Args:
            max_steps, max_seconds, max_kimg: steps, seconds spent in them, thousands of photographs shown to the
                discriminator; at least one.
            checkpoint: where to save, every ``checkpoint_every`` seconds and at the end.
            on_step: called after each step with the trainer and the progress in [0, 1].
            on_warning: called when a checkpoint on the way could not be written; training goes on.

        Returns:
            Whether it was interrupted.

        Raises:
            Diverged: a loss or a gradient is not finite. The last checkpoint is kept.
            OSError: the checkpoint at the end can't be written; the one before it is kept.
        """
        if max_steps is None and max_seconds is None and max_kimg is None:
            raise ValueError("fastvfx.models.gan.Trainer.fit: expected max_steps, max_seconds or max_kimg")

        def progress() -> float:
            return used_up((self.step, max_steps), (self.seconds, max_seconds), (self.images / 1000, max_kimg))

        def step(_: float) -> None:
            start = time.perf_counter()
            self.train_step()
            self.seconds += time.perf_counter() - start
            self._remember()
            if on_step is not None:
                on_step(self, min(progress(), 1.0))

        save = None if checkpoint is None else partial(self.save, checkpoint)
        return run(progress, step, save, checkpoint_every, on_warning)

    def _remember(self) -> None:
        """A row of the history now and then: at most about a thousand, the denser the shorter the training."""
        if self.step % self.history_every:
            return
        if self.device.type != "cpu" and self.step % _CHECK_EVERY:
            return
        self.check()
        row = {"step": self.step, "kimg": self.images / 1000, "seconds": self.seconds, **self.meter.take()}
        if self.augment is not None:
            row["p"] = self.augment.p
        self.history.append(row)
        self.history, self.history_every = thinned(self.history, self.history_every)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: files.PathLike) -> None:
        """Write a checkpoint: the generator to use, and what training goes on from.

        Raises:
            Diverged: something is not finite; an older file is kept.
            OSError: the file can't be written; an older one is kept.
        """
        self.check()
        tensors = {f"ema.{key}": x for key, x in self.ema.network.state_dict().items()}
        tensors["path_length.mean"] = self.path_length.mean
        for name in _NETWORKS:
            network: nn.Module = getattr(self, name)
            tensors |= {f"{name}.{key}": x for key, x in network.state_dict().items()}
            memory = files.optimizer_tensors(self.optimizers[name], network)
            tensors |= {f"optimizer.{name}.{key}": x for key, x in memory.items()}
        state: dict[str, Any] = {
            "config": self.config.to_dict(),
            "class_names": list(self.photos.class_names),
            "n_photos": len(self.photos),
            "device": self.device.type,
            "step": self.step,
            "images": self.images,
            "images_at_update": self.images_at_update,
            "resolution": self.resolution,
            "seconds": self.seconds,
            "history": self.history,
            "history_every": self.history_every,
            "meter": self.meter.state(),
        }
        if self.control is not None:
            state["control"] = self.control.state()
        FILES.save(path, tensors, state)

    def restore(self, path: files.PathLike) -> None:
        """Go on from a checkpoint that was trained with the same configuration on the same kind of device.

        Raises:
            CheckpointError: the file is damaged, of another model, or does not fit.
        """
        stored = FILES.load(path)
        state = stored.state
        if config_of(stored, path) != self.config:
            raise files.CheckpointError(f"{path}: trained with other settings, can't go on from it")
        if state["device"] != self.device.type:
            raise files.CheckpointError(f"{path}: trained on {state['device']}, can't go on on {self.device.type}")
        if state["n_photos"] != len(self.photos) or state["class_names"] != list(self.photos.class_names):
            raise files.CheckpointError(f"{path}: trained on other photographs, can't go on from it")
        files.fill(self.ema.network, stored.part("ema"), str(path))
        files.fill(self.path_length, stored.part("path_length"), str(path))
        for name in _NETWORKS:
            network: nn.Module = getattr(self, name)
            files.fill(network, stored.part(name), str(path))
            files.fill_optimizer(self.optimizers[name], network, stored.part(f"optimizer.{name}"))
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.images_at_update, self.resolution = state["images_at_update"], state["resolution"]
        self.history, self.history_every = state["history"], state["history_every"]
        self.meter = Meter(state["meter"])
        if self.control is not None:
            self.control.restore(state["control"])


def config_of(stored: files.Checkpoint, path: files.PathLike) -> GanConfig:
    """The configuration that a checkpoint was trained with."""
    try:
        return GanConfig.from_dict(stored.state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise files.CheckpointError(f"{path}: {error}") from error


def _optimizer(config: OptimizerConfig, network: nn.Module, every: int | None) -> torch.optim.Optimizer:
    c = 1.0 if every is None or every == 1 else every / (every + 1)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=config.learning_rate * c, eps=config.eps)
    first, second = config.betas
    betas = (first**c, second**c)
    return torch.optim.Adam(parameters, lr=config.learning_rate * c, betas=betas, eps=config.eps, fused=True)


def _check_fit(photos: Photos, config: GanConfig) -> None:
    generator: Any = config.generator
    discriminator: Any = config.discriminator
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        c_dim = getattr(network, "c_dim", 0)
        if network.img_resolution != photos.resolution or c_dim != photos.label_dim:
            raise ValueError(
                f"fastvfx.models.gan.Trainer: expected a {name} for images of {photos.resolution}x{photos.resolution} "
                f"with labels of {photos.label_dim} numbers, as the photographs are, got img_resolution="
                f"{network.img_resolution}, c_dim={c_dim}"
            )
    if config.grow is not None and (bad := [c for c in (generator, discriminator) if not isinstance(c, GROWING)]):
        raise ValueError(
            "fastvfx.models.gan.Trainer: expected networks of fastvfx.models.pggan to grow, or a generator of "
            f"stylegan1, got {bad[0]!r}"
        )
