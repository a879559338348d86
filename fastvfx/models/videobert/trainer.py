"""Pre-training and fine-tuning: steps, limits, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint as files
from .._config import Config
from .._training import Diverged, run, seeded, thinned, used_up
from ..meter import Meter
from .batches import Batches
from .library import Library
from .model import VideoBert
from .objectives import PretrainLoss, Terms, pretraining_terms
from .system import FILES, System, system_of


@dataclass(frozen=True)
class TrainConfig(Config):
    """How a network is fitted.

    Attributes:
        learning_rate: of Adam, at the end of the warm-up; from there it falls in a straight line to 0. The paper's is
            1e-5, for batches of 128 and half a million steps.
        betas, eps: the rest of Adam.
        warmup: part of the training over which the rate rises from 0.
        decay_steps: steps at which the rate is 0; ``None`` for the end of the training.
        clip: largest norm of the gradient; longer ones are shortened.
        freeze: leave the encoder as it is and fit only what is on it (fine-tuning).
        loss: weights of the terms (pre-training).
        seed: of everything random.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.05
    decay_steps: int | None = None
    clip: float = 1.0
    freeze: bool = False
    loss: PretrainLoss = field(default_factory=PretrainLoss)
    seed: int = 0


class Trainer:
    """Fits the network of a system to a library. Everything random follows from the seed and the step.

    Args:
        system: what is trained.
        library: what it is trained on; a classifier wants labels of all segments.
        config: all settings.

    Attributes:
        step, seconds: so far: updates, and time spent in them.
        history: rows of ``step``, ``seconds`` and the means of all terms since the row before.

    >>> trainer = Trainer(system, library, TrainConfig())
    >>> trainer.fit(max_steps=1000)
    """

    def __init__(self, system: System, library: Library, config: TrainConfig) -> None:
        if system.kind == "classifier" and any(s.label < 0 for s in library.segments):
            raise ValueError(
                "fastvfx.models.videobert.Trainer: expected a label of each segment for a classifier, got some without"
            )
        self.system, self.library, self.config = system, library, config
        network = self.network = system.network
        self.device = next(network.parameters()).device
        self.batches = Batches(library, system.vocabulary, system.encoder.config.video, system.batch, config.seed)
        if config.freeze and not isinstance(network, VideoBert):
            network.encoder.requires_grad_(False)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
        )
        self.ordinary = system.vocabulary.ordinary
        self.step, self.seconds = 0, 0.0
        self.meter = Meter()
        self.history: list[dict[str, float]] = []
        self.history_every = 1

    # --- one step ---------------------------------------------------------------------------------------------------

    def train_step(self, progress: float = 0.0) -> None:
        """One update; ``progress`` in [0, 1] is how much of the training is over.

        Raises:
            Diverged: the loss or the gradient is not finite; the weights are still those of the step before.
        """
        config = self.config
        if config.decay_steps is not None:
            progress = min(self.step / config.decay_steps, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(progress, config.warmup)
        self.network.train()
        if config.freeze and not isinstance(self.network, VideoBert):
            self.network.encoder.eval()
        with seeded(self.device, config.seed, self.step + 1):
            terms = self.terms()
            self.optimizer.zero_grad(set_to_none=True)
            sum(terms.values(), torch.zeros((), device=self.device)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        if not math.isfinite(float(norm)):
            told = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise Diverged(f"the gradient is not finite at step {self.step} ({told}); try a lower learning rate")
        self.optimizer.step()
        self.step += 1
        self.meter.add(**{name: value.detach() for name, value in terms.items()})

    def terms(self) -> Terms:
        """What is minimised in this step."""
        batch = self.batches.draw(self.step).to(self.device)
        if not isinstance(self.network, VideoBert):
            return {"loss": self.network.loss(batch)}
        texts = self.batches.other_texts(batch.texts, self.step)
        # Where there is no other text, there is no wrong one.
        can = torch.tensor([a != b for a, b in zip(texts, batch.texts, strict=True)], device=self.device)
        changed = can & (torch.rand(len(texts), device=self.device) < 0.5)
        other = self.batches.encode(texts).to(self.device)
        return pretraining_terms(self.network, batch, other, changed, self.ordinary, self.config.loss)

    # --- many steps -------------------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: float = 60.0,
        on_step: Callable[[Trainer, float], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> bool:
        """Train until one of the limits is reached, what was done before a resumption included.

        SIGINT ends the training after the current step; a second one at once.

        Args:
            max_steps, max_seconds: steps, and seconds spent in them; at least one.
            checkpoint: where to save, every ``checkpoint_every`` seconds and at the end.
            on_step: called after each step with the trainer and the progress in [0, 1].
            on_warning: called when a checkpoint on the way could not be written; training goes on.

        Returns:
            Whether it was interrupted.

        Raises:
            Diverged: the loss or the gradient is not finite. The last checkpoint is kept.
            OSError: the checkpoint at the end can't be written; the one before it is kept.
        """
        if max_steps is None and max_seconds is None:
            raise ValueError("fastvfx.models.videobert.Trainer.fit: expected max_steps or max_seconds")

        def progress() -> float:
            return used_up((self.step, max_steps), (self.seconds, max_seconds))

        def step(done: float) -> None:
            start = time.perf_counter()
            self.train_step(done)
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
        self.history.append({"step": self.step, "seconds": self.seconds, **self.meter.take()})
        self.history, self.history_every = thinned(self.history, self.history_every)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: files.PathLike) -> None:
        """Write a checkpoint: the system, and what training goes on from.

        Raises:
            OSError: the file can't be written; an older one is kept.
        """
        memory = files.optimizer_tensors(self.optimizer, self.network)
        tensors = self.system.tensors() | {f"optimizer.{name}": x for name, x in memory.items()}
        state: dict[str, Any] = {
            **self.system.state(),
            "train": self.config.to_dict(),
            "library": self.library.fingerprint(),
            "device": self.device.type,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "history_every": self.history_every,
            "meter": self.meter.state(),
        }
        FILES.save(path, tensors, state)

    def restore(self, path: files.PathLike) -> None:
        """Go on from a checkpoint that was trained on the same with the same settings, on the same kind of device.

        Raises:
            CheckpointError: the file is damaged, of another model, or does not fit.
        """
        stored = FILES.load(path)
        state = stored.state
        mine = {**self.system.state(), "train": self.config.to_dict()}
        try:
            theirs = {**system_of(stored, path).state(), "train": TrainConfig.from_dict(state["train"]).to_dict()}
        except (KeyError, TypeError, ValueError) as error:
            raise files.CheckpointError(f"{path}: {error}") from error
        if different := sorted(name for name in mine if mine[name] != theirs.get(name)):
            raise files.CheckpointError(
                f"{path}: trained with other settings ({', '.join(different)}), can't go on from it"
            )
        if state["library"] != self.library.fingerprint():
            raise files.CheckpointError(f"{path}: trained on other videos or captions, can't go on from it")
        if state["device"] != self.device.type:
            raise files.CheckpointError(f"{path}: trained on {state['device']}, can't go on on {self.device.type}")
        files.fill(self.network, stored.part("network"), str(path))
        files.fill(self.system.reader, stored.part("reader"), str(path))
        files.fill_optimizer(self.optimizer, self.network, stored.part("optimizer"))
        self.step, self.seconds = state["step"], state["seconds"]
        self.history, self.history_every = state["history"], state["history_every"]
        self.meter = Meter(state["meter"])


def schedule(progress: float, warmup: float) -> float:
    """The part of the learning rate that counts: up in a straight line until ``warmup``, then down to 0 at 1."""
    if progress < warmup:
        # The first step counts too, so that a training of a few steps does something.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0
