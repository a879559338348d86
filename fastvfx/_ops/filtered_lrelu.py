"""Schemas, shapes and calls of ``filtered_lrelu_*``; the public function is in fastvfx/functional.

``fwd`` returns the slopes of the pixels between the filters as an opaque mask. With the mask fixed the operator is
linear: ``jvp`` is that map and ``bwd`` its transpose. All three are one kernel, see
csrc/include/fastvfx/filtered_lrelu.h.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty, on, ptr

_NO_MASK, _WRITES, _READS = range(3)  # ``SlopeMask`` in csrc/include/fastvfx/filtered_lrelu.h

_FILTERS = "Tensor fu, Tensor fd, int up, int down, SymInt left, SymInt top"
_ACT = "float gain, float slope, float? clamp, bool flip"


class _Side(NamedTuple):
    """A filter with how it is used."""

    f: Tensor
    flip: bool

    @property
    def height(self) -> int:
        return self.f.shape[0]

    @property
    def width(self) -> int:
        return self.f.shape[-1]

    def code(self) -> tuple[Any, ...]:
        return ptr(self.f), self.height, self.width, self.f.dim() == 1, self.flip


def _middle_size(out_size: tuple[int, int], fd: Tensor, down: int) -> tuple[int, int]:
    """Height and width of the image between the filters, as far as outputs read it."""
    return (out_size[0] - 1) * down + fd.shape[0], (out_size[1] - 1) * down + fd.shape[-1]


def mask_bytes(
    planes: int,
    out_size: tuple[int, int],
    fd: Tensor,
    up: int,
    down: int,
    left: int,
    clamps: bool,
    device: torch.device,
) -> int:
    """Size of the mask: one or two bits a middle pixel on the CPU, two on a GPU, and what rounding rows up takes."""
    height, width = _middle_size(out_size, fd, down)
    if device.type == "cuda":
        return planes * height * ((width + 15) // 16 * 4)
    if planes >= 16:  # a kernel takes that many at once
        planes = -(-planes // 16) * 16
    phases = math.lcm(up, down)
    before = -(left + 1) % up  # middle columns in front of the first, see ``UpAxis``
    groups = ((width + before + phases - 1) // phases + 15) // 16 * 16
    return planes * height * (phases * groups // 8) * (2 if clamps else 1) + 8


def _call(
    x: Tensor,
    b: Tensor | None,
    out_size: tuple[int, int],
    fu: _Side,
    fd: _Side,
    up: int,
    down: int,
    left: int,
    top: int,
    scale: float,
    slope: float,
    clamp: float | None,
    mask: tuple[Any, ...],
    row_sums: Tensor | None = None,
) -> Tensor:
    n, channels, height, width = x.shape
    out = large_empty((n, channels, *out_size), x.dtype, x.device)
    with on(x.device):
        kernel("filtered_lrelu_pass", x.device)(
            DTYPE_CODE[x.dtype], (n * channels, channels), (height, width), out_size, (up, down), (left, top),
            fu.code(), fd.code(), scale, slope, clamp, mask, ptr(x), ptr(b), ptr(out), ptr(row_sums),
            *executor(x.device),
        )  # fmt: skip
    return out


def _out_size(x: Tensor, fu: Tensor, fd: Tensor, up: int, down: int, pads: tuple[int, int, int, int]) -> Any:
    left, right, top, bottom = pads
    height = x.shape[2] * up + top + bottom - (fu.shape[0] - 1)
    width = x.shape[3] * up + left + right - (fu.shape[-1] - 1)
    return (height - fd.shape[0]) // down + 1, (width - fd.shape[-1]) // down + 1


def _mask_bytes(x: Tensor, out_size: Any, fd: Tensor, up: int, down: int, left: int, clamp: float | None) -> int:
    return mask_bytes(x.shape[0] * x.shape[1], out_size, fd, up, down, left, clamp is not None, x.device)


def _fwd_fake(x, b, fu, fd, up, down, left, right, top, bottom, gain, slope, clamp, flip, with_mask):
    out_size = _out_size(x, fu, fd, up, down, (left, right, top, bottom))
    n_bytes = _mask_bytes(x, out_size, fd, up, down, left, clamp) if with_mask else 0
    return x.new_empty((x.shape[0], x.shape[1], *out_size)), x.new_empty((n_bytes,), dtype=torch.uint8)


def _fwd(x, b, fu, fd, up, down, left, right, top, bottom, gain, slope, clamp, flip, with_mask):
    out_size = _out_size(x, fu, fd, up, down, (left, right, top, bottom))
    n_bytes = _mask_bytes(x, out_size, fd, up, down, left, clamp) if with_mask else 0
    mask = large_empty((n_bytes,), torch.uint8, x.device)
    mode = _WRITES if with_mask else _NO_MASK
    written = (mode, ptr(mask), *_middle_size(out_size, fd, down), 0, 0, up, down, left)
    sides = _Side(fu, flip), _Side(fd, flip)
    out = _call(x, b, out_size, *sides, up, down, left, top, gain * up**2, slope, clamp, written)
    return out, mask


def _jvp_fake(x, b, mask, fu, fd, up, down, left, top, height, width, gain, slope, clamp, flip):
    return x.new_empty((x.shape[0], x.shape[1], height, width))


def _jvp(x, b, mask, fu, fd, up, down, left, top, height, width, gain, slope, clamp, flip):
    read = (_READS, ptr(mask), *_middle_size((height, width), fd, down), 0, 0, up, down, left)
    sides = _Side(fu, flip), _Side(fd, flip)
    return _call(x, b, (height, width), *sides, up, down, left, top, gain * up**2, slope, clamp, read)


def _bwd_fake(grad_out, mask, fu, fd, up, down, left, top, height, width, gain, slope, clamp, flip, with_b):
    n, channels, _, _ = grad_out.shape
    sums = grad_out.new_empty((n, channels, height if with_b else 0), dtype=accumulate_dtype(grad_out.dtype))
    return grad_out.new_empty((n, channels, height, width)), sums


def _bwd(grad_out, mask, fu, fd, up, down, left, top, height, width, gain, slope, clamp, flip, with_b):
    n, channels, *out_size = grad_out.shape
    sums = grad_out.new_empty((n, channels, height if with_b else 0), dtype=accumulate_dtype(grad_out.dtype))
    # Transposed, the filters change places and are mirrored. The padding in front is what makes output pixel (0, 0) the
    # gradient of x[0, 0]; middle pixel (0, 0) then lies beside the mask by the offset.
    offset_y, offset_x = fu.shape[0] - 1 - top, fu.shape[-1] - 1 - left
    read = (
        _READS, ptr(mask), *_middle_size(tuple(out_size), fd, down), offset_y, offset_x, up, down, left,
    )  # fmt: skip
    grad_x = _call(
        grad_out, None, (height, width), _Side(fd, not flip), _Side(fu, not flip), down, up,
        offset_x + fd.shape[-1] - 1, offset_y + fd.shape[0] - 1, gain * up**2, slope, clamp, read,
        sums if with_b else None,
    )  # fmt: skip
    return grad_x, sums


define(
    "filtered_lrelu_fwd(Tensor x, Tensor? b, Tensor fu, Tensor fd, int up, int down, SymInt left, SymInt right, "
    f"SymInt top, SymInt bottom, {_ACT}, bool with_mask) -> (Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
define(
    f"filtered_lrelu_jvp(Tensor x, Tensor? b, Tensor mask, {_FILTERS}, SymInt height, SymInt width, {_ACT}) -> Tensor",
    _jvp,
    _jvp_fake,
)
define(
    f"filtered_lrelu_bwd(Tensor grad_out, Tensor mask, {_FILTERS}, SymInt height, SymInt width, {_ACT}, bool with_b) "
    "-> (Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
