"""``torch_utils.ops.bias_act``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .... import functional
from ....reference.bias_act import ACTIVATIONS
from ._impl import chosen


class ActivationSpec(NamedTuple):
    """What networks look up in :data:`activation_funcs`."""

    func: Callable[..., Tensor]
    def_alpha: float
    def_gain: float


activation_funcs: dict[str, ActivationSpec] = {
    name: ActivationSpec(
        lambda x, alpha=kind.alpha, function=kind.function, **_: function(x, alpha), kind.alpha, kind.gain
    )
    for name, kind in ACTIVATIONS.items()
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.bias_act`."""
    with chosen("bias_act", impl):
        return functional.bias_act(x, b, dim, act, alpha, gain, clamp)
