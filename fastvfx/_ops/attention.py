"""Schema, shapes and calls of ``attention_fwd`` and ``attention_bwd``; the public function is in fastvfx/functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty, on, ptr

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? extra_k, Tensor? extra_v, Tensor? extra_mask, Tensor? kv_mask,"
    " Tensor? relative_bias, Tensor? bias, Tensor? rotary, Tensor? kv_rotary, Tensor? blocks, Tensor spans_t,"
    " Tensor spans_h, Tensor spans_w, Tensor head_spans"
)
_OPTIONS = "SymInt[] shape, float scale, float softcap, float dropout, SymInt seed"


def _strides(x: Tensor | None) -> list[int]:
    return [0, 0, 0] if x is None else list(x.stride()[:3])


def _with_channels_adjacent(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _table(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


class _Call:
    """The arguments that both directions share, in the order of the bindings, and the tensors that they point to."""

    def __init__(
        self, q, k, v, extra_k, extra_v, extra_mask, kv_mask, relative_bias, bias, rotary, kv_rotary, blocks, spans_t,
        spans_h, spans_w, head_spans, shape, scale, softcap, dropout, seed,
    ):  # fmt: skip
        wide = accumulate_dtype(q.dtype)
        tensors = [_with_channels_adjacent(x) for x in (q, k, v, extra_k, extra_v)]
        tables = [None if x is None else x.contiguous() for x in (extra_mask, kv_mask)]
        tables += [_table(x, wide) for x in (relative_bias, bias, rotary, kv_rotary)]
        tables += [None if x is None else x.contiguous() for x in (blocks, spans_t, spans_h, spans_w, head_spans)]
        self.kept = (tensors, tables)
        self.batch, self.n_q, self.heads, self.dim = q.shape
        self.n_k, self.kv_heads, self.dim_v = v.shape[1:]
        self.n_extra = 0 if extra_k is None else extra_k.shape[1]
        sizes = [
            self.batch, self.heads, self.kv_heads, self.dim, self.dim_v, self.n_extra,
            0 if bias is None else bias.shape[0],
            *((0, 0, 0) if blocks is None else (blocks.shape[0], blocks.shape[1], blocks.shape[3])),
            spans_t.shape[0],
            *((0, 0, 0) if relative_bias is None else relative_bias.shape[1:]),
        ]  # fmt: skip
        self.arguments: tuple[Any, ...] = (
            DTYPE_CODE[q.dtype], sizes, list(shape), [s for x in tensors for s in _strides(x)],
            [ptr(x) for x in (*tensors, *tables)], scale, softcap, dropout, seed, *executor(q.device),
        )  # fmt: skip


def _fwd_shapes(q: Tensor, v: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    batch, n_q, heads, _ = q.shape
    return (batch, n_q, heads, v.shape[3]), (batch, heads, n_q)


def _fwd_fake(q, k, v, *rest):
    out, lse = _fwd_shapes(q, v)
    return q.new_empty(out), q.new_empty(lse, dtype=accumulate_dtype(q.dtype))


def _fwd(q, k, v, *rest):
    if q.device.type == "cuda":
        from .._triton import attention as triton_attention

        with on(q.device):
            return triton_attention.attention_fwd(q, k, v, *rest)
    out_shape, lse_shape = _fwd_shapes(q, v)
    out = large_empty(out_shape, q.dtype, q.device)  # (B, N_q, heads, dim_v)
    lse = large_empty(lse_shape, accumulate_dtype(q.dtype), q.device)  # (B, heads, N_q)
    call = _Call(q, k, v, *rest)
    with on(q.device):
        kernel("attention_fwd", q.device)(*call.arguments, ptr(out), ptr(lse))
    return out, lse


define(f"attention_fwd({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)", _fwd, _fwd_fake)


def _grads(inputs: tuple[Any, ...], wanted: list[bool]) -> tuple[Tensor, ...]:
    """Room for the gradients of q, k, v, extra_k, extra_v, relative_bias and bias; those of the tables are summed."""
    q, k, v, extra_k, extra_v, _, _, relative_bias, bias, *_ = inputs
    wide = accumulate_dtype(q.dtype)
    grads = []
    for x, is_wanted in zip((q, k, v, extra_k, extra_v), wanted[:5], strict=True):
        like = x if x is not None else q
        grads.append(large_empty(tuple(like.shape) if is_wanted else (0,), like.dtype, like.device))
    for x, is_wanted in zip((relative_bias, bias), wanted[5:], strict=True):
        grads.append(q.new_zeros(x.shape if is_wanted and x is not None else (0,), dtype=wide))
    return tuple(grads)


def _in_dtype(grads: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    tables = (grad if x is None else grad.to(x.dtype) for grad, x in zip(grads[5:], inputs[7:9], strict=True))
    return (*grads[:5], *tables)


def _bwd_fake(grad_out, grad_lse, *rest):
    inputs, wanted = rest[:16], rest[-1]
    empty = [
        (x if x is not None else grad_out).new_empty(x.shape if is_wanted and x is not None else (0,))
        for x, is_wanted in zip((*inputs[:5], *inputs[7:9]), wanted, strict=True)
    ]
    return tuple(empty)


def _bwd(grad_out, grad_lse, *rest):
    if grad_out.device.type == "cuda":
        from .._triton import attention as triton_attention

        with on(grad_out.device):
            return triton_attention.attention_bwd(grad_out, grad_lse, *rest)
    inputs, (out, lse), options, wanted = rest[:16], rest[16:18], rest[18:-1], rest[-1]
    grads = _grads(inputs, wanted)
    call = _Call(*inputs, *options)
    results = [_with_channels_adjacent(x) for x in (out, grad_out)]
    tables = [None if x is None else x.contiguous() for x in (lse, grad_lse)]
    with on(grad_out.device):
        kernel("attention_bwd", grad_out.device)(
            *call.arguments,
            [ptr(x) for x in (*results, *tables)],
            [s for x in results for s in _strides(x)],
            [ptr(x) if is_wanted else 0 for x, is_wanted in zip(grads, wanted, strict=True)],
        )
    return _in_dtype(grads, inputs)


define(
    f"attention_bwd(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, {_OPTIONS}, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
