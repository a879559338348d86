"""Names and shapes of rosinality's stylegan2-pytorch, to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ...functional import setup_filter

#: What a modulated layer's tensors are called there.
_LAYER = {
    "weight": "conv.weight",
    "affine.weight": "conv.modulation.weight",
    "affine.bias": "conv.modulation.bias",
    "noise_strength": "noise.weight",
    "bias": "activate.bias",
}
_TORGB = {key: _LAYER[key] for key in ("weight", "affine.weight", "affine.bias")} | {"bias": "bias"}


def is_rosinality(state: Mapping[str, Tensor]) -> bool:
    """Whether a state is of one of its networks."""
    return "to_rgb1.bias" in state or "final_conv.0.weight" in state


def from_rosinality(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of our network for that of rosinality's generator or discriminator.

    The generator's average of w is in ``latent_avg``, if at all; without it the result has no ``mapping.w_avg``.

    Raises:
        KeyError: a tensor is missing.
    """
    result = {}
    for ours, theirs in names(state).items():
        x = state[theirs]
        result[ours] = x.reshape(_our_shape(ours, tuple(x.shape)))
    if "latent_avg" in state:
        result["mapping.w_avg"] = state["latent_avg"].reshape(-1)
    # One filter for all layers; theirs is multiplied by 4 where it is for upsampling.
    kernels = [x for name, x in state.items() if name.endswith(".kernel")]
    taps = kernels[0] / kernels[0].sum() if kernels else setup_filter([1, 3, 3, 1])
    return result | {name: taps.clone() for name in filter_names(result)}


def to_rosinality(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_rosinality`, for a ``"skip"`` generator or a ``"resnet"`` discriminator of 3 channels.

    Raises:
        KeyError: a tensor is missing, as another architecture's.
    """
    result = {}
    for ours, theirs in names(state).items():
        x = state[ours]
        result[theirs] = x.reshape(_their_shape(ours, tuple(x.shape)))
        block = ours.rpartition(".")[0].rpartition(".")[0]
        kernel = state.get(f"{block}.resample_filter")
        if kernel is None:
            continue
        stem = theirs.rpartition(".")[0]
        if ours.endswith("conv0.affine.bias"):
            result[f"{stem.removesuffix('.modulation')}.blur.kernel"] = 4 * kernel
        elif ours.endswith("torgb.bias") and theirs.startswith("to_rgbs"):
            result[f"{stem}.upsample.kernel"] = 4 * kernel
        elif re.fullmatch(r"b\d+\.(conv1|skip)\.weight", ours):
            result[re.sub(r"1\.weight$", "0.kernel", theirs)] = kernel.clone()
    if "mapping.w_avg" in state:
        result["latent_avg"] = state["mapping.w_avg"]
    return result


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Their name for each of ours, without buffers of filters, for a state of either."""
    if "to_rgb1.bias" in state:
        doublings = sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in state)
        return _generator(doublings, sum(bool(re.fullmatch(r"style\.\d+\.bias", name)) for name in state))
    if "synthesis.b4.const" in state:
        doublings = sum(bool(re.fullmatch(r"synthesis\.b\d+\.conv0\.bias", name)) for name in state)
        return _generator(doublings, sum(bool(re.fullmatch(r"mapping\.fc\d+\.bias", name)) for name in state))
    theirs = sum(bool(re.fullmatch(r"convs\.\d+\.skip\.1\.weight", name)) for name in state)
    ours = sum(bool(re.fullmatch(r"b\d+\.skip\.weight", name)) for name in state)
    return _discriminator(theirs + ours)


def _generator(doublings: int, mapping_layers: int) -> dict[str, str]:
    result = {"synthesis.b4.const": "input.input"}
    for k in range(mapping_layers):
        result |= {f"mapping.fc{k}.{key}": f"style.{k + 1}.{key}" for key in ("weight", "bias")}
    layers = {"b4.conv1": "conv1"}
    torgbs = {"b4.torgb": "to_rgb1"}
    for k in range(doublings):
        block = f"b{8 << k}"
        layers |= {f"{block}.conv0": f"convs.{2 * k}", f"{block}.conv1": f"convs.{2 * k + 1}"}
        torgbs[f"{block}.torgb"] = f"to_rgbs.{k}"
    for number, (ours, theirs) in enumerate(layers.items()):
        result |= {f"synthesis.{ours}.{key}": f"{theirs}.{value}" for key, value in _LAYER.items()}
        result[f"synthesis.{ours}.noise_const"] = f"noises.noise_{number}"
    for ours, theirs in torgbs.items():
        result |= {f"synthesis.{ours}.{key}": f"{theirs}.{value}" for key, value in _TORGB.items()}
    return result


def _discriminator(halvings: int) -> dict[str, str]:
    first = f"b{4 << halvings}.fromrgb"
    result = {f"{first}.weight": "convs.0.0.weight", f"{first}.bias": "convs.0.1.bias"}
    for k in range(halvings):
        ours, theirs = f"b{(4 << halvings) >> k}", f"convs.{k + 1}"
        result |= {
            f"{ours}.conv0.weight": f"{theirs}.conv1.0.weight",
            f"{ours}.conv0.bias": f"{theirs}.conv1.1.bias",
            f"{ours}.conv1.weight": f"{theirs}.conv2.1.weight",
            f"{ours}.conv1.bias": f"{theirs}.conv2.2.bias",
            f"{ours}.skip.weight": f"{theirs}.skip.1.weight",
        }
    result |= {"b4.conv.weight": "final_conv.0.weight", "b4.conv.bias": "final_conv.1.bias"}
    for ours, theirs in {"b4.fc": "final_linear.0", "b4.out": "final_linear.1"}.items():
        result |= {f"{ours}.{key}": f"{theirs}.{key}" for key in ("weight", "bias")}
    return result


def filter_names(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the buffers of filters that go with our names: one for each convolution, and one for each block."""
    layers = {m[1] for name in state if (m := re.fullmatch(r"(.*\.(?:conv\d?|skip|fromrgb))\.weight", name))}
    blocks = {m[1] for name in state if (m := re.fullmatch(r"((?:synthesis\.)?b\d+)\.conv1\.weight", name))}
    return {f"{name}.resample_filter" for name in layers | blocks}


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[_leading_ones(name) :][: 1 if name.endswith("torgb.bias") else None]


def _their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * _leading_ones(name) + shape + ((1, 1) if name.endswith("torgb.bias") else ())


def _leading_ones(name: str) -> int:
    """By how many dimensions of 1 their tensor begins."""
    if name.endswith(".noise_const"):
        return 2
    modulated = re.fullmatch(r"synthesis\.b\d+\.(conv\d|torgb)\.weight", name)
    return int(bool(modulated) or name.endswith((".const", ".noise_strength", "torgb.bias")))
