"""``spatiotemporal_attention``: values, gradients and second derivatives against a masked oracle in float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Case, oracle, random_case
from marks import native
from oracle import assert_as_good_as_torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import scaled_dot_product_attention

import fastvfx
from fastvfx.patterns import CausalTime, Divided, Full, Neighborhood, Pattern, PerHead, ShiftedWindows, SlidingTile
from fastvfx.reference.attention import Options, attention

BACKENDS = [pytest.param("native", marks=native), "reference"]
N_CASES = 36


def dense(q, k, v, pattern, *, grid, kv_grid, return_lse, rotary_pairs="neighbours", **options):
    """fastvfx.reference.attention for patterns of one dilation."""
    (spans,) = pattern.spans(grid, kv_grid, q.shape[2])
    blocks = pattern.split()[1]
    names = ("extra_k", "extra_v", "relative_bias", "bias")
    tensors = [options.pop(name, None) for name in names]
    options.setdefault("kv_rotary", options.get("rotary"))
    options.setdefault("scale", q.shape[-1] ** -0.5)
    if blocks is not None:
        options |= {"blocks": blocks.indices, "block": blocks.block}
    return attention(q, k, v, *tensors, Options(spans, rotary_halves=rotary_pairs == "halves", **options))


def compare(got: dict, exact: dict, case: Case) -> None:
    """Both are float64 and add up the same numbers in another order: some tens of roundings of the largest."""
    for name, expected in exact.items():
        largest = torch.cat([expected[expected.isfinite()].abs().flatten(), torch.ones(1)]).max().item()
        within = 64 * torch.finfo(torch.float64).eps * largest
        torch.testing.assert_close(
            got[name], expected, atol=within, rtol=0, msg=lambda m, n=name: f"{n} of {case}: {m}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(N_CASES))
def test_values_and_both_derivatives(seed: int, backend: str) -> None:
    case = random_case(seed)
    with fastvfx.backend(backend):
        compare(case.derivatives(), case.derivatives(oracle), case)


@pytest.mark.parametrize("seed", range(N_CASES))
def test_the_whole_matrix_agrees_too(seed: int) -> None:
    case = random_case(seed)
    if len(case.pattern.spans(case.grid, None, case.tensors["q"].shape[2])) == 1:
        compare(case.derivatives(dense), case.derivatives(oracle), case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(100, 108))
def test_as_good_as_torch_in_the_same_dtype(seed: int, dtype: torch.dtype, backend: str) -> None:
    """The oracle's formula in the same dtype is what torch would compute."""
    case = random_case(seed)
    case.tensors = {n: x.to(dtype).double() for n, x in case.tensors.items()}  # what is stored is exact
    if "rotary" in case.options:
        case.options["rotary"] = case.options["rotary"].float()
    exact, same = case.derivatives(oracle, second=False), case.derivatives(oracle, dtype, second=False)
    with fastvfx.backend(backend):
        got = case.derivatives(dtype=dtype, second=False)
    for name, expected in exact.items():
        assert got[name].dtype is (torch.float32 if name == "lse" else dtype), name
        assert_as_good_as_torch(got[name], same[name], expected, f"{name} of {case}")


PATTERNS = [
    Full(),
    Divided("time"),
    Divided("space"),
    Neighborhood((2, 3, 3)),
    Neighborhood((2, 2, 3), (2, 1, 2), (2, 2, 1), (True, False, True)),
    ShiftedWindows((2, 3, 4), (1, 1, 2)),
    SlidingTile((2, 2, 2), (1, 3, 2)),
    CausalTime(2, 2, 1),
    PerHead([Divided("time"), CausalTime(), Full(), Neighborhood((1, 2, 2), dilation=(1, 2, 3))]),
    Neighborhood((3, 3, 3)) & CausalTime(),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: str(p)[:30])
def test_agrees_with_sdpa(pattern: Pattern, backend: str) -> None:
    grid = (4, 5, 6)
    q, k, v = (torch.randn(2, *grid, n, 16, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2))
    flat = [x.flatten(1, 3).transpose(1, 2) for x in (q, k, v)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = scaled_dot_product_attention(*flat, attn_mask=pattern.mask(grid), enable_gqa=True)
    expected = expected.transpose(1, 2).unflatten(1, grid)
    with fastvfx.backend(backend):
        out = fastvfx.spatiotemporal_attention(q, k, v, pattern)
    torch.testing.assert_close(out, expected)
    g = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stride", [1, 2], ids=["stride 1", "stride 2"])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("dilation", [1, 2], ids=["", "dilated"])
def test_agrees_with_natten(stride: int, causal: bool, dilation: int) -> None:
    natten = pytest.importorskip("natten")
    grid, kernel = (6, 7, 9), (3, 2, 4)
    three = {"stride": (stride, 1, stride), "dilation": (1, dilation, dilation), "is_causal": (causal, False, causal)}
    q, k, v = (torch.randn(1, *grid, 2, 16) for _ in range(3))
    theirs = natten.na3d(q, k, v, kernel_size=kernel, backend="flex-fna", **three)
    pattern = Neighborhood(kernel, three["stride"], three["dilation"], three["is_causal"])
    ours, exact = (
        fastvfx.spatiotemporal_attention(*(x.to(d) for x in (q, k, v)), pattern) for d in (q.dtype, torch.float64)
    )
    # Theirs has no float64, but is as near to ours in float64 as ours in float32 is, and the other way round.
    assert_as_good_as_torch(theirs, ours, exact, "natten")
    assert_as_good_as_torch(ours, theirs, exact, "fastvfx")


def small(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("everything", [False, True], ids=["plain", "every option"])
def test_gradcheck(everything: bool, backend: str) -> None:
    grid = (2, 1, 2)
    tensors = {"q": small(1, *grid, 2, 4), "k": small(1, *grid, 1, 4), "v": small(1, *grid, 1, 3)}
    options: dict = {}
    if everything:
        tensors |= {"extra_k": small(1, 1, 1, 4), "extra_v": small(1, 1, 1, 3)}
        tensors |= {"relative_bias": small(2, 3, 1, 3), "bias": small(1, 2, 4, 4)}
        options = {"softcap": 2.0, "dropout": 0.2, "seed": 3, "kv_mask": torch.arange(4)[None] != 3}
        options["rotary"] = fastvfx.rotary_3d(grid, 4, dtype=torch.float64)

    def function(*given):
        named = dict(zip(tensors, given, strict=True))
        q, k, v = (named.pop(n) for n in "qkv")
        return fastvfx.spatiotemporal_attention(q, k, v, Neighborhood((2, 1, 2)), return_lse=True, **named, **options)

    with fastvfx.backend(backend):
        assert gradcheck(function, tuple(tensors.values()))
        assert gradgradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_derivative(backend: str) -> None:
    q, k, v = (small(1, 2, 2, 2, 1, 4) for _ in range(3))

    def third() -> torch.Tensor:
        out = fastvfx.spatiotemporal_attention(q, k, v, Neighborhood((2, 1, 2)))
        (g,) = torch.autograd.grad(out.pow(3).sum(), q, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), k, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), v)[0]

    def exact() -> torch.Tensor:
        def flat(x):
            return x.flatten(1, 3)

        out, _ = oracle(flat(q), flat(k), flat(v), Neighborhood((2, 1, 2)), grid=(2, 2, 2), kv_grid=(2, 2, 2))
        (g,) = torch.autograd.grad(out.pow(3).sum(), q, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), k, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), v)[0]

    with fastvfx.backend(backend):
        torch.testing.assert_close(third(), exact())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [Full(), CausalTime(), CausalTime(2, 3, 1), Neighborhood((3, 2, 2))], ids=str)
def test_queries_may_be_the_last_frames(pattern: Pattern, backend: str) -> None:
    """With a cache of keys: the same as the last rows of the whole."""
    grid, last = (6, 2, 3), (2, 2, 3)
    q, k, v = (torch.randn(2, *grid, 2, 8, dtype=torch.float64) for _ in range(3))
    table = torch.randn(2, 11, 3, 5, dtype=torch.float64)
    rotary = fastvfx.rotary_3d(grid, 8, dtype=torch.float64)
    with fastvfx.backend(backend):
        whole = fastvfx.spatiotemporal_attention(q, k, v, pattern, rotary=rotary, relative_bias=table)
        part = fastvfx.spatiotemporal_attention(
            q[:, 4:], k, v, pattern, rotary=rotary[24:], kv_rotary=rotary, relative_bias=table
        )
    assert part.shape == (2, *last, 2, 8)
    torch.testing.assert_close(part, whole[:, 4:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("pattern", "grid", "kv_grid"),
    [(Full(), (2, 3, 4), (3, 5, 2)), (Full(), (3, 1, 1), (1, 1, 1)), (Divided("space"), (3, 1, 1), (3, 2, 4))],
    ids=str,
)
def test_queries_may_lie_on_another_grid(pattern: Pattern, grid: tuple, kv_grid: tuple, backend: str) -> None:
    n_q, n_k = torch.tensor(grid).prod(), torch.tensor(kv_grid).prod()
    tensors = {n: torch.randn(2, n_q if n == "q" else n_k, 2, 8, dtype=torch.float64) for n in "qkv"}
    tensors["relative_bias"] = torch.randn(2, 7, 9, 9, dtype=torch.float64)
    tables = [fastvfx.rotary_3d(g, 8, dtype=torch.float64) for g in (grid, kv_grid)]
    case = Case(pattern, grid, kv_grid, tensors, {"rotary": tables[0], "kv_rotary": tables[1]})
    with fastvfx.backend(backend):
        compare(case.derivatives(), case.derivatives(oracle), case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_keys_merge_by_their_sums(backend: str) -> None:
    q, k, v = (torch.randn(2, 12, 2, 8, dtype=torch.float64) for _ in range(3))
    with fastvfx.backend(backend):
        whole, lse = fastvfx.spatiotemporal_attention(q, k, v, return_lse=True)
        parts = [
            fastvfx.spatiotemporal_attention(q, k[:, part], v[:, part], return_lse=True)
            for part in (slice(0, 5), slice(5, 12))
        ]
    weights = torch.stack([s for _, s in parts]).softmax(0).transpose(2, 3)[..., None]
    torch.testing.assert_close((torch.stack([o for o, _ in parts]) * weights).sum(0), whole)
    torch.testing.assert_close(torch.stack([s for _, s in parts]).logsumexp(0), lse)
