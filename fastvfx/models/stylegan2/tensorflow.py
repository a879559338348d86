"""Names and shapes of the first, TensorFlow releases of StyleGAN2 and StyleGAN2-ADA, to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...functional import setup_filter
from .rosinality import filter_names

#: Layers of a block: what they are called here, and whether their kernels have to be mirrored, as TensorFlow's
#: transposed convolutions correlate where ours convolve.
_LAYERS = {
    "Conv": ("conv1", False),
    "Conv0_up": ("conv0", True),
    "Conv1": ("conv1", False),
    "ToRGB": ("torgb", False),
    "FromRGB": ("fromrgb", False),
    "Conv0": ("conv0", False),
    "Conv1_down": ("conv1", False),
}


def is_tensorflow(variables: Mapping[str, Tensor]) -> bool:
    """Whether variables are of one of its networks."""
    return "4x4/Conv/weight" in variables or "synthesis/4x4/Conv/weight" in variables


def from_tensorflow(
    variables: Mapping[str, Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Our state and the attributes that :func:`generator_config` and :func:`discriminator_config` take.

    Args:
        variables: with the names of components in front (``"synthesis/4x4/Conv/weight"``).
        options: what the network was made with.
    """
    is_generator = "synthesis/4x4/Conv/weight" in variables
    last = max(int(m[1]) for name in variables if (m := re.search(r"(\d+)x\1/", name)))
    state: dict[str, Tensor] = {}
    for name, x in variables.items():
        # Colours of one resolution only are numbered from the highest one.
        name = re.sub(r"(To|From)RGB_lod(\d+)", lambda m: f"{last >> int(m[2])}x{last >> int(m[2])}/{m[1]}RGB", name)
        state |= _generator(name, x) if is_generator else _discriminator(name, x)
    taps = setup_filter(options.get("resample_kernel") or [1, 3, 3, 1])
    state |= {name: taps.clone() for name in filter_names(state)}
    return state, _attributes(options, is_generator, last)


def _generator(name: str, x: Tensor) -> dict[str, Tensor]:
    if name == "dlatent_avg":
        return {"mapping.w_avg": x}
    if name == "synthesis/4x4/Const/const":
        return {"synthesis.b4.const": x[0]}
    if m := re.fullmatch(r"synthesis/noise(\d+)", name):
        number = int(m[1])
        layer = f"b{4 << (number + 1) // 2}.conv{1 - number % 2}"
        return {f"synthesis.{layer}.noise_const": x[0, 0]}
    if m := re.fullmatch(r"mapping/(LabelEmbed|Dense\d+)/(weight|bias)", name):
        return {f"mapping.{m[1].replace('LabelEmbed', 'embed').replace('Dense', 'fc')}.{m[2]}": _dense(x)}
    if m := re.fullmatch(r"synthesis/(\d+)x\1/Skip/weight", name):
        return {f"synthesis.b{m[1]}.skip.weight": _conv(x).flip([2, 3])}
    if m := re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/(\w+)", name):
        layer, mirrored = _LAYERS[m[2]]
        key = f"synthesis.b{m[1]}.{layer}"
        if m[3] == "weight":
            return {f"{key}.weight": _conv(x).flip([2, 3]) if mirrored else _conv(x)}
        if m[3] in ("mod_weight", "mod_bias"):  # styles are around 0 there, around 1 here
            return {f"{key}.affine.{m[3][4:]}": _dense(x) + (m[3] == "mod_bias")}
        return {f"{key}.{m[3]}": x}
    return {}


def _discriminator(name: str, x: Tensor) -> dict[str, Tensor]:
    ends = {"4x4/Conv": "b4.conv", "4x4/Dense0": "b4.fc", "Output": "b4.out", "LabelEmbed": "mapping.embed"}
    owner, _, key = name.rpartition("/")
    if owner in ends:
        return {f"{ends[owner]}.{key}": _conv(x) if x.dim() == 4 else _dense(x)}
    if m := re.fullmatch(r"Mapping(\d+)", owner):
        return {f"mapping.fc{m[1]}.{key}": _dense(x)}
    if m := re.fullmatch(r"(\d+)x\1/(FromRGB|Conv0|Conv1_down|Skip)", owner):
        layer = "skip" if m[2] == "Skip" else _LAYERS[m[2]][0]
        return {f"b{m[1]}.{layer}.{key}": _conv(x) if x.dim() == 4 else x}
    return {}


def _conv(x: Tensor) -> Tensor:
    """(kh, kw, I, O) to (O, I, kh, kw)."""
    return x.permute(3, 2, 0, 1)


def _dense(x: Tensor) -> Tensor:
    """(I, O) to (O, I); biases stay."""
    return x.T if x.dim() == 2 else x


def _attributes(options: Mapping[str, Any], is_generator: bool, resolution: int) -> dict[str, Any]:
    activation = options.get("nonlinearity") or "lrelu"
    half = int(options.get("num_fp16_res") or 0)
    clamp = options.get("conv_clamp")
    blocks = {f"b{resolution >> k}.use_fp16": True for k in range(half) if resolution >> k >= 8}
    if is_generator:
        return {
            "mapping.fc0.activation": options.get("mapping_nonlinearity") or "lrelu",
            "mapping.fc0.bias_gain": options.get("mapping_lrmul", 0.01),
            "mapping.w_avg_beta": options.get("w_avg_beta", 0.995),
            "synthesis.b4.conv1.activation": activation,
            "synthesis.b4.conv1.conv_clamp": clamp,
            **{f"synthesis.{name}": value for name, value in blocks.items()},
        }
    return {
        "mapping.fc0.activation": activation,
        "mapping.fc0.bias_gain": options.get("mapping_lrmul", 0.1),
        "b4.mbstd.group_size": options.get("mbstd_group_size", 4),
        "b4.conv.activation": activation,
        "b4.conv.conv_clamp": clamp,
        **blocks,
    }
