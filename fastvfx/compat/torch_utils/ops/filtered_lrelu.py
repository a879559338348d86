"""``torch_utils.ops.filtered_lrelu``."""

from __future__ import annotations

import math

from torch import Tensor

from .... import functional
from ....functional.upfirdn2d import PaddingLike
from ._impl import chosen


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.filtered_lrelu`."""
    with chosen("filtered_lrelu", impl):
        # Their networks hand gain and clamp over as numpy scalars.
        return functional.filtered_lrelu(
            x, fu, fd, b, up, down, padding, float(gain), float(slope), None if clamp is None else float(clamp),
            flip_filter,
        )  # fmt: skip
