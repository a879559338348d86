"""Weights from files: NVIDIA's pickles, state dictionaries and safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from .. import _weights
from ..checkpoint import CheckpointError, PathLike
from ..stylegan2.weights import mapping_config
from .config import GeneratorConfig, SynthesisConfig
from .generator import Generator
from .schedule import signals


def load_generator(path: PathLike, which: str = "G_ema", config: GeneratorConfig | None = None) -> Generator:
    """A generator with weights from a file, in evaluation mode, on the CPU.

    Its discriminator is StyleGAN2's: :func:`fastvfx.models.stylegan2.load_discriminator` reads it from the same file.

    Args:
        path: a ``.pkl`` of stylegan3, read without running what is in it; a file of ``torch.save`` with state
            dictionaries; or safetensors.
        which: ``"G_ema"``, the averaged one, or ``"G"``; a file with one network only gives that.
        config: its shape, if the file does not tell: a state dictionary shows sizes and channels of the layers, and
            the rest is taken to be as in :class:`SynthesisConfig`.

    Raises:
        CheckpointError: the file is damaged, holds something else, or asks for more than a network needs.

    >>> generator = load_generator("stylegan3-r-ffhq-1024x1024.pkl")
    >>> images = generator(torch.randn(1, generator.z_dim), truncation_psi=0.7)
    """
    return generator_of(_weights.choose(_weights.read(path), which, path), path, config)


def is_stylegan3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether they are those of such a generator."""
    return "synthesis.input.freqs" in tensors


def generator_of(stored: _weights.Stored, path: PathLike, config: GeneratorConfig | None = None) -> Generator:
    """:func:`load_generator` of what was read from ``path``."""
    try:
        if config is None:
            config = generator_config(stored.tensors, stored.attributes, stored.init_kwargs)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: no StyleGAN3 generator: {reason}") from error
    generator = Generator(config)
    _weights.filled(generator, stored.tensors, path)
    return generator


def generator_config(
    tensors: Mapping[str, Tensor], attributes: Mapping[str, Any], init_kwargs: Mapping[str, Any]
) -> GeneratorConfig:
    """The shape of a generator, from its state and, where known, what the modules that it came from were made with.

    Raises:
        KeyError: a tensor that all of them have is missing.
        ValueError: layers that follow no schedule with the numbers known.
    """
    names = _layer_names(tensors)
    first = f"synthesis.{names[0]}"
    *_, img_resolution, img_channels = (int(k) for k in re.findall(r"\d+", names[-1]))
    w_dim = tensors[f"{first}.affine.weight"].shape[1]
    mapping = mapping_config(tensors, attributes, w_dim)
    embed = tensors.get("mapping.embed.weight")
    known = {f.name for f in fields(SynthesisConfig)}
    synthesis = SynthesisConfig(
        num_layers=len(names) - 1,
        conv_kernel=tensors[f"{first}.weight"].shape[2],
        use_radial_filters=any(x.dim() == 2 for name, x in tensors.items() if name.endswith(".down_filter")),
        **{k: x for k, x in init_kwargs.items() if k in known - {"num_layers", "conv_kernel", "use_radial_filters"}},
    )
    if attributes:
        synthesis = replace(
            synthesis,
            num_half_res=attributes.get("synthesis.num_fp16_res", 0),
            conv_clamp=attributes.get(f"{first}.conv_clamp"),
        )
    return GeneratorConfig(
        z_dim=tensors["mapping.fc0.weight"].shape[1] - (0 if embed is None else len(embed)),
        c_dim=0 if embed is None else embed.shape[1],
        w_dim=w_dim,
        img_resolution=img_resolution,
        img_channels=img_channels,
        mapping=mapping,
        synthesis=_with_channels(synthesis, names, img_resolution, img_channels),
    )


def _with_channels(config: SynthesisConfig, names: list[str], resolution: int, channels: int) -> SynthesisConfig:
    """``config``, or where that does not make layers of these names, with the channels that do."""
    widest = max(int(name.rpartition("_")[2]) for name in names[:-1])
    candidates = [config, *(replace(config, channel_base=1 << k, channel_max=widest) for k in range(4, 24))]
    for candidate in candidates:
        steps = signals(resolution, channels, candidate)
        if [f"L{k}_{step.size}_{step.channels}" for k, step in enumerate(steps)] == names:
            return candidate
    raise ValueError(f"layers {', '.join(names)} follow no schedule known here; pass a config")


def _layer_names(tensors: Mapping[str, Tensor]) -> list[str]:
    pattern = re.compile(r"synthesis\.(L(\d+)_\d+_\d+)\.weight")
    found = {int(m[2]): m[1] for name in tensors if (m := pattern.fullmatch(name))}
    if not found or sorted(found) != list(range(len(found))):
        raise KeyError("synthesis.L0_*")
    return [found[k] for k in range(len(found))]
