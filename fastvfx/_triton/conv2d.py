"""Convolutions of scaled channels on a GPU: implicit matrix products on tensor cores, images as (N, H, W, C).

``conv_kernel`` is both directions: a convolution, and a transposed one, in which the pixels whose row and column leave
the same remainders by the stride (a phase) see the same taps and are a convolution without zeros. Factors of each
image's channels are applied to what is loaded; demodulation, noise, bias, activation and clamp to what is stored.
``wgrad_kernel`` is the gradient of the weight; what its programs add up apart is added in a fixed order, so the result
is the same every time.

Products are taken in the dtype given, with float32 sums. Offsets of images are 64 bits wide, those within one 32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _activate(kind: tl.constexpr, z, alpha):
    # Numbers as in fastvfx/_ops/bias_act.py; comparisons are written so that NaN passes through.
    if kind == 1:
        z = tl.where(z < 0, 0.0, z)
    elif kind == 2:
        z = tl.where(z < 0, alpha * z, z)
    elif kind == 3:
        e = tl.exp(-2 * tl.abs(z))
        z = tl.where(z < 0, e - 1, 1 - e) / (1 + e)
    elif kind == 4:
        z = 1 / (1 + tl.exp(-z))
    elif kind == 5:
        z = tl.where(z > 0, z, tl.exp(tl.where(z > 0, 0.0, z)) - 1)
    elif kind == 6:
        z = 1.0507009873554805 * tl.where(z > 0, z, 1.6732632423543772 * (tl.exp(tl.where(z > 0, 0.0, z)) - 1))
    elif kind == 7:
        z = tl.where(z < 0, 0.0, z) + tl.log(1 + tl.exp(-tl.abs(z)))
    elif kind == 8:
        z = z / (1 + tl.exp(-z))
    return z


@triton.jit
def conv_kernel(
    x, w, y, s, scale, noise, bias,
    height, width, out_height, out_width, channels, out_channels, noise_stride, alpha, gain, clamp,
    kh: tl.constexpr, kw: tl.constexpr, stride: tl.constexpr, pad_y: tl.constexpr, pad_x: tl.constexpr,
    transposed: tl.constexpr, act: tl.constexpr, clamped: tl.constexpr, dtype: tl.constexpr, precision: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    # w: (kh kw, channels, out_channels). A program: block_m pixels of one image and phase, block_n output channels.
    step: tl.constexpr = stride if transposed else 1  # between the output pixels of a phase, and between its taps
    rows, columns = tl.cdiv(out_height, step), tl.cdiv(out_width, step)
    blocks = tl.cdiv(rows * columns, block_m)
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    phase = rest % (step * step)
    n = (rest // (step * step)).to(tl.int64)

    m = block * block_m + tl.arange(0, block_m)
    p, q = (m // columns) * step + phase // step, (m % columns) * step + phase % step
    inside = (m < rows * columns) & (p < out_height) & (q < out_width)
    if transposed:  # output pixel p meets input pixel (p + pad - tap) / stride, where that is whole
        first_y, first_x = (phase // step + pad_y) % step, (phase % step + pad_x) % step
        at_y, at_x = (p + pad_y - first_y) // step, (q + pad_x - first_x) // step
    else:
        first_y, first_x = 0, 0
        at_y, at_x = p * stride - pad_y, q * stride - pad_x
    taps_y, taps_x = (kh - first_y + step - 1) // step, (kw - first_x + step - 1) // step
    taps_y, taps_x = tl.maximum(taps_y, 0), tl.maximum(taps_x, 0)

    o = tl.program_id(1) * block_n + tl.arange(0, block_n)
    x += n * height * width * channels
    acc = tl.zeros((block_m, block_n), tl.float32)
    k_blocks = tl.cdiv(channels, block_k)
    for i in range(taps_y * taps_x * k_blocks):
        tap, k = i // k_blocks, (i % k_blocks) * block_k + tl.arange(0, block_k)
        j_y, j_x = tap // taps_x, tap % taps_x
        if transposed:
            row, column = at_y - j_y, at_x - j_x
        else:
            row, column = at_y + j_y, at_x + j_x
        tap = (first_y + j_y * step) * kw + first_x + j_x * step
        exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = (row * width + column) * channels
        a = tl.load(x + pixel[:, None] + k[None, :], exists[:, None] & (k < channels)[None, :], 0.0)
        if s is not None:
            a = a.to(tl.float32) * tl.load(s + n * channels + k, k < channels, 0.0)[None, :]
        at_w = w + (tap * channels + k[:, None]) * out_channels + o[None, :]
        b = tl.load(at_w, (k < channels)[:, None] & (o < out_channels)[None, :], 0.0)
        acc = tl.dot(a.to(dtype), b.to(dtype), acc, input_precision=precision)

    if scale is not None:
        acc *= tl.load(scale + n * out_channels + o, o < out_channels, 0.0)[None, :]
    pixel = p * out_width + q
    if noise is not None:
        acc += tl.load(noise + n * noise_stride + pixel, inside, 0.0)[:, None]
    if bias is not None:
        acc += tl.load(bias + o, o < out_channels, 0.0)[None, :]
    acc = _activate(act, acc, alpha) * gain
    if clamped:
        acc = tl.where(acc > clamp, clamp, tl.where(acc < -clamp, -clamp, acc))
    y += n * out_height * out_width * out_channels
    at = y + pixel[:, None] * out_channels + o[None, :]
    tl.store(at, acc.to(y.dtype.element_ty), inside[:, None] & (o < out_channels)[None, :])


@triton.jit
def wgrad_kernel(
    small, large, out, small_scale, large_scale,
    images, rows, columns, height, width, small_channels, large_channels, splits,
    kw: tl.constexpr, taps: tl.constexpr, stride: tl.constexpr, pad_y: tl.constexpr, pad_x: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    # Pixel (p, q) of the small image meets pixel (p stride + tap - pad) of the large one, (height, width).
    # out: (splits, taps, large_channels, small_channels), float32. A program: a tile of it from a share of the pixels.
    tap, split = tl.program_id(2) // splits, tl.program_id(2) % splits
    c = tl.program_id(0) * block_m + tl.arange(0, block_m)
    o = tl.program_id(1) * block_n + tl.arange(0, block_n)
    chunks = tl.cdiv(rows * columns, block_k)
    share = tl.cdiv(images * chunks, splits)
    acc = tl.zeros((block_m, block_n), tl.float32)
    for i in range(split * share, tl.minimum((split + 1) * share, images * chunks)):
        n = (i // chunks).to(tl.int64)
        m = (i % chunks) * block_k + tl.arange(0, block_k)
        row, column = (m // columns) * stride + tap // kw - pad_y, (m % columns) * stride + tap % kw - pad_x
        exists = (m < rows * columns) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = large + n * height * width * large_channels + (row * width + column)[:, None] * large_channels
        a = tl.load(at + c[None, :], exists[:, None] & (c < large_channels)[None, :], 0.0)
        if large_scale is not None:
            factor = tl.load(large_scale + n * large_channels + c, c < large_channels, 0.0)
            a = a.to(tl.float32) * factor[None, :]
        at = small + n * rows * columns * small_channels + m[:, None] * small_channels
        b = tl.load(at + o[None, :], (m < rows * columns)[:, None] & (o < small_channels)[None, :], 0.0)
        if small_scale is not None:
            factor = tl.load(small_scale + n * small_channels + o, o < small_channels, 0.0)
            b = b.to(tl.float32) * factor[None, :]
        acc = tl.dot(tl.trans(a.to(dtype)), b.to(dtype), acc, input_precision=precision)
    at = out + (split * taps + tap).to(tl.int64) * large_channels * small_channels
    at += c[:, None] * small_channels + o[None, :]
    tl.store(at, acc, (c < large_channels)[:, None] & (o < small_channels)[None, :])


class Epilogue(NamedTuple):
    """What is done to a result before it is stored, as :func:`fastvfx.functional.bias_act.scaled_bias_act` says."""

    scale: Tensor | None = None  #: (N, O) float32
    noise: Tensor | None = None  #: (N or 1, 1, H', W') float32
    bias: Tensor | None = None  #: (O,) float32
    act: int = 0
    alpha: float = 0.0
    gain: float = 1.0
    clamp: float | None = None


def _precision() -> str:
    """Of float32 products: as torch's own convolutions."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _product_dtype(*dtypes: torch.dtype) -> tl.dtype:
    """That of the operands if they agree, else float32."""
    names = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return names.get(dtypes[0], tl.float32) if len(set(dtypes)) == 1 else tl.float32


def _padded(n: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(n)))


def blocks_of(pixels: int, channels: int, out_channels: int, n_bytes: int) -> dict[str, int]:
    """Tile and warps of ``conv_kernel`` for so many output pixels in a phase, with operands of ``n_bytes``."""
    block_m, block_n = _padded(pixels, 128), _padded(out_channels, 128)
    return {
        "block_m": block_m,
        "block_n": block_n,
        "block_k": _padded(channels, 128 // n_bytes),
        "num_warps": 8 if block_m * block_n >= 128 * 128 else 4,
        "num_stages": 3,
    }


def wgrad_blocks_of(large_channels: int, small_channels: int, n_bytes: int) -> dict[str, int]:
    """Likewise of ``wgrad_kernel``."""
    block_m, block_n = _padded(large_channels, 128), _padded(small_channels, 128)
    return {
        "block_m": block_m,
        "block_n": block_n,
        "block_k": 128 // n_bytes,
        "num_warps": 8 if block_m * block_n >= 128 * 128 else 4,
        "num_stages": 3,
    }


def conv(
    x: Tensor,
    s: Tensor | None,
    weight: Tensor,
    y: Tensor,
    stride: int,
    padding: tuple[int, int],
    transposed: bool,
    epilogue: Epilogue,
) -> None:
    """Fills ``y`` (N, O, H', W'), which is channels_last like ``x`` (N, I, H, W).

    ``s`` (N, I) is float32, ``weight`` (kh, kw, I, O) is contiguous and meets the image as ``conv2d`` or, transposed,
    ``conv_transpose2d`` would have it.
    """
    n, channels, height, width = x.shape
    out_channels, out_height, out_width = y.shape[1:]
    kh, kw = weight.shape[:2]
    step = stride if transposed else 1
    pixels = triton.cdiv(out_height, step) * triton.cdiv(out_width, step)
    dtype = _product_dtype(x.dtype, weight.dtype)
    tile = blocks_of(pixels, channels, out_channels, 4 if dtype is tl.float32 else 2)
    grid = (n * step * step * triton.cdiv(pixels, tile["block_m"]), triton.cdiv(out_channels, tile["block_n"]))
    noise = epilogue.noise
    noise_stride = 0 if noise is None or noise.shape[0] == 1 else out_height * out_width
    conv_kernel[grid](
        x, weight, y, s, epilogue.scale, noise, epilogue.bias,
        height, width, out_height, out_width, channels, out_channels, noise_stride, epilogue.alpha, epilogue.gain,
        0.0 if epilogue.clamp is None else epilogue.clamp,
        kh=kh, kw=kw, stride=stride, pad_y=padding[0], pad_x=padding[1], transposed=transposed, act=epilogue.act,
        clamped=epilogue.clamp is not None, dtype=dtype, precision=_precision(), **tile,
    )  # fmt: skip


def wgrad(
    small: Tensor,
    large: Tensor,
    small_scale: Tensor | None,
    large_scale: Tensor | None,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    programs: int,
) -> Tensor:
    """(kh, kw, channels of ``large``, channels of ``small``) in float32, of channels_last images.

    ``small`` is the result of a convolution of ``large``, or ``large`` that of a transposed one of ``small``.
    ``programs``: about how many the GPU runs at once, to share the pixels among.
    """
    n, small_channels, rows, columns = small.shape
    large_channels, height, width = large.shape[1:]
    kh, kw = kernel
    dtype = _product_dtype(small.dtype, large.dtype)
    tile = wgrad_blocks_of(large_channels, small_channels, 4 if dtype is tl.float32 else 2)
    blocks = triton.cdiv(large_channels, tile["block_m"]), triton.cdiv(small_channels, tile["block_n"])
    chunks = n * triton.cdiv(rows * columns, tile["block_k"])
    splits = max(1, min(programs // (blocks[0] * blocks[1] * kh * kw), chunks))
    sums = small.new_empty((splits, kh, kw, large_channels, small_channels), dtype=torch.float32)
    wgrad_kernel[(*blocks, kh * kw * splits)](
        small, large, sums, small_scale, large_scale,
        n, rows, columns, height, width, small_channels, large_channels, splits,
        kw=kw, taps=kh * kw, stride=stride, pad_y=padding[0], pad_x=padding[1], dtype=dtype, precision=_precision(),
        **tile,
    )  # fmt: skip
    return sums[0] if splits == 1 else sums.sum(0)
