"""``op.upfirdn2d``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import functional


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> Tensor:
    """:func:`fastvfx.functional.upfirdn2d`; ``pad`` is (before, after) for both axes, or (x0, x1, y0, y1)."""
    return functional.upfirdn2d(input, kernel, up, down, [*pad, *pad] if len(pad) == 2 else pad)
