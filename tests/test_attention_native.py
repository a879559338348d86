"""The native attention operators by themselves: values and every gradient against the dense formula in float64."""

from __future__ import annotations

from dataclasses import replace

import native_attention_cases as cases
import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction

from fastvfx import _ext

pytestmark = native

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def incoming(case: cases.Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the two outputs, in their dtypes."""
    batch, n_q, heads, _ = case.q.shape
    wide = torch.float64 if case.q.dtype is torch.float64 else torch.float32
    g = torch.Generator().manual_seed(batch * n_q * heads)
    grad_out = torch.randn((batch, n_q, heads, case.v.shape[3]), generator=g, dtype=torch.float64)
    return grad_out.to(case.q.dtype), torch.randn((batch, heads, n_q), generator=g, dtype=torch.float64).to(wide)


def by_formula(case: cases.Case, grad_out: torch.Tensor, grad_lse: torch.Tensor) -> dict[str, torch.Tensor]:
    """out, lse and the gradients of the dense formula in the dtype of the case."""
    names = [name for name in cases.GRADIENTS if getattr(case, name) is not None]
    leaf = replace(case, **{name: getattr(case, name).detach().clone().requires_grad_() for name in names})
    out, lse = cases.dense(leaf)
    loss = (out.double() * grad_out.double()).sum()
    loss = loss + (torch.where(lse.isfinite(), lse, 0.0).double() * grad_lse.double()).sum()
    inputs = [getattr(leaf, name) for name in names]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    found = {name: torch.zeros_like(x) if g is None else g for name, x, g in zip(names, inputs, grads, strict=True)}
    return {"out": out, "lse": lse, **found}


def natively(case: cases.Case, grad_out: torch.Tensor, grad_lse: torch.Tensor) -> dict[str, torch.Tensor]:
    out, lse = cases.forward(case)
    return {"out": out, "lse": lse, **cases.backward(case, out, lse, grad_out, grad_lse)}


def compare(case: cases.Case) -> None:
    grad_out, grad_lse = incoming(case)
    got = natively(case, grad_out, grad_lse)
    same = by_formula(case, grad_out, grad_lse)
    exact = by_formula(case.to(torch.float64), grad_out, grad_lse)
    assert torch.equal(got["lse"].isfinite(), exact["lse"].isfinite())
    for name, value in got.items():
        finite = exact[name].isfinite()
        # Rounded weights are summed over many keys or queries: 16 bits get a few roundings more than the formula.
        floor = 4.0 if case.q.dtype in (torch.float16, torch.bfloat16) else 20.0
        # Roundings of 16 bits have gone into these whatever their own dtype: of what is turned, and of out.
        if "bias" in name or name == "lse":
            value = value.to(case.q.dtype)
        assert_as_good_as_torch(value[finite], same[name][finite], exact[name][finite], name, floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(40))
def test_random_patterns(seed, dtype):
    compare(cases.random_case(seed).to(dtype))


@pytest.mark.parametrize("seed", range(100, 106))
def test_levels(seed, isa):
    for dtype in (torch.float32, torch.bfloat16):
        compare(cases.random_case(seed).to(dtype))


def full(batch: int, n: int, heads: int, dim: int, dtype: torch.dtype = torch.float32) -> cases.Case:
    """Every query attends every key."""
    q, k, v = (torch.randn(batch, n, heads, dim, dtype=torch.float64) for _ in range(3))
    spans = [torch.tensor([[[0, m]] * m], dtype=torch.int32).view(1, m, 2) for m in (n, 1, 1)]
    grid = (n, 1, 1)
    return cases.Case(q, k, v, grid, grid, spans, torch.zeros(heads, dtype=torch.int32)).to(dtype)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_dims(dim, dtype):
    case = full(1, 70, 2, dim, dtype)
    compare(replace(case, scale=dim**-0.5))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 98, 129, 300])
def test_lengths(n):
    compare(full(2, n, 1, 24))


def test_without_tiles(monkeypatch):
    """bf16 where there is AMX, without it, by vdpbf16ps: another order of the same sums."""
    if not _ext._C.active_amx():
        pytest.skip("no AMX here")
    case = cases.random_case(7).to(torch.bfloat16)
    _ext._C.set_amx(False)
    try:
        compare(case)
        compare(full(1, 200, 2, 64, torch.bfloat16))
    finally:
        _ext._C.set_amx(True)


def test_gradients_keep_their_direction():
    case = cases.random_case(3).to(torch.float32)
    grad_out, grad_lse = incoming(case)
    exact = by_formula(case.to(torch.float64), grad_out, grad_lse)
    for name, value in natively(case, grad_out, grad_lse).items():
        if name not in ("out", "lse"):
            assert_same_direction(value, exact[name], name)


@pytest.mark.parametrize("seed", range(200, 206))
def test_threads_do_not_change_a_bit(seed, one_thread_and_many):
    case = cases.random_case(seed).to(torch.float32)
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append(natively(case, *incoming(case)))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_packed_projection_is_read_in_place():
    """q, k and v as three parts of one tensor, and a gradient with strides of its own."""
    case = full(2, 50, 3, 16)
    q, k, v = torch.stack([case.q, case.k, case.v], 2).unbind(2)
    assert not q.is_contiguous()
    grad_out, grad_lse = incoming(case)
    strided = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    expected = natively(case, grad_out, grad_lse)
    got = natively(replace(case, q=q, k=k, v=v), strided, grad_lse)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("batch, n", [(0, 5), (2, 0)], ids=["no batch", "no tokens"])
def test_empty(batch, n):
    case = full(batch, n, 2, 8)
    for name, value in natively(case, *incoming(case)).items():
        assert value.numel() == 0, name


def test_queries_without_keys():
    case = full(1, 40, 2, 8)
    case.spans[0][0, 10:13] = torch.tensor([5, 5], dtype=torch.int32)
    got = natively(case, *incoming(case))
    assert (got["out"][:, 10:13] == 0).all() and (got["lse"][..., 10:13] == -torch.inf).all()
    assert (got["q"][:, 10:13] == 0).all()
    assert all(value.isfinite().all() for name, value in got.items() if name != "lse")


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_keys_never_leak(dtype, poison):
    """What a mask hides, or no span holds, has no influence whatever it is."""
    clean = full(2, 90, 2, 16, dtype)
    clean.spans[0][0, :, 0] = 3
    clean.kv_mask = torch.rand(2, 90) < 0.7
    clean.extra_k, clean.extra_v = torch.randn(2, 2, 9, 2, 16).to(dtype)
    clean.extra_mask = torch.rand(2, 9) < 0.5
    spoilt = replace(clean, k=clean.k.clone(), v=clean.v.clone(), extra_k=clean.extra_k.clone())
    for x in (spoilt.k, spoilt.v):
        x[~clean.kv_mask] = poison
        x[:, :3] = poison
    spoilt.extra_k[~clean.extra_mask] = poison
    expected = natively(clean, *incoming(clean))
    for name, value in natively(spoilt, *incoming(clean)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays_with_who_attends_it(which, dtype):
    """Queries attend the 5 keys around them; token 40 of one is NaN."""
    case = full(1, 90, 2, 16, dtype)
    at = torch.arange(90, dtype=torch.int32)
    case.spans[0][0] = torch.stack([(at - 2).clamp(min=0), (at + 3).clamp(max=90)], -1)
    expected = natively(case, *incoming(case))
    spoilt = replace(case, **{which: getattr(case, which).clone()})
    getattr(spoilt, which)[0, 40, 0, 3] = torch.nan
    got = natively(spoilt, *incoming(case))
    attending = range(40, 41) if which == "q" else range(38, 43)
    assert got["out"][0, attending, 0].isnan().any(-1).all()
    near = torch.zeros(90, dtype=torch.bool)
    near[36:45] = True  # who attends a key that somebody attends who attends the NaN
    for name, value in got.items():
        value, same = (x.transpose(1, 2) if name == "lse" else x for x in (value, expected[name]))
        assert torch.equal(value[0, ~near], same[0, ~near]), name
        assert torch.equal(value[0, :, 1], same[0, :, 1]), name


def test_infinite_bias():
    case = full(1, 40, 1, 8)
    case.bias = torch.zeros(1, 1, 40, 40)
    case.bias[..., 7] = -torch.inf
    case.bias[0, 0, 3] = -torch.inf  # nothing left
    case.bias[0, 0, 5, 5] = torch.inf
    got = natively(case, *incoming(case))
    assert (got["out"][0, 3] == 0).all() and got["lse"][0, 0, 3] == -torch.inf
    assert got["out"][0, 5].isnan().all()
    rest = [i for i in range(40) if i != 5]
    assert got["out"][0, rest].isfinite().all() and got["q"][0, rest].isfinite().all()
