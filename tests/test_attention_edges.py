"""``spatiotemporal_attention`` at its edges: masked NaN, empty rows and tensors, dropout, graphs, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import oracle
from marks import native
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastvfx
from fastvfx import spatiotemporal_attention
from fastvfx.functional.attention_autograd import packed
from fastvfx.patterns import (
    Blocks,
    CausalTime,
    Divided,
    Full,
    Neighborhood,
    Pattern,
    PerHead,
    ShiftedWindows,
    SlidingTile,
)
from fastvfx.reference.attention import Options

BACKENDS = [pytest.param("native", marks=native), "reference"]
GRID = (3, 4, 5)
MIXED = PerHead([Neighborhood((3, 2, 2), dilation=(1, d, 1)) for d in (1, 2)])  # a call for each dilation
N = 60


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with fastvfx.backend(request.param):
        yield request.param


def qkv(*batch_and_grid: int, heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*batch_and_grid, heads, dim, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_masked_keys_have_no_influence(bad: float, backend: str) -> None:
    q, k, v = qkv(2, *GRID)
    extra_k, extra_v = torch.randn(2, 2, 3, 2, 8).unbind()
    mask, extra_mask = torch.rand(2, N) < 0.5, torch.tensor([[True, False, True], [False, True, True]])
    options = {"kv_mask": mask, "extra_mask": extra_mask, "softcap": 3.0}

    def run(fill: float):
        def filled(x: Tensor, mask: Tensor) -> Tensor:
            x = x.detach().clone()
            x.flatten(1, 3 if x.dim() == 6 else 1)[~mask] = fill
            return x.requires_grad_()

        leaves = [q.detach().clone().requires_grad_(), filled(k, mask), filled(v, mask)]
        leaves += [filled(extra_k, extra_mask), filled(extra_v, extra_mask)]
        out, lse = spatiotemporal_attention(
            *leaves[:3], Neighborhood((3, 3, 3)), extra_k=leaves[3], extra_v=leaves[4], return_lse=True, **options
        )
        return [out, lse, *torch.autograd.grad((out.sum() + lse.sum()), leaves)]

    for got, expected in zip(run(bad), run(0.0), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_a_nan_stays_with_the_queries_that_attend_it(where: str, backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(1, *GRID))
    pattern = Neighborhood((1, 3, 3))
    clean, clean_lse = spatiotemporal_attention(q, k, v, pattern, return_lse=True)
    {"q": q, "k": k, "v": v}[where][0, 1, 2, 2, 1, 3] = math.nan
    out, lse = spatiotemporal_attention(q, k, v, pattern, return_lse=True)
    token = (1 * 4 + 2) * 5 + 2
    hit = torch.zeros(N, 2, dtype=torch.bool)
    hit[:, 1] = torch.arange(N) == token if where == "q" else pattern.mask(GRID)[:, token]
    out, clean = out.flatten(1, 3)[0], clean.flatten(1, 3)[0]  # (N, heads, dim)
    torch.testing.assert_close(out[~hit], clean[~hit])
    torch.testing.assert_close(lse[0].T[~hit], clean_lse[0].T[~hit])
    assert out[hit][..., 3].isnan().all() and (where == "v" or out[hit].isnan().all())
    assert where == "v" or lse[0].T[hit].isnan().all()


def test_queries_without_a_key_give_zero(backend: str) -> None:
    q, k, v = qkv(2, *GRID)
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[0] = False
    out, lse = spatiotemporal_attention(q, k, v, kv_mask=mask, return_lse=True)
    assert (out[0] == 0).all() and (lse[0] == -math.inf).all() and lse[1].isfinite().all()
    grads = torch.autograd.grad(out.sum() + lse[1].sum(), (q, k, v), create_graph=True)
    assert all((g[0] == 0).all() and g.isfinite().all() for g in grads)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v))
    assert all((g[0] == 0).all() and g.isfinite().all() for g in second)


def test_a_pattern_may_leave_queries_without_a_key(backend: str) -> None:
    indices = torch.full((1, 1, 12, 2), -1)
    indices[0, 0, 3] = torch.tensor([0, 7])
    pattern = Blocks((1, 4, 2), torch.cat([indices[:, :, :9]], 2))
    q, k, v = qkv(1, *GRID)
    out, lse = spatiotemporal_attention(q, k, v, pattern, return_lse=True)
    some = pattern.mask(GRID).any(1)
    assert 0 < some.sum() < N
    assert (out.flatten(1, 3)[0, ~some] == 0).all() and (lse[0][:, ~some] == -math.inf).all()
    assert lse[0][:, some].isfinite().all()


def test_infinite_biases(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(1, *GRID))
    bias = torch.zeros(1, 2, N, N)
    bias[0, 0, :, 30:] = -math.inf
    bias[0, 1, 5] = -math.inf
    bias[0, 1, 7, 9] = math.inf
    bias.requires_grad_()
    out, lse = spatiotemporal_attention(q, k, v, bias=bias, return_lse=True)
    out = out.flatten(1, 3)[0]
    half = spatiotemporal_attention(q, k.flatten(1, 3)[:, :30], v.flatten(1, 3)[:, :30], Full())
    torch.testing.assert_close(out[:, 0], half.flatten(1, 3)[0, :, 0])
    assert (out[5, 1] == 0).all() and lse[0, 1, 5] == -math.inf
    assert out[7, 1].isnan().all() and out[8, 1].isfinite().all()
    (grad,) = torch.autograd.grad(out[torch.arange(N) != 7].sum(), bias)
    finite = torch.arange(N) != 7
    assert grad[0, :, finite].isfinite().all() and (grad[0, 0, finite, 30:] == 0).all()


def test_dropout_is_a_function_of_the_seed(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(2, *GRID, heads=4))
    run = lambda seed, p=0.25: spatiotemporal_attention(q, k, v, dropout=p, seed=seed)  # noqa: E731
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert torch.equal(run(5, 0.0), spatiotemporal_attention(q, k, v))
    ones = torch.ones_like(v)
    share = spatiotemporal_attention(q * 0, k, ones, dropout=0.25, seed=7)[..., 0]  # kept weights over 0.75
    assert abs(share.mean() - 1) < 0.01 and 0.05 < share.std() < 0.1  # sqrt(1/3 / 60) = 0.075
    _, lse = spatiotemporal_attention(q, k, v, dropout=0.25, seed=7, return_lse=True)
    torch.testing.assert_close(lse, spatiotemporal_attention(q, k, v, return_lse=True)[1])


@native
@pytest.mark.parametrize("pattern", [Neighborhood((3, 2, 3)), MIXED], ids=["one", "per head"])
@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 63) - 1, 1 << 63, 123456789012345], ids=str)
def test_dropout_is_the_same_in_every_backend(seed: int, pattern: Pattern) -> None:
    q, k, v = (x.detach() for x in qkv(2, *GRID))
    options = {"extra_k": torch.randn(2, 3, 2, 8), "extra_v": torch.randn(2, 3, 2, 8), "dropout": 0.4, "seed": seed}
    results = []
    for name in ("native", "reference"):
        with fastvfx.backend(name):
            results.append(spatiotemporal_attention(q, k, v, pattern, **options))
    torch.testing.assert_close(*results)


def test_dropout_keeps_what_its_hash_says() -> None:
    """The hash itself, in Python's integers."""
    from fastvfx.reference.attention import dropout_keeps, dropout_rows

    word, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
        return x ^ (x >> 31)

    for seed in (0, -3, 1 << 70):
        row = mix(mix(seed & word) + ((1 * 3 + 2) * 10 + 4) * golden & word)
        expected = [(mix(row + key * golden & word) >> 32) >= int(0.3 * 2**32) for key in range(20)]
        got = dropout_keeps(dropout_rows(seed, 2, 3, 10, torch.device("cpu"))[1, 2, 4], torch.arange(20), 0.3)
        assert got.tolist() == expected


def test_heads_may_share_keys(backend: str) -> None:
    q, _, _ = qkv(2, *GRID, heads=6)
    _, k, v = qkv(2, *GRID, heads=2)
    got = spatiotemporal_attention(q, k, v, Divided("space"))
    repeated = [x.repeat_interleave(3, -2) for x in (k, v)]
    torch.testing.assert_close(got, spatiotemporal_attention(q, *repeated, Divided("space")))


def test_flat_and_strided_inputs(backend: str) -> None:
    packed = torch.randn(2, *GRID, 3, 2, 8)
    q, k, v = packed.unbind(4)  # as a projection to all three leaves them
    pattern = Neighborhood((3, 3, 3))
    expected = spatiotemporal_attention(q.contiguous(), k.contiguous(), v.contiguous(), pattern)
    torch.testing.assert_close(spatiotemporal_attention(q, k, v, pattern), expected)
    flat = spatiotemporal_attention(*(x.flatten(1, 3) for x in (q, k, v)), pattern, grid=GRID)
    torch.testing.assert_close(flat.unflatten(1, GRID), expected)
    moved = [x.movedim(-1, 1).contiguous().movedim(1, -1) for x in (q, k, v)]  # channels far apart
    torch.testing.assert_close(spatiotemporal_attention(*moved, pattern), expected)
    line = spatiotemporal_attention(*(x[:, 0, 0] for x in (q, k, v)), CausalTime())
    torch.testing.assert_close(line[:, 0], v[:, 0, 0, 0])


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)], ids=str)
@pytest.mark.parametrize("pattern", [Full(), Divided("space"), CausalTime(), ShiftedWindows(2, 1)], ids=str)
def test_nothing_in_nothing_out(shape: tuple[int, ...], pattern, backend: str) -> None:
    q, k, v = qkv(*shape)
    out, lse = spatiotemporal_attention(q, k, v, pattern, return_lse=True)
    assert out.shape == q.shape and lse.shape == (shape[0], 2, math.prod(shape[1:]))
    assert all(g.shape == x.shape for g, x in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True))


def test_no_keys_at_all(backend: str) -> None:
    q = torch.randn(2, 5, 2, 8, requires_grad=True)
    k = torch.randn(2, 0, 2, 8)
    out, lse = spatiotemporal_attention(q, k, k, return_lse=True)
    assert (out == 0).all() and (lse == -math.inf).all()
    extra = torch.randn(2, 3, 2, 8)
    out = spatiotemporal_attention(q, k, k, extra_k=extra, extra_v=extra)
    torch.testing.assert_close(out, spatiotemporal_attention(q, extra, extra))


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // max(x.element_size(), 1))
        return out


@pytest.mark.parametrize(
    "pattern", [Neighborhood((3, 3, 3)), Divided("time"), ShiftedWindows(4, 2), SlidingTile(4, (1, 1, 1))], ids=str
)
def test_memory_is_linear_in_the_tokens(pattern, backend: str) -> None:
    """No tensor of the size of all pairs, second derivative included."""
    grid = (8, 16, 16)
    q, k, v = qkv(1, *grid, heads=1, dim=4)
    with Largest() as largest:
        out = spatiotemporal_attention(q, k, v, pattern)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v))
    assert largest.numel < (8 * 16 * 16) ** 2 / 3


PATTERNS = [
    Neighborhood((2, 3, 3), causal=(True, False, False)),
    ShiftedWindows((2, 2, 2), (1, 1, 1)),
    CausalTime(2, 3, 1) & Neighborhood((None, 3, 3)),
    PerHead([Divided("time"), Neighborhood((2, 2, 2), dilation=(1, 2, 2))]),
    SlidingTile((2, 2, 2), (1, 1, 1)),
]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [*(pytest.param("native", p, marks=native) for p in PATTERNS[1:]), ("reference", PATTERNS[0])],
    ids=lambda p: str(p)[:30],
)
def test_one_graph_for_any_number_of_frames(name: str, pattern) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def function(q, k, v):
        return spatiotemporal_attention(q * 1.0, k, v, pattern)

    # The formula is large; that it is traced by autograd as well would test PyTorch.
    by = "aot_eager" if name == "native" else "eager"
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=by)
    with fastvfx.backend(name):
        for frames in (3, 6, 7):  # no other size is the same: torch would take them for one
            q, k, v = qkv(2, frames, 4, 5)
            out, expected = compiled(q, k, v), function(q, k, v)
            torch.testing.assert_close(out, expected)
            for a, b in zip(
                torch.autograd.grad(out.square().sum(), (q, k, v)),
                torch.autograd.grad(expected.square().sum(), (q, k, v)),
                strict=True,
            ):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@native
def test_one_tensor_may_be_given_more_than_once_to_a_graph() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 7, 2, 8, requires_grad=True)
    table = fastvfx.rotary_3d((7, 1, 1), 8)
    function = lambda x: spatiotemporal_attention(x, x, x, extra_k=x, extra_v=x, rotary=table).square().sum()  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    (grad,), (expected,) = torch.autograd.grad(compiled(x), x), torch.autograd.grad(function(x), x)
    torch.testing.assert_close(grad, expected)


def test_runs_on_fake_tensors(backend: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k, v = qkv(2, *GRID)
        out, lse = spatiotemporal_attention(q, k, v, Neighborhood((3, 3, 3)), return_lse=True)
        assert out.shape == q.shape and lse.shape == (2, 2, N)
        assert torch.autograd.grad(out.sum(), k)[0].shape == k.shape
    q, k, v = qkv(2, *GRID)  # nothing fake has been kept
    spatiotemporal_attention(q, k, v, Neighborhood((3, 3, 3))).sum().backward()


def test_gradients_after_inference_mode(backend: str) -> None:
    q, k, v = qkv(2, *GRID)
    pattern = Neighborhood((1, 3, 5))
    with torch.inference_mode():
        expected = spatiotemporal_attention(q, k, v, pattern)
    out = spatiotemporal_attention(q, k, v, pattern)
    assert torch.equal(out, expected)
    out.sum().backward()


def test_forward_derivatives(backend: str) -> None:
    """By forward_ad and torch.func, against the gradient's product with the same direction."""
    tensors = tuple(x.detach() for x in qkv(2, *GRID, dtype=torch.float64))
    directions = tuple(torch.randn_like(x) for x in tensors)
    function = lambda q, k, v: spatiotemporal_attention(q, k, v, Neighborhood((3, 2, 3)))  # noqa: E731
    _, expected = torch.autograd.functional.jvp(function, tensors, directions)
    _, got = torch.func.jvp(function, tensors, directions)
    torch.testing.assert_close(got, expected)
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(x, d) for x, d in zip(tensors, directions, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)
    grads = torch.func.grad(lambda *x: function(*x).square().sum(), argnums=(0, 1, 2))(*tensors)
    leaves = [x.clone().requires_grad_() for x in tensors]
    exact = torch.autograd.grad(function(*leaves).square().sum(), leaves)
    for a, b in zip(grads, exact, strict=True):
        torch.testing.assert_close(a, b)


@native
def test_gradients_are_the_same_for_any_number_of_threads(one_thread_and_many: list[int]) -> None:
    leaves = qkv(2, *GRID, heads=4)
    leaves += [torch.randn(4, 5, 7, 9, requires_grad=True), torch.randn(1, 4, N, N, requires_grad=True)]
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        out, lse = spatiotemporal_attention(
            *leaves[:3], CausalTime(), relative_bias=leaves[3], bias=leaves[4], return_lse=True
        )
        results.append([out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@native
def test_opcheck() -> None:
    q, k, v = qkv(2, N, dtype=torch.float32)
    (spans,) = Neighborhood((3, 2, 3)).spans(GRID)
    _, (shape, *numbers) = packed(Options(spans, scale=0.3))
    numbers = [list(shape), *numbers]
    args = (q, k, v, *[None] * 9, spans.t, spans.h, spans.w, torch.zeros(2, dtype=torch.int32))
    torch.library.opcheck(torch.ops.fastvfx.attention_fwd.default, (*args, *numbers))
    out, lse = torch.ops.fastvfx.attention_fwd(*args, *numbers)
    wanted = [True, True, True, False, False, False, False]
    torch.library.opcheck(
        torch.ops.fastvfx.attention_bwd.default,
        (torch.randn_like(out), torch.randn_like(lse), *args, out.detach(), lse.detach(), *numbers, wanted),
    )


def test_a_learned_rotation_gets_its_gradient(backend: str) -> None:
    q, k, v = qkv(1, *GRID, dtype=torch.float64)
    table = fastvfx.rotary_3d(GRID, 8, dtype=torch.float64).requires_grad_()
    flat = [x.flatten(1, 3) for x in (q, k, v)]
    out = spatiotemporal_attention(*flat, grid=GRID, rotary=table)
    expected, _ = oracle(*flat, Full(), grid=GRID, kv_grid=GRID, rotary=table)
    got, exact = (torch.autograd.grad(x.square().sum(), table)[0] for x in (out, expected))
    torch.testing.assert_close(got, exact)


def test_rotations_are_of_distances() -> None:
    """Scores do not change when all tokens are moved together, or the video continues elsewhere."""
    q, k, v = (x.detach() for x in qkv(1, *GRID, dim=16, dtype=torch.float64))
    here = fastvfx.rotary_3d(GRID, 16, dtype=torch.float64)
    there = fastvfx.rotary_3d(GRID, 16, start=(7, -2, 3.5), dtype=torch.float64)
    torch.testing.assert_close(
        spatiotemporal_attention(q, k, v, rotary=here), spatiotemporal_attention(q, k, v, rotary=there)
    )
    late = fastvfx.rotary_3d((2, 4, 5), 16, start=(1, 0, 0), dtype=torch.float64)
    assert torch.equal(late, here[20:])
    plain = fastvfx.rotary_3d(GRID, 16, split=(4, 4, 4))
    assert plain.shape == (N, 8, 2) and (plain[:, 6:, 0] == 1).all() and (plain[:, 6:, 1] == 0).all()


X = torch.randn(2, *GRID, 2, 8)
LINE = torch.randn(2, 6, 2, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], X, X), {}, TypeError, "expected q to be a torch.Tensor, got list"),
        ((X.int(), X, X), {}, TypeError, "expected q of dtype float32, .* got torch.int32"),
        ((X, X.double(), X), {}, TypeError, "expected k of dtype torch.float32 like q, got torch.float64"),
        ((X[0], X, X), {}, ValueError, r"expected q of shape \(batch, T, H, W, heads, dim\) or"),
        (
            (X, X, X),
            {"grid": (3, 4, 6)},
            ValueError,
            r"expected grid=\(3, 4, 6\) to be the shape of q, got \(3, 4, 5\)",
        ),
        (
            (LINE, LINE, LINE),
            {"grid": (2, 2, 2)},
            ValueError,
            r"expected q with T \* H \* W = 2 \* 2 \* 2 tokens, got 6",
        ),
        (
            (LINE, LINE, LINE),
            {"grid": (2, 3)},
            ValueError,
            r"expected grid to be three sizes \(T, H, W\), got \(2, 3\)",
        ),
        ((X, X[:1], X), {}, ValueError, r"expected k of shape .* with batch=2, dim=8, got \(1, 60, 2, 8\)"),
        ((X, X[..., :6], X), {}, ValueError, r"expected k of shape .* dim=8, got \(2, 60, 2, 6\)"),
        ((LINE, LINE, LINE[:, :4]), {}, ValueError, r"expected v with T \* H \* W = 6 \* 1 \* 1 tokens, got 4"),
        ((X, X[..., :1, :], X), {}, ValueError, "expected v with 60 tokens and 1 heads like k, got 60 and 2"),
        (
            (torch.randn(2, 6, 3, 8), LINE, LINE),
            {},
            ValueError,
            "expected the heads of k and v to divide those of q, got 2 and 3",
        ),
        ((X[..., :0], X[..., :0], X), {}, ValueError, "expected at least one head and head dimensions from 1 to 1024"),
        ((X, X, X, "full"), {}, TypeError, "expected pattern to be one of fastvfx.patterns, got 'full'"),
        ((X, X, X, Neighborhood(5)), {}, ValueError, r"expected kernel \* dilation <= 3, the time of the grid"),
        ((X, X, X, PerHead([Full()])), {}, ValueError, "expected one pattern for each of 2 heads, got 1"),
        ((X, X, X), {"extra_k": LINE}, ValueError, "expected extra_k and extra_v together, got one of them"),
        (
            (X, X, X),
            {"extra_k": LINE, "extra_v": LINE[:, :2]},
            ValueError,
            r"expected extra_v of shape .* = \(2, 6, 2, 8\), got \(2, 2, 2, 8\)",
        ),
        ((X, X, X), {"extra_mask": LINE[..., 0, 0] > 0}, ValueError, "expected extra_mask only with extra_k"),
        ((X, X, X), {"kv_mask": torch.ones(2, N)}, TypeError, "expected kv_mask of dtype torch.bool"),
        (
            (X, X, X),
            {"kv_mask": torch.ones(2, 5, dtype=torch.bool)},
            ValueError,
            r"expected kv_mask of shape \(batch, keys\) = \(2, 60\)",
        ),
        (
            (X, X, X),
            {"relative_bias": torch.zeros(2, 5, 7, 8)},
            ValueError,
            r"expected relative_bias of shape \(heads, 2 kt - 1",
        ),
        (
            (X, X, X),
            {"relative_bias": torch.zeros(2, 5, 5, 9)},
            ValueError,
            r"at least \(5, 7, 9\) entries an axis, .* got \(5, 5, 9\)",
        ),
        ((X, X, X), {"bias": torch.zeros(1, 2, N, 5)}, ValueError, r"expected bias of shape \(1 or 2, 2, 60, 60\)"),
        (
            (X, X, X),
            {"bias": torch.zeros(1, 2, N, N).double()},
            TypeError,
            "expected bias of float64 only with q of float64",
        ),
        (
            (X, X, X),
            {"rotary": torch.zeros(N, 3, 2)},
            ValueError,
            r"expected rotary of shape \(tokens, dim / 2, 2\) = \(60, 4, 2\)",
        ),
        (
            (LINE[:, 4:], LINE, LINE),
            {"rotary": torch.zeros(2, 4, 2)},
            ValueError,
            "expected kv_rotary, for there are other keys than queries",
        ),
        (
            (X, X, X),
            {"rotary_pairs": "both"},
            ValueError,
            "expected rotary_pairs to be one of neighbours, halves, got 'both'",
        ),
        ((X, X, X), {"dropout": 1.0}, ValueError, "expected dropout from 0 to below 1, got 1.0"),
        ((X, X, X), {"seed": 0.5}, TypeError, "expected seed to be an int, got float"),
        ((X, X, X), {"softcap": -1.0}, ValueError, "expected softcap >= 0, 0 for none, got -1.0"),
        ((X, X, X), {"scale": math.nan}, ValueError, "expected a finite scale, got nan"),
        ((X, X, X), {"scale": torch.ones(())}, TypeError, "expected scale to be a number, got Tensor"),
        ((X, X.to("meta"), X), {}, ValueError, "expected k on cpu like q, got it on meta"),
        (
            (X, X, X, Blocks(2, torch.zeros(1, 1, 5, 1).int())),
            {},
            ValueError,
            r"expected Blocks.indices of shape \(1 or 2, 1 or 2, 12 query blocks, n\)",
        ),
        (
            (X, X, X, Blocks(2, torch.full((1, 1, 12, 1), 12))),
            {},
            ValueError,
            "expected Blocks.indices from -1 to 11, .* got 12 to 12",
        ),
        (
            (X, X, X, Blocks(2, torch.ones(1, 1, 12, 2).int())),
            {},
            ValueError,
            "to list a key block at most once for a query block",
        ),
    ],
)
def test_bad_input_is_named(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        spatiotemporal_attention(*arguments, **options)
    assert str(raised.value).startswith("fastvfx.")


def test_bad_rotations_are_named() -> None:
    with pytest.raises(ValueError, match="rotary_3d: expected dim to be even and at least 2, got 7"):
        fastvfx.rotary_3d(GRID, 7)
    with pytest.raises(ValueError, match=r"expected split into even parts of at most dim=8 in sum, got \(4, 4, 4\)"):
        fastvfx.rotary_3d(GRID, 8, split=(4, 4, 4))
    with pytest.raises(ValueError, match=r"expected three numbers as grid, got \(3, 4\)"):
        fastvfx.rotary_3d((3, 4), 8)
