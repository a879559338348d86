"""Convolutions with 3 x 3 taps by Winograd's transforms, and such convolutions behind an upsampling by 2, on the CPU.

What was measured (``python benchmarks/run.py modulated_conv2d stylegan``): oneDNN convolves float32 at the speed of the
processor's multiply-adds; these take a quarter of them, for results that are as close to exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _ext
from ._common import kernel, large_empty, ptr
from ._torch_conv2d import Geometry

#: Scale (N, O), noise (1 or N, 1, H', W'), bias (O,), act (a number), alpha, gain, clamp.
Epilogue = tuple[Tensor | None, Tensor | None, Tensor | None, int, float, float, float | None]
NOTHING: Epilogue = (None, None, None, 0, 0.0, 1.0, None)

_CHANNELS = 16  # what both counts of channels are rounded up to
_MOST_FOR_ZEROS = 1.3  # times the products without them: more, and oneDNN is as fast


def takes(x: Tensor, w: Tensor) -> bool:
    """Whether the kernel convolves ``x`` (N, I, H, W) with ``w`` (O, I, kh, kw), or with its two channels swapped."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and _ext._C is not None
        and tuple(w.shape[2:]) == (3, 3)
        and _whole(w.shape[0]) * _whole(w.shape[1]) <= _MOST_FOR_ZEROS * w.shape[0] * w.shape[1]
        and x.numel() > 0
        and w.numel() > 0
    )


def _whole(channels: int) -> int:
    return -(-channels // _CHANNELS) * _CHANNELS


def fprop(x: Tensor, s: Tensor | None, w: Tensor, geometry: Geometry, after: Epilogue = NOTHING) -> Tensor | None:
    """The convolution of ``x`` times ``s``, channels_last, or ``None`` where the kernel does not take it."""
    if geometry.stride != 1 or geometry.groups != 1 or geometry.transposed or not takes(x, w):
        return None
    return _run(x, s, w, False, geometry.padding, geometry.output_size(x, w), _transforms(geometry.flip), after)


def dgrad(g: Tensor, w: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor | None:
    """The adjoint of :func:`fprop` in ``x``, whose height and width are ``size``."""
    if geometry.stride != 1 or geometry.groups != 1 or geometry.transposed or not takes(g, w):
        return None
    pad_y, pad_x = geometry.padding
    return _run(g, None, w, True, (2 - pad_y, 2 - pad_x), size, _transforms(not geometry.flip), NOTHING)


def upsampled(
    x: Tensor,
    s: Tensor | None,
    w: Tensor,
    f: Tensor | None,
    pad: Sequence[int],
    size: Sequence[int],
    flip: bool,
    after: Epilogue,
) -> Tensor | None:
    """``x`` with zeros between its pixels and ``pad`` (y, x) in front, filtered with ``f`` and convolved with ``w``.

    Each phase of the result, ``size``, is a convolution of ``x`` with three taps along an axis, if the filter has up to
    four, is a product, and the pads are odd.
    """
    if not takes(x, w) or pad[0] % 2 == 0 or pad[1] % 2 == 0 or size[0] % 2 or size[1] % 2:
        return None
    taps = ((1.0,),) if f is None else tuple(map(tuple, f.reshape(-1, f.shape[-1]).tolist()))
    axes = _axes_of(taps, f is not None and f.dim() == 1)
    if axes is None or max(map(len, axes)) > 4:
        return None
    half, padding = (size[0] // 2, size[1] // 2), ((pad[0] - 1) // 2, (pad[1] - 1) // 2)
    return _run(x, s, w, False, padding, half, _transforms(flip, axes), after)


def _run(
    x: Tensor,
    s: Tensor | None,
    w: Tensor,
    swapped: bool,
    padding: tuple[int, int],
    size: tuple[int, int],
    transforms: Tensor,
    after: Epilogue,
) -> Tensor | None:
    if w.dtype is not torch.float32 or w.stride(3) != 1 or w.stride(2) != 3:
        w = w.to(torch.float32).contiguous()
    out, channels = (1, 0) if swapped else (0, 1)
    n, phases, out_channels = x.shape[0], transforms.shape[1], w.shape[out]
    height, width = size[0] * phases, size[1] * phases
    more = [_whole(k) - k for k in w.shape[:2]]
    if any(more):
        w = F.pad(w, [0, 0, 0, 0, 0, more[1], 0, more[0]])
    x = _last(x, w.shape[channels])
    y = large_empty((n, height, width, w.shape[out]), x.dtype, x.device).permute(0, 3, 1, 2)
    scale, noise, bias, act, alpha, gain, clamp = after
    s, scale, bias = _rows(s, w.shape[channels]), _rows(scale, w.shape[out]), _rows(bias, w.shape[out])
    finite = kernel("winograd_fwd", x.device)(
        n, (w.shape[channels], w.shape[out]), tuple(x.shape[2:]), size, padding, phases, ptr(x), ptr(s), ptr(w),
        w.stride(out), w.stride(channels), ptr(transforms),
        (act, alpha, gain, math.nan if clamp is None else clamp, ptr(scale), ptr(noise),
         noise is not None and noise.shape[0] > 1, ptr(bias)),
        ptr(y), torch.get_num_threads(),
    )  # fmt: skip
    return y[:, :out_channels] if finite else None


def _last(x: Tensor, channels: int) -> Tensor:
    """``x`` (N, C, H, W) channels_last, with zeros behind its channels up to ``channels``."""
    n, have, height, width = x.shape
    if not x.is_contiguous() and have == channels:
        return x.contiguous(memory_format=torch.channels_last)
    y = large_empty((n, height, width, channels), x.dtype, x.device)
    if x.is_contiguous():
        _transpose(n, have, height * width, height * width, channels, x, y)
    else:
        y[..., :have] = x.permute(0, 2, 3, 1)
        y[..., have:] = 0
    return y.permute(0, 3, 1, 2)


def laid_out(y: Tensor, layout: torch.memory_format) -> Tensor:
    """A result of :func:`fprop` and others, which are channels_last, in either layout."""
    n, channels, height, width = y.shape
    pitch = y.stride(3)  # the channels that it was computed with
    if layout is torch.channels_last or y.is_contiguous() or y.stride(1) != 1 or y.numel() == 0:
        return y.contiguous(memory_format=layout)
    to = large_empty((n, channels, height, width), y.dtype, y.device)
    _transpose(n, height * width, channels, pitch, height * width, y, to)
    return to


def _transpose(batch: int, rows: int, columns: int, pitch: int, to_pitch: int, x: Tensor, y: Tensor) -> None:
    kernel("transpose", x.device)(
        (batch, rows, columns), (pitch, to_pitch), ptr(x), ptr(y), torch.get_num_threads()
    )  # fmt: skip


def _rows(x: Tensor | None, columns: int) -> Tensor | None:
    """(..., C), contiguous, with zeros up to ``columns``."""
    if x is not None and x.shape[-1] < columns:
        return F.pad(x, [0, columns - x.shape[-1]])
    return None if x is None else x.contiguous()


# --- transforms of weights --------------------------------------------------------------------------------------------


#: Filters of columns and of rows, in the order of correlation.
_Axes = tuple[tuple[float, ...], tuple[float, ...]]


@functools.lru_cache(maxsize=64)
def _transforms(flip: bool, filters: _Axes | None = None) -> Tensor:
    """(2, phases, 6, 3): what takes the taps of a weight along y and x to the 6 points, for each phase of the result.

    ``flip``: mirror the weight; ``filters``: of the upsampling by 2, without which there is one phase.
    """
    a, b = math.sqrt(0.5), math.sqrt(2)  # as in csrc/include/fastvfx/winograd.h
    to_points = [[1.0, 0.0, 0.0], [-2 / 3, -2 / 3 * a, -1 / 3], [-2 / 3, 2 / 3 * a, -1 / 3]]
    to_points += [[1 / 6, b / 6, 1 / 3], [1 / 6, -b / 6, 1 / 3], [0.0, 0.0, 1.0]]
    g = torch.tensor(to_points, dtype=torch.float64)
    taps = torch.eye(3, dtype=torch.float64)
    if flip:
        taps = taps.flip(0)
    axes = [taps[None]] * 2 if filters is None else [_of_phases(taps, f) for f in filters]
    return (g @ torch.stack(axes)).to(torch.float32)


def _of_phases(taps: Tensor, f: tuple[float, ...]) -> Tensor:
    """(2, 3, 3): the taps that meet pixels of the image, in each phase, from those of a weight.

    y[i] = sum over m of k[m] z[i + m] with k the convolution of weight and filter, up to 6 taps; z has a pixel of the
    image at every other place and an odd number of zeros in front, so that phase 0 meets the odd m, phase 1 the even.
    """
    k = torch.zeros((6, 3), dtype=torch.float64)
    for tap, value in enumerate(f):
        k[tap : tap + 3] += 2 * value * taps
    return torch.stack([k[1::2], k[0::2]])


@functools.lru_cache(maxsize=64)
def _axes_of(taps: tuple[tuple[float, ...], ...], separable: bool) -> _Axes | None:
    """The two factors of a filter, or ``None`` for one that is no product."""
    if separable:
        axis = tuple(reversed(taps[0]))
        return axis, axis
    largest, row, column = max((abs(v), i, j) for i, r in enumerate(taps) for j, v in enumerate(r))
    if largest == 0 or not all(math.isfinite(v) for r in taps for v in r):
        return None
    root = math.sqrt(largest)
    y = [r[column] / root for r in taps]
    x = [v / taps[row][column] * root for v in taps[row]]
    for r, of_y in zip(taps, y, strict=True):
        if any(abs(v - of_y * of_x) > 4.8e-7 * abs(v) for v, of_x in zip(r, x, strict=True)):
            return None
    return tuple(reversed(y)), tuple(reversed(x))
