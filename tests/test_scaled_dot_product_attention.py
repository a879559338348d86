"""PyTorch's own attention function is the oracle: shapes, masks, gradients, second derivatives."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

import fastvfx


def ours(*args, **kwargs):
    return fastvfx.scaled_dot_product_attention(*args, **kwargs)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def assert_equal_to_torch(tensors, close=None, **kwargs):
    """Values and gradients of (query, key, value[, attn_mask])."""
    tensors = [t for t in tensors if t is not None]
    learned = [t for t in tensors if t.requires_grad]
    a, b = ours(*tensors, **kwargs), F.scaled_dot_product_attention(*tensors, **kwargs)
    torch.testing.assert_close(a, b, **(close or {}))
    weight = torch.randn_like(b)
    zeros = {"allow_unused": True, "materialize_grads": True}  # without queries some are not connected: the same
    gradients = [torch.autograd.grad(x, learned, weight, **zeros) for x in (a, b)]
    torch.testing.assert_close(*gradients, **(close or {}))


def test_signature():
    wanted = "query key value attn_mask dropout_p is_causal scale enable_gqa"
    assert list(inspect.signature(fastvfx.scaled_dot_product_attention).parameters) == wanted.split()


SHAPES = {
    "4d": [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)],
    "matrices": [(5, 8), (7, 8), (7, 8)],
    "3d": [(3, 5, 8), (3, 7, 8), (3, 7, 6)],
    "5d": [(2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 8)],
    "broadcast": [(2, 1, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)],
    "one head of keys": [(2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)],
    "one batch of keys": [(2, 3, 5, 8), (3, 7, 8), (3, 7, 8)],
    "no keys": [(2, 3, 5, 8), (2, 3, 0, 8), (2, 3, 0, 6)],
    "no queries": [(2, 3, 0, 8), (2, 3, 7, 8), (2, 3, 7, 6)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(shapes):
    assert_equal_to_torch([random(*s) for s in shapes])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads(kv_heads, causal):
    q, k, v = random(2, 6, 5, 8), random(2, kv_heads, 5, 8), random(2, kv_heads, 5, 8)
    assert_equal_to_torch([q, k, v], enable_gqa=True, is_causal=causal)


def test_grouped_heads_of_three_sizes():
    assert_equal_to_torch([random(1, 6, 4, 8), random(1, 2, 4, 8), random(1, 3, 4, 8)], enable_gqa=True)


@pytest.mark.parametrize(("L", "S"), [(6, 6), (4, 7), (7, 4)])
def test_causal_is_aligned_at_the_upper_left(L, S):
    assert_equal_to_torch([random(2, 3, L, 8), random(2, 3, S, 8), random(2, 3, S, 8)], is_causal=True, scale=0.3)


MASKS = [(5, 7), (1, 7), (2, 1, 1, 7), (1, 3, 5, 7), (2, 1, 5, 1), (3, 5, 7), (2, 3, 5, 7)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks(kind, shape):
    qkv = random(2, 3, 5, 8), random(2, 3, 7, 8), random(2, 3, 7, 8)
    mask = torch.rand(shape) > 0.3 if kind == "bool" else random(*shape)
    assert_equal_to_torch([*qkv, mask])


@pytest.mark.parametrize("kind", ["bool", "float", "padding"])
def test_rows_without_a_key_are_zero(kind):
    """As in PyTorch since 2.5, in values and in gradients."""
    allowed = torch.rand(2, 1, 5, 7) > 0.3
    allowed[0, :, 2] = False
    if kind == "padding":
        allowed = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 7)
    mask = torch.where(allowed, 0.0, -torch.inf).double() if kind == "float" else allowed
    assert_equal_to_torch([random(2, 3, 5, 8), random(2, 3, 7, 8), random(2, 3, 7, 8), mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    q, k, v = (random(2, 4, 33, 16, dtype=dtype) for _ in range(3))
    close = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (0.05, 0.05), torch.float16: (5e-3, 5e-3)}[dtype]
    close = dict(zip(("rtol", "atol"), close, strict=True))
    assert_equal_to_torch([q, k, v], close)
    assert_equal_to_torch([q, k, v, torch.randn(33, 33)], close)  # a float32 mask beside 16-bit queries


def test_autocast():
    q, k, v = (torch.randn(2, 4, 9, 16) for _ in range(3))
    with torch.autocast("cpu"):
        assert ours(q, k, v).dtype is F.scaled_dot_product_attention(q, k, v).dtype is torch.bfloat16


def test_second_derivative_with_a_learned_mask():
    tensors = random(1, 2, 3, 4), random(1, 2, 4, 4), random(1, 2, 4, 3), random(2, 3, 4)
    assert torch.autograd.gradgradcheck(ours, tensors)


def test_dropout():
    """Kept weights grow by 1 / (1 - p), seeds come from PyTorch's generator."""
    q, k = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 256, 8)
    v = torch.eye(256)[None, None]  # so that the result is the weights
    torch.manual_seed(3)
    a = ours(q, k, v, dropout_p=0.25)
    b = ours(q, k, v, dropout_p=0.25)
    torch.manual_seed(3)
    assert torch.equal(a, ours(q, k, v, dropout_p=0.25)) and not torch.equal(a, b)
    kept = a > 0
    torch.testing.assert_close(a[kept], torch.full_like(a[kept], 1 / 256 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.02
    assert (ours(q, k, v, dropout_p=1.0) == 0).all()


def test_replaces_torchs_own(monkeypatch):
    """A layer of PyTorch's runs on it."""
    layer, x = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
    expected = layer(x, x, x, need_weights=False)[0]
    monkeypatch.setattr(F, "scaled_dot_product_attention", fastvfx.scaled_dot_product_attention)
    torch.testing.assert_close(layer(x, x, x, need_weights=False)[0], expected)


def test_one_graph():
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.rand(5, 5) > 0.2
    mask[:, 0] = True
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, mask), ours(q, k, v, mask))
    torch.testing.assert_close(compiled(q, k, v, is_causal=True), ours(q, k, v, is_causal=True))


BAD = {
    "a vector": ([(8,), (7, 8), (7, 8)], {}, "expected query of shape"),
    "head dims": ([(2, 3, 5, 8), (2, 3, 7, 4), (2, 3, 7, 8)], {}, "fastvfx"),
    "lengths": ([(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 6, 8)], {}, "fastvfx"),
    "batches": ([(2, 3, 5, 8), (3, 3, 7, 8), (2, 3, 7, 8)], {}, "broadcast"),
    "heads": ([(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)], {}, "broadcast"),
    "grouped heads": ([(2, 6, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)], {"enable_gqa": True}, "multiple"),
    "mask and causal": (
        [(5, 8), (5, 8), (5, 8)],
        {"is_causal": True, "attn_mask": torch.ones(5, 5)},
        "attn_mask or is_causal, got both",
    ),
    "mask shape": ([(5, 8), (7, 8), (7, 8)], {"attn_mask": torch.ones(7, 5)}, r"\(1, 1, 5, 7\), got \(7, 5\)"),
    "dropout": ([(5, 8), (7, 8), (7, 8)], {"dropout_p": 1.5}, r"dropout_p in \[0, 1\], got 1.5"),
}


@pytest.mark.parametrize(("shapes", "kwargs", "message"), BAD.values(), ids=BAD)
def test_bad_input(shapes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ours(*(torch.ones(s) for s in shapes), **kwargs)


def test_bad_dtypes():
    q = torch.ones(5, 8)
    with pytest.raises(TypeError, match=r"key of dtype torch.float32 like query, got torch.float64"):
        ours(q, q.double(), q)
    with pytest.raises(TypeError, match=r"attn_mask of bools or floats, got torch.int64"):
        ours(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.int64))
