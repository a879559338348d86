"""Attention over a whole context from attention over its parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from ..reference.merge_attentions import merge_attentions as reference


def merge_attentions(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Attention to all keys, from what the same queries got from disjoint parts of them.

    .. math::
        \ell = \log \sum_p e^{\ell_p} \qquad o = \sum_p e^{\ell_p - \ell} \, o_p

    (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.) With it, keys may lie on several
    devices, arrive in pieces, or be attended under different patterns: a window of the video and the whole text.

    Args:
        outs: of each part, ``(B, ..., heads, dim)`` as :func:`fastvfx.spatiotemporal_attention` returns it: with the
            tokens flat, ``(B, N, heads, dim)``, or as a grid, ``(B, T, H, W, heads, dim)``.
        lses: of each part, ``(B, heads, N)``, the logarithm of the sum of the exponentials of its scores; ``-inf``
            where it had no key for a query. What ``outs`` holds there is not read.

    Returns:
        The merged output, shape and dtype of the first; the merged ``lse``, float32, or float64 if ``outs`` are. A
        query without a key in any part gets 0 and ``-inf``.

    Differentiable to any order, by both arguments; so the parts' own gradients are those of the whole. Plain PyTorch on
    every device: it reads each part once.

    Raises:
        TypeError: an entry is no tensor of floats.
        ValueError: no parts, not as many of one as of the other, or shapes or devices that do not fit.

    >>> near = fastvfx.spatiotemporal_attention(q, k, v, Neighborhood((3, 5, 5)), return_lse=True)
    >>> text = fastvfx.spatiotemporal_attention(q, text_k, text_v, kv_grid=(1, 1, 77), return_lse=True)
    >>> out, lse = fastvfx.merge_attentions([near[0], text[0]], [near[1], text[1]])
    """
    op = "merge_attentions"
    outs, lses = list(outs), list(lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"fastvfx.{op}: expected as many lses as outs, at least one, got {len(outs)} and {len(lses)}")
    named = {f"outs[{i}]": out for i, out in enumerate(outs)} | {f"lses[{i}]": lse for i, lse in enumerate(lses)}
    _check.is_float(op, **named)
    _check.same_device(op, **named)
    shape = outs[0].shape
    if len(shape) < 4:
        raise ValueError(f"fastvfx.{op}: expected outs[0] of shape (B, ..., heads, dim), got {tuple(shape)}")
    rows = (shape[0], shape[-2], shape[1:-2].numel())
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        _check.has_shape(op, f"outs[{i}]", out, shape, lambda: f"{tuple(shape)} like outs[0]")
        _check.has_shape(op, f"lses[{i}]", lse, rows, lambda: f"(B, heads, N) = {rows}")
    out, lse = reference([out.flatten(1, -3) for out in outs], lses)
    return out.reshape(shape), lse
