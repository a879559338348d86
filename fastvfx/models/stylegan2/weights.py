"""Weights from files: NVIDIA's pickles, rosinality's checkpoints, state dictionaries and safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from .. import _weights
from ..checkpoint import CheckpointError, PathLike
from .config import Architecture, DiscriminatorConfig, GeneratorConfig, MappingConfig, SynthesisConfig
from .discriminator import Discriminator
from .generator import Generator
from .rosinality import from_rosinality, is_rosinality
from .tensorflow import from_tensorflow, is_tensorflow

_TAPS = (1.0, 3.0, 3.0, 1.0)


def load_generator(path: PathLike, which: str = "G_ema", config: GeneratorConfig | None = None) -> Generator:
    """A generator with weights from a file, in evaluation mode, on the CPU.

    Args:
        path: a ``.pkl`` of NVIDIA's stylegan2, stylegan2-ada, stylegan2-ada-pytorch or stylegan3, read without running
            what is in it; a file of ``torch.save`` with state dictionaries, rosinality's stylegan2-pytorch among them;
            or safetensors.
        which: ``"G_ema"``, the averaged one, or ``"G"``; a file with one network only gives that.
        config: its shape, if the file does not tell: a state dictionary has neither clamps nor 16-bit blocks, which
            are then taken to be as in :class:`SynthesisConfig`.

    Where the file has no average of w, as rosinality's checkpoints from training, it is taken from 8192 latents.

    Raises:
        CheckpointError: the file is damaged, holds something else, or asks for more than a network needs.

    >>> generator = load_generator("ffhq.pkl")
    >>> images = generator(torch.randn(4, generator.z_dim), truncation_psi=0.7)
    """
    return generator_of(_weights.choose(_weights.read(path), which, path), path, config)


def generator_of(stored: _weights.Stored, path: PathLike, config: GeneratorConfig | None = None) -> Generator:
    """:func:`load_generator` of what was read from ``path``."""
    tensors, attributes = stored.tensors, stored.attributes
    try:
        if is_tensorflow(tensors):
            tensors, attributes = from_tensorflow(tensors, stored.init_kwargs)
        if is_rosinality(tensors):
            tensors, attributes = from_rosinality(tensors), {"synthesis.b4.conv1.conv_clamp": None}
        config = generator_config(tensors, attributes) if config is None else config
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: no StyleGAN2 generator: {_reason(error)}") from error
    generator = Generator(config)
    averaged = "mapping.w_avg" in tensors or config.mapping.w_avg_beta is None
    _weights.filled(generator, tensors if averaged else tensors | {"mapping.w_avg": generator.mapping.w_avg}, path)
    if not averaged:
        average_w(generator)
    return generator


def load_discriminator(path: PathLike, config: DiscriminatorConfig | None = None) -> Discriminator:
    """A discriminator with weights from a file, in evaluation mode, on the CPU; see :func:`load_generator`.

    No layer is frozen, whatever was when the file was written.

    Raises:
        CheckpointError: the file is damaged, holds something else, or asks for more than a network needs.
    """
    stored = _weights.choose(_weights.read(path), "D", path)
    tensors, attributes = stored.tensors, stored.attributes
    try:
        if is_tensorflow(tensors):
            tensors, attributes = from_tensorflow(tensors, stored.init_kwargs)
        if is_rosinality(tensors):
            tensors, attributes = from_rosinality(tensors), {"b4.conv.conv_clamp": None}
        config = discriminator_config(tensors, attributes) if config is None else config
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: no StyleGAN2 discriminator: {_reason(error)}") from error
    discriminator = Discriminator(config)
    _weights.filled(discriminator, tensors, path)
    return discriminator


@torch.no_grad()
def average_w(generator: Generator, samples: int = 8192) -> None:
    """Set ``mapping.w_avg`` of a generator without labels to the mean over random latents, always the same ones."""
    if generator.c_dim > 0:
        raise ValueError("fastvfx.stylegan2.average_w: expected a generator without labels")
    mapping = generator.mapping
    z = torch.randn(samples, generator.z_dim, generator=torch.Generator().manual_seed(0))
    mapping.w_avg.copy_(mapping(z.to(mapping.w_avg))[:, 0].mean(0))


# --- shapes from states -----------------------------------------------------------------------------------------------


def generator_config(tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> GeneratorConfig:
    """The shape of a generator, from its state and, where known, the attributes of the modules it came from.

    Raises:
        KeyError: a tensor that all of them have is missing.
        ValueError: channels that follow no schedule.
    """
    sizes = _block_resolutions("synthesis.", tensors)
    top = f"synthesis.b{sizes[-1]}"
    first = "synthesis.b4.conv1"
    base, most = _channel_schedule({r: len(tensors[f"synthesis.b{r}.conv1.weight"]) for r in sizes})
    w_dim = tensors[f"{first}.affine.weight"].shape[1]
    z_and_label = tensors["mapping.fc0.weight"].shape[1]
    c_dim, embedded = _labels(tensors)
    architecture: Architecture = "skip" if "synthesis.b4.torgb.weight" in tensors else "orig"
    if f"{top}.skip.weight" in tensors:
        architecture = "resnet"
    filters = [name for name in tensors if re.fullmatch(r"synthesis\.b\d+\.(conv0\.)?resample_filter", name)]
    half = [r for r in sizes if attributes.get(f"synthesis.b{r}.use_fp16")]
    synthesis = SynthesisConfig(
        architecture=attributes.get("synthesis.b4.architecture", architecture),
        channel_base=base,
        channel_max=most,
        num_half_res=len(half),
        conv_clamp=attributes.get(f"{first}.conv_clamp", SynthesisConfig.conv_clamp),
        resample_filter=_taps(tensors[filters[-1]]),
        kernel_size=tensors[f"{first}.weight"].shape[2],
        activation=attributes.get(f"{first}.activation", SynthesisConfig.activation),
        use_noise=f"{first}.noise_strength" in tensors,
    )
    return GeneratorConfig(
        z_dim=z_and_label - embedded,
        c_dim=c_dim,
        w_dim=w_dim,
        img_resolution=sizes[-1],
        img_channels=len(tensors[f"{top}.torgb.weight"]),
        mapping=mapping_config(tensors, attributes, w_dim),
        synthesis=synthesis,
    )


def discriminator_config(tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> DiscriminatorConfig:
    """The shape of a discriminator; see :func:`generator_config`."""
    _, *sizes = _block_resolutions("", tensors)
    top = f"b{sizes[-1]}"
    widths = {r: len(tensors[f"b{r}.conv0.weight"]) for r in sizes}
    widths[4] = len(tensors["b4.conv.weight"])
    base, most = _channel_schedule(widths)
    c_dim, _ = _labels(tensors)
    cmap_dim = len(tensors["b4.out.weight"]) if c_dim > 0 else None
    architecture: Architecture = "resnet" if f"{top}.skip.weight" in tensors else "orig"
    if "b4.fromrgb.weight" in tensors:
        architecture = "skip"
    extra = tensors["b4.conv.weight"].shape[1] - widths[4]
    return DiscriminatorConfig(
        c_dim=c_dim,
        img_resolution=sizes[-1],
        img_channels=tensors[f"{top}.fromrgb.weight"].shape[1],
        architecture=attributes.get("b4.architecture", architecture),
        channel_base=base,
        channel_max=most,
        num_half_res=len([r for r in sizes if attributes.get(f"b{r}.use_fp16")]),
        conv_clamp=attributes.get("b4.conv.conv_clamp", DiscriminatorConfig.conv_clamp),
        resample_filter=_taps(tensors[f"{top}.conv1.resample_filter"]),
        activation=attributes.get("b4.conv.activation", DiscriminatorConfig.activation),
        cmap_dim=cmap_dim,
        mapping=mapping_config(tensors, attributes, cmap_dim) if cmap_dim else MappingConfig(w_avg_beta=None),
        mbstd_group_size=attributes.get("b4.mbstd.group_size", DiscriminatorConfig.mbstd_group_size),
        mbstd_num_channels=extra,
    )


def mapping_config(tensors: Mapping[str, Tensor], attributes: Mapping[str, Any], w_dim: int) -> MappingConfig:
    """The shape of the mapping network below ``mapping.``; see :func:`generator_config`."""
    layers = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in tensors)
    between = len(tensors["mapping.fc0.weight"]) if layers > 1 else w_dim
    _, embedded = _labels(tensors)
    has_average = "mapping.w_avg" in tensors or "mapping.w_avg_beta" not in attributes
    beta = attributes.get("mapping.w_avg_beta", MappingConfig.w_avg_beta) if has_average else None
    return MappingConfig(
        num_layers=layers,
        embed_features=embedded if embedded not in (0, w_dim) else None,
        layer_features=between if between != w_dim else None,
        activation=attributes.get("mapping.fc0.activation", MappingConfig.activation),
        lr_multiplier=attributes.get("mapping.fc0.bias_gain", MappingConfig.lr_multiplier),
        w_avg_beta=cast("float | None", beta),
    )


def _labels(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Dimension of labels and of their embedding."""
    embed = tensors.get("mapping.embed.weight")
    return (0, 0) if embed is None else (embed.shape[1], embed.shape[0])


def _block_resolutions(prefix: str, tensors: Mapping[str, Tensor]) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"b(\d+)\.conv1?\.weight")
    found = {int(m[1]) for name in tensors if (m := pattern.fullmatch(name))}
    if not found or 4 not in found:
        raise KeyError(f"{prefix}b4.*")
    return sorted(found)


def _channel_schedule(widths: Mapping[int, int]) -> tuple[int, int]:
    """``channel_base`` and ``channel_max`` that give each resolution its channels."""
    most = max(widths.values())
    base = max(r * width for r, width in widths.items())
    wrong = [r for r, width in widths.items() if min(base // r, most) != width]
    if wrong:
        raise ValueError(f"channels {dict(widths)} are not min(channel_base // resolution, channel_max)")
    return base, most


def _taps(kernel: Tensor) -> tuple[float, ...]:
    """The 1-D filter that a buffer was made of."""
    taps = kernel if kernel.dim() == 1 else kernel.sum(0)
    standard = torch.tensor(_TAPS) / sum(_TAPS)
    if taps.shape == standard.shape and torch.allclose(taps.float(), standard):
        return _TAPS
    return tuple(taps.tolist())


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
