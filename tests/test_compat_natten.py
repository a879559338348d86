"""The face of NATTEN: names and signatures; theirs, where it is installed, and a formula of the test's own."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

from fastvfx.compat import natten as ours

# Its wheel is made from source and asks for torch while it is built, so CI does not install it.
theirs = importlib.import_module("natten") if importlib.util.find_spec("natten") else None
beside_natten = pytest.mark.skipif(theirs is None, reason="pip install --no-build-isolation natten")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

TUNING = "backend q_tile_{0} kv_tile_{0} backward_q_tile_{0} backward_kv_tile_{0} backward_kv_splits "
TUNING += "backward_use_pt_reduction run_persistent_kernel kernel_schedule torch_compile return_lse"
NA = "query key value kernel_size stride dilation is_causal scale additional_keys additional_values attention_kwargs "
VARLEN = "seqlens_Q seqlens_KV cumulative_seqlen_Q cumulative_seqlen_KV max_seqlen_Q max_seqlen_KV "
MODULE = "embed_dim num_heads kernel_size stride dilation is_causal qkv_bias qk_scale proj_drop"
SIGNATURES = {
    "na1d": NA + TUNING.format("shape"),
    "na2d": NA + TUNING.format("shape"),
    "na3d": NA + TUNING.format("shape"),
    "neighborhood_attention_generic": NA + TUNING.format("shape"),
    "attention": "query key value is_causal scale " + VARLEN + TUNING.format("size"),
    "merge_attentions": "outputs lse_tensors torch_compile use_autograd_fix",
    "NeighborhoodAttention1D": MODULE,
    "NeighborhoodAttention2D": MODULE,
    "NeighborhoodAttention3D": MODULE,
}


def positional(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


@pytest.mark.parametrize(("name", "names"), SIGNATURES.items(), ids=SIGNATURES)
def test_signatures(name, names):
    assert positional(getattr(ours, name)) == names.split()


def test_installed_modules_are_found_by_import(monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == "natten"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    try:
        ours.install("natten")
        from natten import NeighborhoodAttention2D, na2d
        from natten.functional import na3d, neighborhood_attention_generic
        from natten.modules import NeighborhoodAttentionGeneric

        assert NeighborhoodAttention2D is ours.NeighborhoodAttention2D
        assert issubclass(NeighborhoodAttention2D, NeighborhoodAttentionGeneric)
        assert (na2d, na3d) == (ours.na2d, ours.na3d) and callable(neighborhood_attention_generic)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


# --- the definition, written once more ----------------------------------------------------------------------------


def allowed_and_offset(length, kernel, stride, dilation, causal):
    """On one axis, (L, L): whether query i attends key j, and how many dilations j is behind i."""
    allowed, offset = torch.zeros(length, length, dtype=torch.bool), torch.zeros(length, length, dtype=torch.int64)
    for i, j in itertools.product(range(length), repeat=2):
        if (i - j) % dilation:
            continue
        group = len(range(i % dilation, length, dilation))
        a, b = i // dilation, j // dilation
        offset[i, j] = b - a
        if causal:
            leader = min(a // stride * stride + stride - 1, group - 1)
            allowed[i, j] = b <= a and leader - b < kernel
        else:
            leader = min(a // stride * stride + stride // 2, group - 1)
            right = kernel // 2 + kernel % 2 - 1
            centre = min(max(leader, kernel // 2), group - 1 - right)
            allowed[i, j] = centre - kernel // 2 <= b <= centre + right
    return allowed, offset


def formula(q, k, v, kernel, stride, dilation, causal, scale=None, extra=None, rpb=None):
    """Neighbourhood attention as softmax under a mask: (batch, *grid, heads, dim) in, output and lse out."""
    grid, heads = q.shape[1:-2], q.shape[-2]
    axes = [allowed_and_offset(*a) for a in zip(grid, kernel, stride, dilation, causal, strict=True)]
    mask = torch.ones((1, 1), dtype=torch.bool)
    for allowed, _ in axes:
        mask = torch.kron(mask.int(), allowed.int()).bool()
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    ratio = heads // k.shape[1]
    scores = q @ k.repeat_interleave(ratio, 1).mT * (scale or q.shape[-1] ** -0.5)
    if rpb is not None:
        index = [(offset + size - 1).clamp(0, 2 * size - 2) for (_, offset), size in zip(axes, kernel, strict=True)]
        n = len(grid)
        spread = [
            x.reshape([1] * a + [len(x)] + [1] * (n - 1) + [len(x)] + [1] * (n - 1 - a)) for a, x in enumerate(index)
        ]
        scores = scores + rpb[(slice(None), *spread)].reshape(heads, *mask.shape)
    scores = scores.masked_fill(~mask, -torch.inf)
    if extra is not None:
        extra_k, extra_v = (x.transpose(1, 2) for x in extra)
        scores = torch.cat([scores, q @ extra_k.repeat_interleave(ratio, 1).mT * (scale or q.shape[-1] ** -0.5)], -1)
        v = torch.cat([v, extra_v], 2)
    out = scores.softmax(-1) @ v.repeat_interleave(ratio, 1)
    return out.transpose(1, 2).unflatten(1, grid), scores.logsumexp(-1).transpose(1, 2).unflatten(1, grid)


CASES = {
    "1d": ((13,), (5,), (1,), (1,), (False,)),
    "1d even": ((13,), (4,), (3,), (1,), (False,)),
    "1d whole causal": ((9,), (9,), (1,), (1,), (True,)),
    "2d": ((7, 9), (3, 5), (2, 5), (1, 1), (False, False)),
    "2d dilated": ((9, 11), (3, 4), (1, 2), (3, 2), (False, True)),
    "2d whole": ((4, 5), (4, 5), (1, 1), (1, 1), (False, False)),
    "3d": ((4, 6, 5), (2, 3, 3), (1, 3, 2), (2, 1, 1), (True, False, False)),
    "3d causal": ((3, 5, 6), (3, 3, 2), (1, 1, 2), (1, 1, 3), (True, True, True)),
}
FUNCTIONS = {1: ours.na1d, 2: ours.na2d, 3: ours.na3d}


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("options", ["plain", "everything"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case, options):
    grid, *arguments = case
    everything = options == "everything"
    tensors = {
        "q": random(2, *grid, 4, 8),
        "k": random(2, *grid, 2 if everything else 4, 8),
        "v": random(2, *grid, 2 if everything else 4, 6 if everything else 8),
    }
    extra, scale = None, None
    if everything:
        scale = 0.2
        extra = (random(2, 3, 2, 8), random(2, 3, 2, 6))
        tensors |= {"extra_k": extra[0], "extra_v": extra[1], "rpb": random(4, *(2 * k - 1 for k in arguments[0]))}
    rpb = tensors.get("rpb")
    expected = formula(*(tensors[n] for n in "qkv"), *arguments, scale, extra, rpb)
    additional = dict(zip(("additional_keys", "additional_values"), extra, strict=True)) if extra else {}
    got = FUNCTIONS[len(grid)](
        *(tensors[n] for n in "qkv"), *arguments, scale=scale, rpb=rpb, return_lse=True, **additional
    )
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], check_dtype=False, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(expected[0])
    gradients = [torch.autograd.grad(x, list(tensors.values()), weight) for x in (got[0], expected[0])]
    for name, a, b in zip(tensors, *gradients, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def uncompiled(monkeypatch):
    """Their merging of attentions without the minutes that compiling takes it."""
    monkeypatch.setattr(theirs.attn_merge, "_merge_attentions_compile", theirs.attn_merge._merge_attentions_fn)


@beside_natten
@pytest.mark.parametrize("extra", [False, True], ids=["", "additional"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_beside_natten(case, extra, uncompiled):
    """Forward only: on CPUs it has no gradient."""
    grid, kernel, stride, dilation, causal = case
    if causal == (True,) and kernel == grid and not extra:
        pytest.skip("NATTEN hands this to its attention, which is not causal on CPUs")
    q, k, v = (torch.randn(2, *grid, heads, 16) for heads in (4, 2, 2))
    kwargs = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "is_causal": causal, "return_lse": True}
    attention = {}
    if extra:
        kwargs |= {"additional_keys": torch.randn(2, 3, 2, 16), "additional_values": torch.randn(2, 3, 2, 16)}
        attention = {"attention_kwargs": {"backend": "flex-fmha"}}
    name = f"na{len(grid)}d"
    with torch.no_grad():
        a = getattr(ours, name)(q, k, v, **kwargs, **attention)
        b = getattr(theirs, name)(q, k, v, backend="flex-fna", **kwargs, **attention)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@beside_natten
@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_theirs(name):
    theirs_own = getattr(theirs, name, None) or getattr(theirs.functional, name)
    assert positional(getattr(ours, name)) == positional(theirs_own)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_sequences_in_a_row(causal):
    q, k, v = random(1, 10, 4, 8), random(1, 12, 2, 8), random(1, 12, 2, 8)
    lengths = [torch.tensor(x, dtype=torch.int32) for x in ((2, 5, 3), (4, 3, 5))]
    out, lse = ours.attention(q, k, v, causal, seqlens_Q=lengths[0], seqlens_KV=lengths[1], return_lse=True)
    ends = [F.pad(x.cumsum(0), (1, 0)) for x in lengths]
    again = ours.attention(q, k, v, causal, cumulative_seqlen_Q=ends[0], cumulative_seqlen_KV=ends[1])
    assert torch.equal(out, again) and lse.shape == (1, 10, 4)
    rows = zip(
        *(x.split(n.tolist(), 1) for x, n in zip((q, k, v), (lengths[0], *[lengths[1]] * 2), strict=True)), strict=True
    )
    for part, got in zip(rows, out.split(lengths[0].tolist(), 1), strict=True):
        heads_first = (x.transpose(1, 2) for x in part)
        expected = F.scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True)
        torch.testing.assert_close(got, expected.transpose(1, 2))


def test_merge_attentions_is_attention_to_both():
    q, k, v = random(2, 5, 4, 8), random(2, 7, 4, 8), random(2, 7, 4, 8)
    parts = [ours.attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 3), slice(3, 7))]
    merged = ours.merge_attentions(*zip(*parts, strict=True))
    whole = ours.attention(q, k, v, return_lse=True)
    torch.testing.assert_close(merged, whole)
    weight = torch.randn_like(whole[0])
    torch.testing.assert_close(*(torch.autograd.grad(x[0], (q, k, v), weight) for x in (merged, whole)))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_modules(n):
    torch.manual_seed(1)
    module = getattr(ours, f"NeighborhoodAttention{n}D")
    layer = module(24, 3, kernel_size=3, stride=2, is_causal=True, rel_pos_bias=True, proj_drop=0.5).eval()
    assert list(layer.state_dict()) == ["rpb", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    assert layer.rpb.shape == (3, *[5] * n) and "kernel_size=(3" in repr(layer)
    x = torch.randn(2, *[5] * n, 24)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 3, 8)).unbind(-3)
    expected, _ = formula(q, k, v, [3] * n, [2] * n, [1] * n, [True] * n, rpb=layer.rpb)
    torch.testing.assert_close(layer(x), layer.proj(expected.flatten(-2)))
    layer(x).sum().backward()
    assert layer.rpb.grad.abs().sum() > 0


@beside_natten
def test_module_loads_their_weights():
    a = theirs.NeighborhoodAttention2D(32, 2, kernel_size=(3, 5), dilation=(2, 1))
    b = ours.NeighborhoodAttention2D(32, 2, kernel_size=(3, 5), dilation=(2, 1))
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 6, 7, 32)
    with torch.no_grad():
        torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3,), (2,)), ((3, 4), (1, 2)), ((2, 3, 3), (1, 2, 1))], ids=["1d", "2d", "3d"]
)
def test_unfused_operators(kernel, dilation):
    """Scores, softmax and weighted values are the fused operator."""
    n = len(kernel)
    grid = (4, 6, 8)[-n:]
    q, k, v = (random(2, *grid, 2, 4) for _ in range(3))
    rpb = random(2, *(2 * k - 1 for k in kernel))
    heads_first = [x.movedim(-2, 1) for x in (q, k, v)]
    scores = getattr(ours.functional, f"natten{n}dqkrpb")(*heads_first[:2], rpb, kernel, dilation)
    weights = scores.softmax(-1)
    out = getattr(ours.functional, f"natten{n}dav")(weights, heads_first[2], kernel, dilation).movedim(1, -2)
    fused = FUNCTIONS[n](q, k, v, kernel, 1, dilation, scale=1.0, rpb=rpb)
    torch.testing.assert_close(out, fused)
    weight = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(x, (q, k, v, rpb), weight) for x in (out, fused)))


def test_dropout_of_weights_in_training_only():
    layer = ours.NeighborhoodAttention1D(16, 2, 3, attn_drop=0.5)
    x = torch.randn(1, 8, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_one_graph():
    layer, x = (
        ours.NeighborhoodAttention2D(16, 2, 3, is_causal=(True, False), rel_pos_bias=True),
        torch.randn(1, 6, 7, 16),
    )
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_settings_are_remembered():
    ours.set_memory_usage_preference("strict")
    ours.use_deterministic_algorithms()
    assert ours.is_memory_usage_strict() and ours.are_deterministic_algorithms_enabled()
    ours.set_memory_usage_preference()
    ours.use_deterministic_algorithms(False)
    assert ours.is_memory_usage_default() and not ours.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="expected pref to be"):
        ours.set_memory_usage_preference("small")


X = torch.ones(1, 6, 7, 2, 8)
BAD = {
    "axes": (lambda: ours.na1d(X, X, X, 3), ValueError, r"na1d: expected query of shape \(batch, X, heads, dim\)"),
    "grids": (lambda: ours.na2d(X, X[:, 1:], X, 3), ValueError, r"on the grid \(6, 7\) of query"),
    "kernel too large": (lambda: ours.na2d(X, X, X, 8), ValueError, "kernel"),
    "kernel of three axes": (lambda: ours.na2d(X, X, X, (3, 3, 3)), ValueError, "kernel_size to be one value or 2"),
    "stride over kernel": (lambda: ours.na2d(X, X, X, 3, stride=4), ValueError, "stride"),
    "dilation does not fit": (lambda: ours.na2d(X, X, X, 3, dilation=3), ValueError, "dilation"),
    "keys without values": (lambda: ours.na2d(X, X, X, 3, additional_keys=X[:, 0]), ValueError, "or none, got one"),
    "rpb": (lambda: ours.na2d(X, X, X, 3, rpb=torch.ones(2, 5)), ValueError, "rpb of 3 axes"),
    "unknown option": (lambda: ours.na2d(X, X, X, 3, attention_kwargs={"mask": 1}), TypeError, "got mask"),
    "lengths": (
        lambda: ours.attention(X[0], X[0], X[0], seqlens_Q=torch.tensor([3, 4])),
        ValueError,
        "expected a batch of 1 and lengths Q",
    ),
    "unfused scores": (
        lambda: ours.functional.natten2dqkrpb(X, X[:, 1:], None, 3),
        ValueError,
        r"natten2dqkrpb: expected query and key of shape \(batch, heads, 2 axes, dim\)",
    ),
    "unfused values": (lambda: ours.functional.natten1dav(X, X, 3), ValueError, "natten1dav: expected attn and value"),
    "heads": (lambda: ours.NeighborhoodAttention2D(10, 3, 3), ValueError, "multiple of num_heads=3, got 10"),
    "module input": (lambda: ours.NeighborhoodAttention2D(8, 2, 3)(torch.ones(1, 6, 8)), ValueError, "X, Y, 8"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
