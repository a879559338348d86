"""Schema, shape and call of ``square_sums``: of the taps of each filter of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ext
from ._common import DTYPE_CODE, define, executor, kernel, ptr


def _sums(w: Tensor) -> Tensor:
    if w.device.type != "cpu" or _ext._C is None:
        return torch.einsum("oikl,oikl->oi", w, w)
    w = w.contiguous()
    sums = _fake(w)
    taps = w.shape[2] * w.shape[3]
    if taps == 0:
        return sums.zero_()
    threads, _ = executor(w.device)
    kernel("square_sums", w.device)(DTYPE_CODE[w.dtype], sums.numel(), taps, ptr(w), ptr(sums), threads)
    return sums


def _fake(w: Tensor) -> Tensor:
    return w.new_empty(w.shape[:2])


#: (O, I, kh, kw) to (O, I), float32 or float64.
define("square_sums(Tensor w) -> Tensor", _sums, _fake)
