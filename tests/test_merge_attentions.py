"""Merging attention over parts of the keys: values and gradients of attention over all of them."""

from __future__ import annotations

import pytest
import torch

from fastvfx.functional import merge_attentions


def attention(q, k, v, mask=None):
    """The test's own formula: (B, N, heads, dim) in, outputs and (B, heads, N) log-sum-exps out."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp().nan_to_num(0), v), lse


@pytest.fixture
def qkv():
    return [torch.randn(2, n, 3, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7)]


@pytest.mark.parametrize("cuts", [(7,), (3, 7), (1, 2, 6, 7)], ids=str)
def test_parts_make_the_whole(qkv, cuts):
    q, k, v = qkv
    pieces = [slice(a, b) for a, b in zip((0, *cuts), cuts, strict=False)]
    whole = attention(q, k, v)
    merged = merge_attentions(*zip(*(attention(q, k[:, p], v[:, p]) for p in pieces), strict=True))
    torch.testing.assert_close(merged, whole)
    weights = [torch.randn_like(x) for x in whole]
    gradients = [torch.autograd.grad(x, qkv, weights) for x in (merged, whole)]
    torch.testing.assert_close(*gradients)


def test_queries_without_keys(qkv):
    """Query 0 sees nothing at all, query 1 nothing in the second part, which left a NaN there."""
    q, k, v = (x.detach() for x in qkv)
    a, lse_a = attention(q, k[:, :3], v[:, :3])
    b, lse_b = attention(q, k[:, 3:], v[:, 3:])
    lse_a[..., 0] = lse_b[..., :2] = -torch.inf
    b[:, :2] = torch.nan
    parts = [x.requires_grad_() for x in (a, b, lse_a, lse_b)]
    out, lse = merge_attentions(parts[:2], parts[2:])
    assert (out[:, 0] == 0).all() and lse[..., 0].isneginf().all()
    torch.testing.assert_close(out[:, 1], a[:, 1])
    torch.testing.assert_close(lse[..., 1], lse_a[..., 1])
    for gradient in torch.autograd.grad(out.square().sum() + lse[..., 1:].square().sum(), parts):
        assert gradient.isfinite().all()


def test_second_derivative():
    parts = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in [(1, 2, 2, 3)] * 2 + [(1, 2, 2)] * 2]

    def merged(a, b, lse_a, lse_b):
        return merge_attentions([a, b], [lse_a, lse_b])

    assert torch.autograd.gradcheck(merged, parts) and torch.autograd.gradgradcheck(merged, parts)


def test_grids_and_dtypes():
    out = torch.randn(2, 2, 3, 4, 5, 8).bfloat16()
    lse = torch.full((2, 5, 24), 50.0)  # exp(50) squared would not fit into float32
    merged, merged_lse = merge_attentions([out, out, -out], [lse, lse, lse + 100])
    assert merged.shape == out.shape and merged.dtype is torch.bfloat16 and merged_lse.dtype is torch.float32
    torch.testing.assert_close(merged, -out)
    torch.testing.assert_close(merged_lse, lse + 100)


def test_one_graph():
    parts = [torch.randn(1, 4, 2, 8) for _ in range(2)], [torch.randn(1, 2, 4) for _ in range(2)]
    compiled = torch.compile(merge_attentions, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*parts), merge_attentions(*parts))


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        ([], [], ValueError, "at least one, got 0 and 0"),
        ([(1, 4, 2, 8)], [(1, 2, 4)] * 2, ValueError, "as many lses as outs, at least one, got 1 and 2"),
        ([(1, 4, 2)], [(1, 2, 4)], ValueError, r"outs\[0\] of shape \(B, ..., heads, dim\), got \(1, 4, 2\)"),
        ([(1, 4, 2, 8), (1, 4, 2, 4)], [(1, 2, 4)] * 2, ValueError, r"expected outs\[1\] of shape .* like outs\[0\]"),
        ([(1, 4, 2, 8)], [(1, 4, 2)], ValueError, r"expected lses\[0\] of shape \(B, heads, N\) = \(1, 2, 4\)"),
    ],
)
def test_bad_input(outs, lses, error, message):
    with pytest.raises(error, match=message):
        merge_attentions([torch.ones(s) for s in outs], [torch.ones(s) for s in lses])


def test_no_tensors():
    with pytest.raises(TypeError, match=r"expected outs\[0\] to be a torch.Tensor, got list"):
        merge_attentions([[1.0]], [torch.ones(1)])
