"""Small networks on a GPU: a block of points passes through all layers in registers and shared memory.

Widths are padded to powers of two from 16 on (one for all hidden layers), because that is what ``tl.dot`` multiplies;
padded weights are zero, so the padding never reaches a result. Products are taken in the dtype of the parameters with
float32 sums; float32 itself as three tf32 products, which keeps its precision on tensor cores.

The backward kernel recomputes the hidden layers of its block. A fixed number of programs share the blocks; each adds up
the weights' gradients of its own in a fixed order, in registers where they fit and else in memory of its own, which
stays in the L2 cache; one sum over the programs ends it. So the result is the same every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _activate(kind: tl.constexpr, z):
    # Numbers as in fastvfx/_ops/mlp.py; comparisons are written so that NaN passes through.
    if kind == 1:
        z = tl.where(z < 0, 0.0, z)
    elif kind == 2:
        z = tl.where(z < 0, 0.01 * z, z)
    elif kind == 3:
        z = 1 / (1 + tl.exp(-z))
    elif kind == 4:
        e = tl.exp(-2 * tl.abs(z))
        z = tl.where(z < 0, e - 1, 1 - e) / (1 + e)
    elif kind == 5:
        z = tl.where(z < 0, 0.0, z) + tl.log(1 + tl.exp(-tl.abs(z)))
    elif kind == 6:
        z = tl.exp(z)
    elif kind == 7:
        z = tl.sin(z)
    return z


@triton.jit
def _through(kind: tl.constexpr, g, h):
    # g act'(z) from h = act(z); for the sine, h stands for cos(z).
    if kind == 1:
        g = tl.where(h <= 0, 0.0, g)
    elif kind == 2:
        g = tl.where(h > 0, g, 0.01 * g)
    elif kind == 3:
        g = g * (h * (1 - h))
    elif kind == 4:
        g = g * (1 - h * h)
    elif kind == 5:
        g = g * (1 - tl.exp(-h))
    elif kind == 6 or kind == 7:
        g = g * h
    return g


@triton.jit
def _rows(data, rows, n, width: tl.constexpr, padded: tl.constexpr):
    """Pointers to rows of a (n, width) array and a mask of what exists."""
    columns = tl.arange(0, padded)
    return data + rows[:, None] * width + columns[None, :], (rows < n)[:, None] & (columns < width)[None, :]


@triton.jit
def _matrix(layer: tl.constexpr, p_in: tl.constexpr, width: tl.constexpr, p_out: tl.constexpr, hidden: tl.constexpr):
    """Where the (in, out) entries of a layer lie in the packed weights."""
    k: tl.constexpr = p_in if layer == 0 else width
    m: tl.constexpr = p_out if layer == hidden else width
    start: tl.constexpr = 0 if layer == 0 else p_in * width + (layer - 1) * width * width
    return start + tl.arange(0, k)[:, None] * m + tl.arange(0, m)[None, :]


@triton.jit
def _vector(layer: tl.constexpr, width: tl.constexpr, p_out: tl.constexpr, hidden: tl.constexpr):
    """Likewise in the packed biases."""
    m: tl.constexpr = p_out if layer == hidden else width
    return layer * width + tl.arange(0, m)


@triton.jit
def _linear(
    h, w, b, layer: tl.constexpr, p_in: tl.constexpr, width: tl.constexpr, p_out: tl.constexpr, hidden: tl.constexpr,
    has_bias: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    z = tl.dot(h, tl.load(w + _matrix(layer, p_in, width, p_out, hidden)), input_precision=precision)
    if has_bias:
        z += tl.load(b + _vector(layer, width, p_out, hidden))[None, :]
    return z


@triton.jit
def fwd_kernel(
    x, w, b, y, n,
    n_in: tl.constexpr, n_out: tl.constexpr, p_in: tl.constexpr, width: tl.constexpr, p_out: tl.constexpr,
    hidden: tl.constexpr, activation: tl.constexpr, output_activation: tl.constexpr, has_bias: tl.constexpr,
    precision: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    at, exists = _rows(x, rows, n, n_in, p_in)
    dtype: tl.constexpr = w.dtype.element_ty
    h = tl.load(at, exists, 0.0).to(dtype)
    for layer in tl.static_range(hidden):
        h = _activate(activation, _linear(h, w, b, layer, p_in, width, p_out, hidden, has_bias, precision)).to(dtype)
    z = _linear(h, w, b, hidden, p_in, width, p_out, hidden, has_bias, precision)
    at, exists = _rows(y, rows, n, n_out, p_out)
    tl.store(at, _activate(output_activation, z).to(y.dtype.element_ty), exists)


@triton.jit
def bwd_kernel(
    x, y, grad_y, w, b, grad_x, grad_w, grad_b, n, n_weights, n_biases,
    n_in: tl.constexpr, n_out: tl.constexpr, p_in: tl.constexpr, width: tl.constexpr, p_out: tl.constexpr,
    hidden: tl.constexpr, activation: tl.constexpr, output_activation: tl.constexpr, has_bias: tl.constexpr,
    precision: tl.constexpr, block: tl.constexpr, x_gradient: tl.constexpr, params_gradient: tl.constexpr,
    in_registers: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = w.dtype.element_ty
    w_mine = grad_w + tl.program_id(0).to(tl.int64) * n_weights
    b_mine = grad_b + tl.program_id(0).to(tl.int64) * n_biases
    w_sums = ()  # one (in, out) matrix a layer
    if in_registers:
        for layer in tl.static_range(hidden + 1):
            w_sums = w_sums + (_matrix(layer, p_in, width, p_out, hidden).to(tl.float32) * 0,)

    for first in range(tl.program_id(0) * block, n, tl.num_programs(0) * block):
        rows = tl.arange(0, block).to(tl.int64) + first
        at, exists = _rows(x, rows, n, n_in, p_in)
        h = tl.load(at, exists, 0.0).to(dtype)
        hs = (h,)  # what each layer multiplies
        slopes = (h,)  # what the slope of each hidden layer follows from
        for layer in tl.static_range(hidden):
            z = _linear(h, w, b, layer, p_in, width, p_out, hidden, has_bias, precision)
            h = _activate(activation, z).to(dtype)
            hs = hs + (h,)
            if activation == 7:
                slopes = slopes + (tl.cos(z).to(dtype),)
            else:
                slopes = slopes + (h,)

        at, exists = _rows(grad_y, rows, n, n_out, p_out)
        g = tl.load(at, exists, 0.0).to(tl.float32)
        if output_activation == 7:
            g = g * tl.cos(_linear(h, w, b, hidden, p_in, width, p_out, hidden, has_bias, precision))
        elif output_activation != 0:
            at, exists = _rows(y, rows, n, n_out, p_out)
            g = _through(output_activation, g, tl.load(at, exists, 0.0).to(tl.float32))

        w_next = ()
        for layer in tl.static_range(hidden, -1, -1):
            narrow = g.to(dtype)
            if params_gradient:
                change = tl.dot(tl.trans(hs[layer]), narrow, input_precision=precision)
                if in_registers:
                    w_next = (w_sums[layer] + change,) + w_next
                else:
                    at_w = w_mine + _matrix(layer, p_in, width, p_out, hidden)
                    tl.store(at_w, tl.load(at_w) + change)
                if has_bias:
                    at_b = b_mine + _vector(layer, width, p_out, hidden)
                    tl.store(at_b, tl.load(at_b) + tl.sum(g, 0))
            if layer > 0 or x_gradient:
                weight = tl.load(w + _matrix(layer, p_in, width, p_out, hidden))
                g = tl.dot(narrow, tl.trans(weight), input_precision=precision)
                if layer > 0:
                    g = _through(activation, g, slopes[layer].to(tl.float32))
        if x_gradient:
            at, exists = _rows(grad_x, rows, n, n_in, p_in)
            tl.store(at, g.to(grad_x.dtype.element_ty), exists)
        if in_registers:
            w_sums = w_next
        tl.debug_barrier()  # the next block's loads see this one's stores

    if in_registers:
        for layer in tl.static_range(hidden + 1):
            tl.store(w_mine + _matrix(layer, p_in, width, p_out, hidden), w_sums[layer])


class Network:
    """Padded widths of a network, where its layers lie in packed arrays, and how the kernels are launched for it."""

    def __init__(self, n_in: int, weights: list[Tensor], activation: int, output_activation: int, bias: bool) -> None:
        hidden = len(weights) - 1
        p_in, p_out = _padded(n_in), _padded(weights[-1].shape[0])
        width = max([16, *(_padded(w.shape[0]) for w in weights[:-1])])
        ins, outs = [p_in] + [width] * hidden, [width] * hidden + [p_out]
        self.shapes = list(zip(ins, outs, strict=True))
        self.n_weights = sum(k * m for k, m in self.shapes)
        self.n_biases = sum(outs) if bias else 0
        is_float32 = weights[0].dtype is torch.float32
        self.constants: dict[str, Any] = {
            "n_in": n_in,
            "n_out": weights[-1].shape[0],
            "p_in": p_in,
            "width": width,
            "p_out": p_out,
            "hidden": hidden,
            "activation": activation,
            "output_activation": output_activation,
            "has_bias": bias,
            "precision": "tf32x3" if is_float32 else "ieee",
        }
        # As many points as the registers of the warps hold; checked in tests/test_mlp_triton.py.
        wide = max(self.constants["width"], p_in, p_out) > 64
        self.warps = 8 if wide else 4
        self.fwd_block = 64 if is_float32 else 128
        self.bwd_block = 64
        self.in_registers = not is_float32 and self.n_weights <= 8192

    def pack(self, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Weights as padded (in, out) matrices one after the other, biases likewise in float32."""
        packed = weights[0].new_zeros((self.n_weights,))
        packed_bias = weights[0].new_zeros((self.n_biases,), dtype=torch.float32)
        for view, w in zip(self.matrices(packed), weights, strict=True):
            view[: w.shape[1], : w.shape[0]].copy_(w.t())
        for view, b in zip(self.vectors(packed_bias), biases, strict=True):
            view[: b.shape[0]].copy_(b)
        return packed, packed_bias

    def matrices(self, packed: Tensor) -> list[Tensor]:
        pieces = packed.split([k * m for k, m in self.shapes])
        return [p.view(shape) for p, shape in zip(pieces, self.shapes, strict=True)]

    def vectors(self, packed: Tensor) -> list[Tensor]:
        return list(packed.split([m for _, m in self.shapes])) if self.n_biases else []


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def forward(
    x: Tensor, y: Tensor, weights: list[Tensor], biases: list[Tensor], activation: int, output_activation: int
) -> None:
    """Fills ``y``."""
    net = Network(x.shape[1], weights, activation, output_activation, bool(biases))
    w, b = net.pack(weights, biases)
    n = x.shape[0]
    if n:
        grid = (triton.cdiv(n, net.fwd_block),)
        fwd_kernel[grid](x, w, b, y, n, **net.constants, block=net.fwd_block, num_warps=net.warps)


def backward(
    x: Tensor,
    y: Tensor,
    grad_y: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activation: int,
    output_activation: int,
    grad_x: Tensor | None,
    grad_params: Tensor | None,
    programs: int,
) -> None:
    """Fills ``grad_x`` and the flat ``grad_params``, each if it is given. ``programs``: how many share the points."""
    net = Network(x.shape[1], weights, activation, output_activation, bool(biases))
    w, b = net.pack(weights, biases)
    n = x.shape[0]
    programs = max(1, min(programs, triton.cdiv(n, net.bwd_block)))
    params_gradient = grad_params is not None
    rows = programs if params_gradient else 0
    w_sums = w.new_zeros((rows, net.n_weights), dtype=torch.float32)
    b_sums = w.new_zeros((rows, net.n_biases), dtype=torch.float32)
    bwd_kernel[(programs,)](
        x, y, grad_y, w, b, x if grad_x is None else grad_x, w_sums, b_sums, n, net.n_weights, net.n_biases,
        **net.constants, block=net.bwd_block, x_gradient=grad_x is not None, params_gradient=params_gradient,
        in_registers=net.in_registers and params_gradient, num_warps=net.warps, num_stages=1,
    )  # fmt: skip
    if grad_params is None:
        return
    grad_w, grad_b = net.matrices(w_sums.sum(0)), net.vectors(b_sums.sum(0))
    start = 0
    for layer, weight in enumerate(weights):
        n_out, n_in = weight.shape
        grad_params[start : start + weight.numel()].view(n_out, n_in).copy_(grad_w[layer][:n_in, :n_out].t())
        start += weight.numel()
        if biases:
            grad_params[start : start + n_out].copy_(grad_b[layer][:n_out])
            start += n_out
