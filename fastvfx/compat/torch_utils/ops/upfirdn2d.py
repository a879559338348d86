"""``torch_utils.ops.upfirdn2d``."""

from __future__ import annotations

from torch import Tensor

from .... import functional
from ....functional.upfirdn2d import Factor, PaddingLike, setup_filter
from ._impl import chosen

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.upfirdn2d`."""
    with chosen("upfirdn2d", impl):
        return functional.upfirdn2d(x, f, up, down, padding, flip_filter, gain)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.filter2d`."""
    with chosen("filter2d", impl):
        return functional.filter2d(x, f, padding, flip_filter, gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 2,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.upsample2d`."""
    with chosen("upsample2d", impl):
        return functional.upsample2d(x, f, up, padding, flip_filter, gain)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Factor = 2,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """:func:`fastvfx.functional.downsample2d`."""
    with chosen("downsample2d", impl):
        return functional.downsample2d(x, f, down, padding, flip_filter, gain)
