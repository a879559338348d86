"""Attention over the tokens of a video."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .._backend import use_triton
from ..patterns import Full, Pattern
from ..reference.attention import Options
from . import attention_checks as checks
from .attention_autograd import formula, is_transformed, native


def spatiotemporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    grid: Sequence[int] | None = None,
    kv_grid: Sequence[int] | None = None,
    scale: float | None = None,
    rotary: Tensor | None = None,
    kv_rotary: Tensor | Literal[False] | None = None,
    rotary_pairs: Literal["neighbours", "halves"] = "neighbours",
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    extra_mask: Tensor | None = None,
    kv_mask: Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention of the tokens of a video, each to the keys that a pattern allows.

    .. math::
        s_{ij} = \mathrm{cap}(\mathrm{scale} \; R_i q_i \cdot R_j k_j) + b_{ij} + r_{j - i}, \qquad
        o_i = \sum_{j \in A(i)} \frac{e^{s_{ij}}}{\sum_{j' \in A(i)} e^{s_{ij'}}} \, v_j

    with A(i) the allowed keys, R rotations, b a bias, r one of relative positions, and cap(s) = c tanh(s / c) if there
    is a softcap c. Work and memory go with the allowed pairs, not with all.

    Args:
        q: queries ``(batch, T, H, W, heads, dim)``, or ``(batch, N, heads, dim)`` with ``grid``. float32, float16,
            bfloat16 or float64.
        k: keys ``(batch, T, H, W, kv_heads, dim)`` or ``(batch, N_k, kv_heads, dim)``; ``kv_heads`` divides ``heads``,
            and neighbouring heads of queries share one.
        v: values, likewise; their dim may be another.
        pattern: one of :mod:`fastvfx.patterns`; ``None`` is :class:`~fastvfx.patterns.Full`.
        grid: (T, H, W) of flat queries. Flat queries without one are a line of N tokens in time.
        kv_grid: the same of keys; by default that of the queries if there are as many keys, else a line in time. With
            fewer frames of queries than of keys, queries are the last frames.
        scale: factor of the products; ``None`` is dim ** -0.5.
        rotary: rotations of the queries, ``(N, dim / 2, 2)`` cosines and sines, as :func:`fastvfx.rotary_3d` makes
            them; also of the keys, if they are as many.
        kv_rotary: rotations of the keys, ``(N_k, dim / 2, 2)``, or ``False``: they are not turned.
        rotary_pairs: whether channels 2 i and 2 i + 1 are turned together, or i and i + dim / 2.
        bias: ``(1 or batch, heads, N, N_k)`` added to the scores; -inf excludes a pair.
        relative_bias: ``(heads, 2 kt - 1, 2 kh - 1, 2 kw - 1)``: its entry (key - query) / dilation + (kt - 1, kh - 1,
            kw - 1) is added to a score. It must hold every distance that the pattern allows.
        extra_k, extra_v: ``(batch, E, kv_heads, dim)``: keys that every query attends besides, such as those of a text.
            They have no position: no pattern, rotation or bias.
        extra_mask: ``(batch, E)`` bool, which of them may be attended.
        kv_mask: ``(batch, N_k)`` bool, which keys may be attended, for padded batches.
        dropout: probability with which a weight is set to 0, the others being divided by ``1 - dropout``.
        seed: of the dropout. The same seed gives the same weights, in every backend.
        softcap: c above; 0 for none.
        return_lse: also return the log of the sum of exponentials, by which results over parts of the keys are merged.

    Returns:
        The result, shaped like ``q`` with v's dim, in its dtype; with ``return_lse`` also ``(batch, heads, N)``,
        float32 (float64 for float64), which is without dropout.

    Differentiable in q, k, v, extra_k, extra_v, bias and relative_bias, twice and more, the log-sum-exp included
    (orders beyond the first run on the PyTorch formula, in memory linear in the allowed pairs), and forward by
    torch.autograd.forward_ad and torch.func (on the formula). The kernels' gradients are the same every time, on the
    CPU for any number of threads. Sums are taken in float32. A query without a key gives 0 and the log-sum-exp -inf.
    What is masked, by pattern or mask, may be NaN: it has no influence. A NaN that is attended spoils the results of
    its queries and no other. On a GPU the kernels are Triton's and take float32, float16 and bfloat16 with up to 256
    channels a head (the formula takes the rest); a NaN that only the pattern hides may reach near queries there.

    Raises:
        TypeError: an argument is no tensor, has a dtype that does not go with the others, or an option has another
            type.
        ValueError: shapes, devices or options do not fit each other, or the pattern does not fit the grid.

    >>> q, k, v = torch.randn(2, 8, 14, 14, 3 * 4, 64).chunk(3, -2)
    >>> out = fastvfx.spatiotemporal_attention(q, k, v, patterns.Neighborhood((3, 7, 7)))
    """
    inputs, query_grid, key_grid = _inputs(q, k, v, grid, kv_grid, extra_k, extra_v, relative_bias, bias)
    pattern = Full() if pattern is None else pattern
    if not isinstance(pattern, Pattern):
        raise TypeError(f"fastvfx.{checks.OP}: expected pattern to be one of fastvfx.patterns, got {pattern!r}")
    checks.options(scale, dropout, seed, softcap)
    checks.mask("kv_mask", kv_mask, (inputs.k.shape[0], inputs.k.shape[1]))
    if extra_k is None and extra_mask is not None:
        raise ValueError(f"fastvfx.{checks.OP}: expected extra_mask only with extra_k, got it alone")
    if extra_k is not None:
        checks.mask("extra_mask", extra_mask, (extra_k.shape[0], extra_k.shape[1]))
    rotary, turned = checks.rotary(rotary, kv_rotary, inputs, rotary_pairs)
    blocks = pattern.split()[1]
    checks.same_device(
        inputs, rotary=rotary, kv_rotary=turned, kv_mask=kv_mask, extra_mask=extra_mask,
        indices=None if blocks is None else blocks.indices,
    )  # fmt: skip
    options_for = partial(
        Options,
        scale=inputs.q.shape[3] ** -0.5 if scale is None else float(scale),
        softcap=float(softcap), dropout=float(dropout), rotary=rotary, kv_rotary=turned,
        rotary_halves=rotary_pairs == "halves", extra_mask=extra_mask, kv_mask=kv_mask,
    )  # fmt: skip
    calls = checks.prepared(inputs, pattern, query_grid, key_grid, seed, options_for)
    results = [_attend(part, options) for part, options in calls]
    out, lse = results[0]
    if len(results) > 1:
        order = torch.tensor(
            [h for _, options in calls for h in options.spans.heads or ()], device=out.device
        ).argsort()
        out = torch.cat([out for out, _ in results], 2).index_select(2, order)
        lse = torch.cat([lse for _, lse in results], 1).index_select(1, order)
    out = out.unflatten(1, query_grid) if q.dim() == 6 else out
    return (out, lse) if return_lse else out


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int] | None,
    kv_grid: Sequence[int] | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    relative_bias: Tensor | None,
    bias: Tensor | None,
) -> tuple[checks.Inputs, checks.Grid, checks.Grid]:
    """Flat tensors, checked against each other, and the grids of queries and keys."""
    checks.tensors(q, k, v, extra_k, extra_v)
    flat_q, query_grid = checks.flat("q", q, grid, "grid")
    if query_grid is None:
        query_grid = (flat_q.shape[1], 1, 1)
    if kv_grid is None and k.dim() == 4 and k.shape[1] == flat_q.shape[1]:
        kv_grid = query_grid
    flat_k, key_grid = checks.flat("k", k, kv_grid, "kv_grid")
    if key_grid is None:
        key_grid = (flat_k.shape[1], 1, 1)
    flat_v, _ = checks.flat("v", v, key_grid, "kv_grid")
    inputs = checks.Inputs(flat_q, flat_k, flat_v, extra_k, extra_v, relative_bias, bias)
    checks.heads(inputs)
    return inputs, query_grid, key_grid


def _attend(inputs: checks.Inputs, options: Options) -> tuple[Tensor, Tensor]:
    tables = (options.rotary, options.kv_rotary)
    learned = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tables)
    runs = use_triton(checks.OP, inputs.q.device, lambda: checks.why_no_gpu_kernel(inputs))
    is_empty = 0 in inputs.q.shape or 0 in inputs.k.shape  # nothing to launch a kernel for
    if learned or is_empty or not runs or is_transformed(inputs.all()):
        return formula(inputs.all(), options)
    return native(inputs.all(), options)
