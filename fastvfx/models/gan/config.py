"""Every number of the networks and of their training, as plain dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .._config import Config
from ..pggan import GrowthSchedule
from . import networks
from .augment import AugmentConfig
from .losses import Adversarial


@dataclass(frozen=True)
class LossConfig(Config):
    """What is minimised; the terms are those of :mod:`.losses`.

    Attributes:
        kind: of the adversarial loss.
        r1_gamma, r2_gamma: weight of R1 and R2; half of it stands in front of the penalty, as in the papers.
        gradient_penalty: weight of WGAN-GP's penalty between photographs and generated images.
        drift: weight of the squared logits of photographs.
        path_length: weight of the penalty of uneven path lengths, for generators with styles.
        path_length_decay: of its moving average.
        path_length_shrink: it looks at that part of the batch.
        discriminator_every, generator_every: R1, R2 and path lengths are only in every so many-th step, with as many
            times the weight (lazy regularisation, StyleGAN2, appendix B). 1 adds them to the adversarial loss.
        clip: force the discriminator's weights into [-clip, clip] after each step; ``None`` leaves them.
        style_mixing: probability that the layers of an image follow two styles, for generators with styles.
    """

    kind: Adversarial = "logistic"
    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    gradient_penalty: float = 0.0
    drift: float = 0.0
    path_length: float = 0.0
    path_length_decay: float = 0.01
    path_length_shrink: int = 2
    discriminator_every: int = 16
    generator_every: int = 4
    clip: float | None = None
    style_mixing: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """Of one of the networks.

    Attributes:
        kind: ``"adam"``, or ``"rmsprop"`` (which has no betas).
        learning_rate, betas, eps: its settings. Lazy regularisation corrects them: with a term in every k-th step only
            there are k + 1 updates for k steps, so with c = k / (k + 1) the rate is multiplied by c, and each beta
            becomes beta^c.
    """

    kind: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = 0.002
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8


@dataclass(frozen=True)
class GrowConfig(Config):
    """Progressive growing (Karras et al. 2018): learn a small image first, then one of twice the size.

    Attributes:
        start: resolution of the beginning.
        fade_kimg, stable_kimg: thousands of images while a new resolution is faded in, and until the next one comes.
    """

    start: int = 4
    fade_kimg: float = 600.0
    stable_kimg: float = 600.0

    def schedule(self, img_resolution: int) -> GrowthSchedule:
        """In images, up to that resolution."""
        return GrowthSchedule(img_resolution, self.start, int(self.stable_kimg * 1000), int(self.fade_kimg * 1000))


@dataclass(frozen=True)
class TrainConfig(Config):
    """How the networks are fitted.

    Attributes:
        batch: photographs, and generated images, that an update looks at.
        n_critic: updates of the discriminator for each of the generator.
        generator, discriminator: their optimisers.
        ema_kimg, ema_rampup: of :class:`Ema`.
        seed: of everything random.
    """

    batch: int = 32
    n_critic: int = 1
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_kimg: float = 10.0
    ema_rampup: float | None = 0.05
    seed: int = 0


@dataclass(frozen=True)
class GanConfig:
    """All of it.

    Attributes:
        generator, discriminator: configurations of networks that :mod:`.networks` knows, such as
            :class:`fastvfx.models.stylegan2.GeneratorConfig`.
        loss, train: see there.
        augment: what the discriminator's images go through; ``None`` for nothing.
        grow: grow the networks, which must be those of :mod:`fastvfx.models.pggan` or a generator of
            :mod:`fastvfx.models.stylegan1`; ``None`` trains all of them from the start.
    """

    generator: Config
    discriminator: Config
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig | None = None
    grow: GrowConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "generator": networks.to_dict(networks.GENERATORS, self.generator),
            "discriminator": networks.to_dict(networks.DISCRIMINATORS, self.discriminator),
            "loss": self.loss.to_dict(),
            "train": self.train.to_dict(),
            "augment": None if self.augment is None else self.augment.to_dict(),
            "grow": None if self.grow is None else self.grow.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GanConfig:
        """The inverse of :meth:`to_dict`, after a trip through JSON too.

        Raises:
            ValueError: names or values that this version does not know.
        """
        try:
            augment, grow = values["augment"], values["grow"]
            return cls(
                networks.from_dict(networks.GENERATORS, values["generator"]),
                networks.from_dict(networks.DISCRIMINATORS, values["discriminator"]),
                LossConfig.from_dict(values["loss"]),
                TrainConfig.from_dict(values["train"]),
                None if augment is None else AugmentConfig.from_dict(augment),
                None if grow is None else GrowConfig.from_dict(grow),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a configuration of this version: {error}") from error
