"""Derivatives of attention: the first by the native operator, those beyond by the formula, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._autograd import gradients_wanted, reference_double_backward
from ..patterns.spans import Spans
from ..reference.attention import Options, attention
from ..reference.attention_tiles import attention_tiles
from .attention_checks import Flat


class Numbers(NamedTuple):
    """What is no tensor, in the order of the operators."""

    shape: tuple[int, ...]  # grid, kv_grid, dilation, sink, block, rotary_halves, whole, reach
    scale: float
    softcap: float
    dropout: float
    seed: int


Aux = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor
]  # extra_mask, kv_mask, rotary, kv_rotary, blocks, spans of t, h and w, of_head


def formula(inputs: Flat, options: Options) -> tuple[Tensor, Tensor]:
    """In PyTorch: tiles, or the whole matrix of scores where sizes cannot be read (in a graph, on fake tensors)."""
    tensor = type(inputs[0]) in (Tensor, torch.nn.Parameter) and inputs[0].device.type != "meta"
    if not tensor or torch.compiler.is_compiling():
        return attention(*inputs, options)
    return attention_tiles(*inputs, options)


def is_transformed(inputs: Flat) -> bool:
    """Whether a call is differentiated forwards or by torch.func, which the formula can and an operator cannot."""
    if torch.compiler.is_compiling():
        return False
    given = [x for x in inputs if x is not None]
    if any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in given):
        return True
    has_level = forward_ad._current_level >= 0
    return has_level and any(forward_ad.unpack_dual(x).tangent is not None for x in given)


def native(inputs: Flat, options: Options) -> tuple[Tensor, Tensor]:
    """By torch.ops.fastvfx.attention_fwd, with gradients if they are needed."""
    q, k, v, extra_k, extra_v, relative_bias, bias = inputs
    q, k, v = _rows(q), _rows(k), _rows(v)
    extra_k, extra_v = (None if x is None else _rows(x) for x in (extra_k, extra_v))
    inputs = (q, k, v, extra_k, extra_v, relative_bias, bias)
    aux, numbers = packed(options)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        tensors = (*inputs, *aux)
        return _Attention.apply(*(_distinct(tensors) if torch.compiler.is_compiling() else tensors), numbers)
    return torch.ops.fastvfx.attention_fwd(*_arguments(inputs, aux), *numbers)


def _distinct(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """With views for tensors that occur before: torch.compile refuses an autograd.Function one tensor twice."""
    result: list[Tensor | None] = []
    for x in tensors:
        again = x is not None and any(x is y for y in tensors[: len(result)])
        result.append(x.view_as(x) if x is not None and again else x)
    return result


def packed(options: Options) -> tuple[Aux, Numbers]:
    """The tensors that are not differentiated by and the numbers, as the operators take them."""
    spans = options.spans
    halves = int(options.rotary_halves)
    numbers = Numbers(
        (
            *spans.grid, *spans.kv_grid, *spans.dilation, *spans.sink, *options.block, halves, *map(int, spans.whole),
            *spans.reach,
        ),
        options.scale, options.softcap, options.dropout, options.seed,
    )  # fmt: skip
    aux = (
        options.extra_mask, options.kv_mask, options.rotary, options.kv_rotary, options.blocks,
        spans.t, spans.h, spans.w, spans.of_head,
    )  # fmt: skip
    return aux, numbers


def _rows(x: Tensor) -> Tensor:
    """x with its last axis contiguous, which the kernels need; other strides are free."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _arguments(inputs: Flat, aux: Aux) -> tuple[Any, ...]:
    """In the operators' order."""
    q, k, v, extra_k, extra_v, relative_bias, bias = inputs
    extra_mask, kv_mask, rotary, kv_rotary, *rest = aux
    return q, k, v, extra_k, extra_v, extra_mask, kv_mask, relative_bias, bias, rotary, kv_rotary, *rest


def _options(aux: Aux, numbers: Numbers) -> Options:
    extra_mask, kv_mask, rotary, kv_rotary, blocks, t, h, w, of_head = aux
    triples = [numbers.shape[3 * i : 3 * i + 3] for i in range(5)]
    grid, kv_grid, dilation, sink, block = [(x[0], x[1], x[2]) for x in triples]
    return Options(
        # The formula has no use for reach and whole.
        Spans(t, h, w, of_head, grid, kv_grid, dilation, sink, reach=(0, 0, 0), whole=(False,) * 3),
        numbers.scale, numbers.softcap, numbers.dropout, numbers.seed, rotary, kv_rotary, bool(numbers.shape[15]),
        extra_mask, kv_mask, blocks, block,
    )  # fmt: skip


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, extra_k, extra_v, relative_bias, bias, *rest):
        *aux, numbers = rest
        inputs = (q, k, v, extra_k, extra_v, relative_bias, bias)
        out, lse = torch.ops.fastvfx.attention_fwd(*_arguments(inputs, tuple(aux)), *numbers)
        ctx.save_for_backward(*inputs, out, lse, *aux)
        ctx.numbers = numbers
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out, grad_lse):
        nothing = (None,) * 17
        if grad_out is None and grad_lse is None:
            return nothing
        *inputs, out, lse = ctx.saved_tensors[:9]
        wanted = gradients_wanted(ctx)[:7]
        grad_out = torch.zeros_like(out) if grad_out is None else _rows(grad_out)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        grads = _AttentionBackward.apply(
            grad_out, grad_lse, *inputs, out, lse, *ctx.saved_tensors[9:], ctx.numbers, tuple(wanted)
        )
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *nothing[7:]


class _AttentionBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, grad_out, grad_lse, *rest):
        *tensors, numbers, wanted = rest
        inputs, out, lse, aux = tensors[:7], tensors[7], tensors[8], tensors[9:]
        ctx.save_for_backward(grad_out, grad_lse, *inputs, *aux)
        ctx.numbers = numbers
        ctx.set_materialize_grads(False)
        return torch.ops.fastvfx.attention_bwd(
            grad_out, grad_lse, *_arguments(tuple(inputs), tuple(aux)), out, lse, *numbers, list(wanted)
        )

    @staticmethod
    def backward(ctx: Any, *grad_grads):
        grad_out, grad_lse, *rest = ctx.saved_tensors
        inputs, options = rest[:7], _options(tuple(rest[7:]), ctx.numbers)
        # Storage may be 16 bits; the formula is differentiated in the accumulation type.
        acc = torch.float64 if grad_out.dtype is torch.float64 else torch.float32
        wide = [None if x is None else x.to(acc) for x in inputs]
        wide_grads = [
            None if x is None or g is None or g.numel() == 0 else g.to(acc)
            for x, g in zip(inputs, grad_grads, strict=True)
        ]
        grad_inputs, grad_grad_outputs = reference_double_backward(
            lambda *x: formula(x, options),
            wide,
            [grad_out.to(acc), grad_lse],
            wide_grads,
        )
        in_their_dtype = [g if g is None else g.to(x.dtype) for g, x in zip(grad_inputs, inputs, strict=True)]
        grad_grad_out, grad_grad_lse = grad_grad_outputs
        grad_grad_out = None if grad_grad_out is None else grad_grad_out.to(grad_out.dtype)
        return grad_grad_out, grad_grad_lse, *in_their_dtype, *(None,) * 13
