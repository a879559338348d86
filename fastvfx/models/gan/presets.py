"""Recipes, by name: networks, losses, optimisers and their numbers, each as its source gives them where it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from .. import dcgan, pggan, stylegan1, stylegan2, stylegan3
from .augment import AugmentConfig
from .config import GanConfig, GrowConfig, LossConfig, OptimizerConfig, TrainConfig

Preset = Literal[
    "stylegan2",
    "stylegan2-small",
    "stylegan3-t",
    "stylegan3-r",
    "stylegan1",
    "pggan",
    "wgan",
    "wgan-gp",
    "sngan",
    "r3gan",
    "adam-1e-3",
]


def preset(
    name: Preset,
    resolution: int,
    *,
    label_dim: int = 0,
    batch: int | None = None,
    bfloat16: bool = False,
    augment: bool | None = None,
    seed: int = 0,
) -> GanConfig:
    """The settings of a recipe.

    - ``"stylegan2"``: StyleGAN2 with the numbers of its authors' later PyTorch release for one GPU: logistic loss, lazy
      R1 and path lengths, style mixing, ADA; for GPUs (Karras et al. 2020, twice).
    - ``"stylegan2-small"``: the same with networks of a tenth of the size and without path lengths, for minutes on a
      processor.
    - ``"stylegan3-t"``, ``"stylegan3-r"``: StyleGAN3's generators, without style mixing and path lengths; the weight
      of R1 wants to be chosen for the data, the one here is a first guess (Karras et al. 2021).
    - ``"stylegan1"``: the first StyleGAN, grown from 8x8, with the logistic loss, R1 in every step and style mixing
      (Karras et al. 2019).
    - ``"pggan"``: progressive growing from 4x4 with WGAN-GP and drift (Karras et al. 2018).
    - ``"wgan"``: DCGAN's networks, RMSprop(5e-5), weights clipped to 0.01, 5 critics (Arjovsky et al. 2017).
    - ``"wgan-gp"``: DCGAN's networks, the critic without normalisation, penalty 10, 5 critics, Adam(1e-4, (0, 0.9))
      (Gulrajani et al. 2017).
    - ``"sngan"``: DCGAN's generator, a spectrally normalised discriminator, the hinge loss, Adam(2e-4, (0.5, 0.999))
      (Miyato et al. 2018).
    - ``"r3gan"``: the relativistic loss with R1 and R2 in every step (Huang et al. 2024), on StyleGAN2's networks.
    - ``"adam-1e-3"``: StyleGAN2's networks and losses with Adam(1e-3, betas=(0.5, 0.999)) for both, without lazy
      regularisation, path lengths or ADA.

    Args:
        name: one of those.
        resolution: of the photographs, a power of two from 8.
        label_dim: of the photographs' labels, 0 for none.
        batch: photographs in a step; ``None`` for the recipe's own number.
        bfloat16: compute layers in bfloat16, but for those at 4x4.
        augment: ADA or none; ``None`` for what the recipe has.
        seed: of everything random.

    Raises:
        ValueError: there is none of that name, or an option does not suit it.
    """
    if name not in _RECIPES:
        raise ValueError(f"fastvfx.models.gan.preset: expected one of {', '.join(get_args(Preset))}, got {name!r}")
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(
            f"fastvfx.models.gan.preset: expected resolution to be a power of two from 8, got {resolution}"
        )
    if batch is not None and batch < 1:
        raise ValueError(f"fastvfx.models.gan.preset: expected batch of at least 1, got {batch}")
    if label_dim > 0 and name in _WITHOUT_LABELS:
        raise ValueError(f"fastvfx.models.gan.preset: expected no labels, {name}'s networks take none, got {label_dim}")
    config = _RECIPES[name](resolution, label_dim, batch)
    if bfloat16:
        config = in_bfloat16(config)
    if augment is not None:
        config = replace(config, augment=AugmentConfig() if augment else None)
    return replace(config, train=replace(config.train, seed=seed))


def in_bfloat16(config: GanConfig) -> GanConfig:
    """The same, with layers in bfloat16.

    Raises:
        ValueError: the networks can't.
    """
    generator: Any = config.generator
    discriminator: Any = config.discriminator
    if not hasattr(generator, "synthesis") or not hasattr(discriminator, "num_half_res"):
        raise ValueError("fastvfx.models.gan: expected networks of StyleGAN for bfloat16")
    synthesis = replace(generator.synthesis, num_half_res=16, half_dtype="bfloat16")
    return replace(
        config,
        generator=replace(generator, synthesis=synthesis),
        discriminator=replace(discriminator, num_half_res=16, half_dtype="bfloat16"),
    )


def r1_gamma(resolution: int, batch: int) -> float:
    """A first guess at R1's weight, that of StyleGAN2-ADA's configuration "auto"."""
    return 0.0002 * resolution**2 / batch


def _stylegan2_networks(
    resolution: int, label_dim: int, batch: int, channel_base: int, channel_max: int, latent: int, mapping_layers: int
) -> tuple[stylegan2.GeneratorConfig, stylegan2.DiscriminatorConfig]:
    widths: dict[str, Any] = {"channel_base": channel_base, "channel_max": channel_max}
    generator = stylegan2.GeneratorConfig(
        z_dim=latent,
        c_dim=label_dim,
        w_dim=latent,
        img_resolution=resolution,
        mapping=stylegan2.MappingConfig(num_layers=mapping_layers),
        synthesis=stylegan2.SynthesisConfig(**widths),
    )
    discriminator = stylegan2.DiscriminatorConfig(
        c_dim=label_dim, img_resolution=resolution, mbstd_group_size=4 if batch % 4 == 0 else 1, **widths
    )
    return generator, discriminator


def _stylegan2(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 32 if batch is None else batch
    base = 32768 if resolution >= 512 else 16384
    networks = _stylegan2_networks(resolution, label_dim, batch, base, 512, 512, 8)
    adam = OptimizerConfig(learning_rate=0.002 if resolution >= 1024 else 0.0025)
    loss = LossConfig(r1_gamma=r1_gamma(resolution, batch), path_length=2.0, style_mixing=0.9)
    train = TrainConfig(batch, generator=adam, discriminator=adam, ema_kimg=batch * 10 / 32)
    return GanConfig(*networks, loss, train, AugmentConfig())


def _stylegan2_small(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 16 if batch is None else batch
    networks = _stylegan2_networks(resolution, label_dim, batch, 2048, 128, 128, 4)
    adam = OptimizerConfig(learning_rate=0.0025)
    loss = LossConfig(r1_gamma=r1_gamma(resolution, batch), style_mixing=0.5)
    train = TrainConfig(batch, generator=adam, discriminator=adam, ema_kimg=2.0)
    return GanConfig(*networks, loss, train)


def _r3gan(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 32 if batch is None else batch
    generator, discriminator = _stylegan2_networks(resolution, label_dim, batch, 16384, 512, 512, 8)
    adam = OptimizerConfig(learning_rate=2e-4, betas=(0.0, 0.99))
    loss = LossConfig("relativistic", r1_gamma=1.0, r2_gamma=1.0, discriminator_every=1)
    train = TrainConfig(batch, generator=adam, discriminator=adam)
    # The paper does without statistics over the batch.
    return GanConfig(generator, replace(discriminator, mbstd_num_channels=0), loss, train)


def _adam(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 32 if batch is None else batch
    networks = _stylegan2_networks(resolution, label_dim, batch, 16384, 512, 512, 8)
    adam = OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.999))
    loss = LossConfig(r1_gamma=r1_gamma(resolution, batch), discriminator_every=1, style_mixing=0.9)
    return GanConfig(*networks, loss, TrainConfig(batch, generator=adam, discriminator=adam))


def _stylegan3(config: Literal["t", "r"], resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 32 if batch is None else batch
    _, discriminator = _stylegan2_networks(resolution, label_dim, batch, 32768, 512, 512, 8)
    if config == "t":
        generator = stylegan3.GeneratorConfig(img_resolution=resolution)
    else:
        generator = stylegan3.GeneratorConfig.config_r(resolution)
    adam = OptimizerConfig(learning_rate=0.0025), OptimizerConfig(learning_rate=0.002)
    # In proportion to the pixels, as for StyleGAN2, from 2 for T and 4 for R at 256 with a batch of 32.
    gamma = (2 if config == "t" else 4) * (resolution / 256) ** 2 * 32 / batch
    train = TrainConfig(batch, 1, *adam, ema_kimg=batch * 10 / 32)
    return GanConfig(
        replace(generator, c_dim=label_dim), discriminator, LossConfig(r1_gamma=gamma), train, AugmentConfig()
    )


def _stylegan1(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 32 if batch is None else batch
    adam = OptimizerConfig(learning_rate={128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}.get(resolution, 0.001))
    return GanConfig(
        stylegan1.GeneratorConfig(img_resolution=resolution),
        pggan.DiscriminatorConfig(
            img_resolution=resolution, resample_filter=(1, 2, 1), mbstd_group_size=4 if batch % 4 == 0 else 1
        ),
        LossConfig(r1_gamma=10.0, discriminator_every=1, style_mixing=0.9),
        TrainConfig(batch, 1, adam, adam, ema_kimg=10.0, ema_rampup=None),
        grow=GrowConfig(start=8),
    )


def _pggan(resolution: int, label_dim: int, batch: int | None) -> GanConfig:
    batch = 16 if batch is None else batch
    adam = OptimizerConfig(learning_rate=1e-3)
    return GanConfig(
        pggan.GeneratorConfig(img_resolution=resolution),
        pggan.DiscriminatorConfig(img_resolution=resolution, mbstd_group_size=4 if batch % 4 == 0 else 1),
        LossConfig("wasserstein", gradient_penalty=10.0, drift=1e-3),
        # The paper averages with a beta of 0.999 a step of 16 images, which halves in 11,000.
        TrainConfig(batch, 1, adam, adam, ema_kimg=11.0, ema_rampup=None),
        grow=GrowConfig(),
    )


def _dcgan(
    normalization: dcgan.Normalization,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    n_critic: int,
    resolution: int,
    label_dim: int,
    batch: int | None,
) -> GanConfig:
    return GanConfig(
        dcgan.GeneratorConfig(img_resolution=resolution, channel_base=4096),
        dcgan.DiscriminatorConfig(img_resolution=resolution, channel_base=4096, normalization=normalization),
        loss,
        TrainConfig(64 if batch is None else batch, n_critic, optimizer, optimizer),
    )


_WITHOUT_LABELS = ("stylegan1", "pggan", "wgan", "wgan-gp", "sngan")
_RECIPES: dict[str, Callable[[int, int, int | None], GanConfig]] = {
    "stylegan2": _stylegan2,
    "stylegan2-small": _stylegan2_small,
    "stylegan3-t": partial(_stylegan3, "t"),
    "stylegan3-r": partial(_stylegan3, "r"),
    "stylegan1": _stylegan1,
    "pggan": _pggan,
    "wgan": partial(
        _dcgan, "batch", LossConfig("wasserstein", clip=0.01), OptimizerConfig("rmsprop", learning_rate=5e-5), 5
    ),
    "wgan-gp": partial(
        _dcgan,
        "none",
        LossConfig("wasserstein", gradient_penalty=10.0),
        OptimizerConfig(learning_rate=1e-4, betas=(0.0, 0.9)),
        5,
    ),
    "sngan": partial(
        _dcgan, "spectral", LossConfig("hinge"), OptimizerConfig(learning_rate=2e-4, betas=(0.5, 0.999)), 1
    ),
    "r3gan": _r3gan,
    "adam-1e-3": _adam,
}
