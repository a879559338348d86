"""Convolutions and their two adjoints by torch, in the layout and dtype that oneDNN is fastest in.

What was measured (``python benchmarks/run.py modulated_conv2d``): 16-bit convolutions of channels_last images are
several times as fast as of contiguous ones, as are transposed convolutions with a stride in any dtype. bfloat16 ones
with a stride are faster still as one convolution for each phase of the output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Channels from which writing the phases of an output one by one costs less than the transposed convolution.
PHASE_CHANNELS = 96


class Geometry(NamedTuple):
    """How a weight (O, I / groups, kh, kw) meets an image.

    Attributes:
        stride: of the output if ``transposed`` (the image has ``stride - 1`` zeros between its pixels), else the input.
        padding: (y, x), on both sides; 0 if ``transposed``, whose result is whole: (H - 1) stride + kh pixels high.
        transposed: upsample by the stride.
        flip: convolve where False would correlate.
        groups: as in ``conv2d``.
    """

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False
    flip: bool = False
    groups: int = 1

    def output_size(self, x: Tensor, w: Tensor) -> tuple[int, int]:
        """Height and width of the result."""
        (height, width), (kh, kw) = x.shape[2:], w.shape[2:]
        if self.transposed:
            return (height - 1) * self.stride + kh, (width - 1) * self.stride + kw
        pad_y, pad_x = self.padding
        return (height + 2 * pad_y - kh) // self.stride + 1, (width + 2 * pad_x - kw) // self.stride + 1


def fprop(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """(N, I, H, W) to (N, O, H', W'), in the dtype and layout of ``x``."""
    weight = arranged(w.to(x.dtype), geometry)
    if geometry.transposed:
        return _spread(x, weight, geometry, geometry.output_size(x, w))
    return _gather(x, weight, geometry)


def dgrad(g: Tensor, w: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`fprop` in ``x``: (N, O, H', W') to (N, I, *size)."""
    weight = arranged(w.to(g.dtype), geometry)
    return _gather(g, weight, geometry) if geometry.transposed else _spread(g, weight, geometry, size)


def wgrad(x: Tensor, g: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """The adjoint of :func:`fprop` in ``w``: a tensor of ``shape`` from (N, I, H, W) and (N, O, H', W')."""
    if _wants_channels_last(x, False):
        x, g = _last(x), _last(g)
    rows, columns, kh, kw = shape
    if geometry.transposed:
        rows, columns = columns * geometry.groups, rows // geometry.groups
    like = x.new_empty((rows, columns, kh, kw))  # for its shape
    gradient = torch.ops.aten.convolution_backward(
        g, x, like, None, [geometry.stride] * 2, geometry.padding, [1, 1], geometry.transposed, [0, 0],
        geometry.groups, [False, True, False],
    )[1]  # fmt: skip
    return arranged_back(gradient, geometry).contiguous()


# --- the two kinds of convolution -------------------------------------------------------------------------------------


def _gather(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A convolution, whose stride skips pixels of ``x``; ``weight`` is (out, in / groups, kh, kw)."""
    layout = layout_of(x)
    if _wants_channels_last(x, False):
        x = _last(x)
    y = F.conv2d(x, weight, stride=geometry.stride, padding=geometry.padding, groups=geometry.groups)
    return y.contiguous(memory_format=layout)


def _spread(x: Tensor, weight: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """A transposed convolution; ``weight`` is (in, out / groups, kh, kw). The output has ``size``."""
    layout, stride, groups = layout_of(x), geometry.stride, geometry.groups
    strided = stride > 1
    if _wants_channels_last(x, strided):
        x = _last(x)
    if (
        strided
        and groups == 1
        and x.device.type == "cpu"
        and x.dtype is torch.bfloat16
        and min(weight.shape[:2]) >= PHASE_CHANNELS
    ):
        y = _spread_by_phases(x, weight, geometry, size)
    else:
        whole = [(n - 1) * stride + k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        extra = [want - (have - 2 * pad) for want, have, pad in zip(size, whole, geometry.padding, strict=True)]
        y = F.conv_transpose2d(x, weight, None, stride, geometry.padding, extra, groups)
    return y.contiguous(memory_format=layout)


def _spread_by_phases(x: Tensor, weight: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Pixels whose row and column leave the same remainders see the same taps: a small convolution for each pair."""
    n, height, width = x.shape[0], *size
    stride = geometry.stride
    everywhere = geometry.transposed and min(weight.shape[2:]) >= stride
    y = (x.new_empty if everywhere else x.new_zeros)((n, height, width, weight.shape[1])).permute(0, 3, 1, 2)
    for row in range(min(stride, weight.shape[2])):
        for column in range(min(stride, weight.shape[3])):
            taps = weight[:, :, row::stride, column::stride].flip([2, 3]).transpose(0, 1)
            kh, kw = taps.shape[2:]
            part = F.conv2d(x, taps, padding=(kh - 1, kw - 1))  # pixels row + i stride of the whole result
            top, bottom, first_row = _phase(row, stride, geometry.padding[0], part.shape[2], height)
            left, right, first_column = _phase(column, stride, geometry.padding[1], part.shape[3], width)
            target = y[:, :, first_row::stride, first_column::stride]
            target[:, :, : bottom - top, : right - left].copy_(part[:, :, top:bottom, left:right])
    return y


def _phase(phase: int, stride: int, padding: int, have: int, size: int) -> tuple[int, int, int]:
    """Which pixels of a phase lie in the output, from and to, and where the first of them does."""
    start = max(0, -(-(padding - phase) // stride))
    first = start * stride + phase - padding
    stop = max(start, min(have, start + -(-(size - first) // stride)))
    return start, stop, first


# --- layouts ----------------------------------------------------------------------------------------------------------


def _wants_channels_last(x: Tensor, strided: bool) -> bool:
    return x.device.type == "cpu" and (x.dtype is torch.bfloat16 or (strided and x.dtype is torch.float32))


def layout_of(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def arranged(w: Tensor, geometry: Geometry) -> Tensor:
    """(O, I / groups, kh, kw) as torch's convolutions take it: correlating, or (I, O / groups, kh, kw) transposed."""
    if geometry.flip:
        w = w.flip([2, 3])
    return _swapped(w, geometry.groups) if geometry.transposed else w


def arranged_back(w: Tensor, geometry: Geometry) -> Tensor:
    if geometry.transposed:
        w = _swapped(w, geometry.groups)
    return w.flip([2, 3]) if geometry.flip else w


def _swapped(w: Tensor, groups: int) -> Tensor:
    """(O, I / groups, ...) to (I, O / groups, ...)."""
    if groups == 1:
        return w.transpose(0, 1)
    rows, columns, kh, kw = w.shape
    return w.reshape(groups, rows // groups, columns, kh, kw).transpose(1, 2).reshape(-1, rows // groups, kh, kw)
