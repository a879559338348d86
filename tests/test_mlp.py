"""fastvfx.mlp and fastvfx.MLP. Oracle: the PyTorch formula in float64 (fastvfx.reference.mlp)."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx import _ext
from fastvfx._ops.mlp import ACTIVATION, MAX_LAYERS
from fastvfx.reference import mlp as reference

SHAPES = [
    pytest.param((32, 64, 16), id="32-64-16"),
    pytest.param((32, 64, 64, 3), id="32-64-64-3"),
    pytest.param((3, 27, 31, 5), id="odd"),
    pytest.param((27, 16, 16, 16, 16, 16, 16, 16, 16, 1), id="8-hidden"),
    pytest.param((48, 128, 80), id="48-128-80"),
    pytest.param((31, 7), id="no-hidden"),
    pytest.param((1, 1, 1), id="one"),
]
DTYPES = [
    pytest.param(d, id=str(d).removeprefix("torch."))
    for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
]


def network(
    widths: tuple[int, ...], dtype: torch.dtype, bias: bool = False, n: int = 257, device: str = "cpu"
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """x (n, n_in), weights, biases and a gradient of y, the first three requiring gradients."""

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype)

    weights = [draw(b, a, scale=a**-0.5).requires_grad_() for a, b in pairwise(widths)]
    biases = [draw(b, scale=0.5).requires_grad_() for b in widths[1:]] if bias else []
    return draw(n, widths[0]).requires_grad_(), weights, biases, draw(n, widths[-1])


def run(function, x: Tensor, weights: list[Tensor], biases: list[Tensor], grad_y: Tensor, *activations: str):
    """y and the gradients of x, weights and biases, with copies of the arguments as leaves."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *weights, *biases)]
    n = len(weights)
    y = function(leaves[0], leaves[1 : 1 + n], leaves[1 + n :], *activations)
    return [y, *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]


def double(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


def check(x: Tensor, weights: list[Tensor], biases: list[Tensor], grad_y: Tensor, *activations: str) -> None:
    got = run(fastvfx.mlp, x, weights, biases, grad_y, *activations)
    same = run(reference, x, weights, biases, grad_y, *activations)
    exact = run(reference, x.double(), double(weights), double(biases), grad_y, *activations)
    names = ["y", "grad_x", *(f"grad_weights[{i}]" for i in range(len(weights)))]
    names += [f"grad_biases[{i}]" for i in range(len(biases))]
    for name, g, s, e in zip(names, got, same, exact, strict=True):
        assert g.dtype == s.dtype
        assert_as_good_as_torch(g, s, e, name)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", SHAPES)
def test_agrees_with_float64(widths, dtype, bias, device):
    check(*network(widths, dtype, bias, device=device), "relu", "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(ACTIVATION))
def test_activations(kind, dtype, device):
    x, weights, biases, grad_y = network((5, 20, 16), dtype, bias=True, device=device)
    check(x, weights, biases, grad_y, kind, "none")
    check(x, weights, biases, grad_y, "relu", kind)


@pytest.mark.parametrize("n", [1, 5, 47, 48, 49, 1007, 1009, 5000], ids=str)
def test_any_number_of_points(n, device):
    check(*network((32, 64, 64, 3), torch.float32, n=n, device=device), "relu", "sigmoid")


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_points_with_float32_weights(x_dtype, device):
    x, weights, biases, grad_y = network((32, 64, 16), torch.float32, device=device)
    check(x.to(x_dtype), weights, biases, grad_y, "relu", "none")
    got = run(fastvfx.mlp, x.to(x_dtype), weights, biases, grad_y)
    assert [g.dtype for g in got] == [x_dtype, x_dtype, torch.float32, torch.float32]


@native
@pytest.mark.parametrize("widths", [(32, 64, 64, 3), (3, 27, 31, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_set_levels(isa, dtype, widths):
    check(*network(widths, dtype, bias=True, n=1100), "relu", "sigmoid")


@pytest.mark.skipif(_ext._C is None or not _ext._C.detected_amx(), reason="no AMX")
@pytest.mark.parametrize("tiles", [False, True], ids=["dot-products", "tiles"])
@pytest.mark.parametrize("n", [1, 31, 127, 128, 261, 2900], ids=str)
@pytest.mark.parametrize("widths", SHAPES)
def test_products_in_tiles_and_without(widths, n, tiles):
    """Whole tiles, ragged ones, and depths that tiles do not take."""
    before = _ext._C.active_amx()
    _ext._C.set_amx(tiles)
    try:
        check(*network(widths, torch.bfloat16, bias=True, n=n), "relu", "none")
    finally:
        _ext._C.set_amx(before)


@native
def test_same_for_any_number_of_threads(one_thread_and_many):
    x, weights, biases, grad_y = network((32, 64, 64, 3), torch.float32, bias=True, n=20000)
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append(run(fastvfx.mlp, x, weights, biases, grad_y))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_directions_of_gradients(device):
    x, weights, biases, grad_y = network((32, 64, 64, 16), torch.float32, device=device)
    got = run(fastvfx.mlp, x, weights, biases, grad_y)
    exact = run(reference, x.double(), double(weights), double(biases), grad_y)
    for i, (g, e) in enumerate(zip(got[1:], exact[1:], strict=True)):
        assert_same_direction(g, e, f"gradient {i}")


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("kind", list(ACTIVATION))
def test_gradcheck_and_gradgradcheck(kind, bias):
    x, weights, biases, _ = network((3, 5, 4, 2), torch.float64, bias, n=6)
    n = len(weights)

    def function(x, *params):
        return fastvfx.mlp(x, params[:n], params[n:] or None, kind, "none" if kind == "relu" else kind)

    with torch.no_grad():
        for w in weights:
            w *= 0.4  # keeps nested exponentials small
    assert torch.autograd.gradcheck(function, (x, *weights, *biases))
    assert torch.autograd.gradgradcheck(function, (x, *weights, *biases))


def test_normal_of_a_distance_field_trains_its_weights(device):
    """An eikonal loss: its gradient passes through the gradient with respect to x only."""
    x, weights, _, _ = network((3, 64, 64, 1), torch.float32, device=device)

    def loss_gradients(function, x, weights):
        leaves = [t.detach().clone().requires_grad_() for t in (x, *weights)]
        (normal,) = torch.autograd.grad(
            function(leaves[0], leaves[1:], [], "softplus").sum(), leaves[0], create_graph=True
        )
        return torch.autograd.grad(((normal.norm(dim=-1) - 1) ** 2).mean(), leaves)

    got = loss_gradients(fastvfx.mlp, x, weights)
    same = loss_gradients(reference, x, weights)
    exact = loss_gradients(reference, x.double(), double(weights))
    for i, (g, s, e) in enumerate(zip(got, same, exact, strict=True)):
        assert_as_good_as_torch(g, s, e, f"gradient {i}")


@pytest.mark.parametrize("wanted", ["x", "weights", "weights[1]", "biases[0]"])
def test_only_the_gradients_that_are_asked_for(wanted, device):
    x, weights, biases, grad_y = network((8, 16, 4), torch.float32, bias=True, device=device)
    everything = run(fastvfx.mlp, x, weights, biases, grad_y)
    names = {"x": [0], "weights": [1, 2], "weights[1]": [2], "biases[0]": [3]}
    leaves = [t.detach().clone() for t in (x, *weights, *biases)]
    chosen = [leaves[i].requires_grad_() for i in names[wanted]]
    y = fastvfx.mlp(leaves[0], leaves[1:3], leaves[3:])
    for got, i in zip(torch.autograd.grad(y, chosen, grad_y), names[wanted], strict=True):
        assert torch.equal(got, everything[1 + i])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", list(ACTIVATION))
def test_a_bad_point_stays_alone(kind, bad, device):
    x, weights, _, grad_y = network((32, 64, 3), torch.float32, n=100, device=device)
    clean = run(fastvfx.mlp, x, weights, [], grad_y, kind, kind)
    spoilt = x.detach().clone()
    spoilt[37] = bad
    got = run(fastvfx.mlp, spoilt, weights, [], grad_y, kind, kind)
    others = torch.arange(100, device=device) != 37
    for a, b in zip(got[:2], clean[:2], strict=True):
        assert torch.equal(a[others], b[others])
    if bad != bad:
        assert got[0][37].isnan().all()


def test_no_points(device):
    x, weights, biases, grad_y = network((32, 64, 3), torch.float32, bias=True, n=0, device=device)
    y, grad_x, *grad_params = run(fastvfx.mlp, x, weights, biases, grad_y)
    assert y.shape == (0, 3) and grad_x.shape == (0, 32)
    assert all((g == 0).all() for g in grad_params)


def test_leading_dimensions(device):
    x, weights, _, _ = network((8, 16, 3), torch.float32, n=24, device=device)
    assert torch.equal(fastvfx.mlp(x.view(2, 3, 4, 8), weights), fastvfx.mlp(x, weights).view(2, 3, 4, 3))
    assert torch.equal(fastvfx.mlp(x[0], weights), fastvfx.mlp(x[:1], weights)[0])


def test_strides(device):
    """Transposed points and weights, and a broadcast gradient."""
    x, weights, _, _ = network((8, 16, 3), torch.float32, n=50, device=device)
    expected = run(fastvfx.mlp, x, weights, [], torch.ones(50, 3, device=device))
    x_t = x.detach().t().contiguous().t()
    weights_t = [w.detach().t().contiguous().t() for w in weights]
    leaves = [t.requires_grad_() for t in (x_t, *weights_t)]
    y = fastvfx.mlp(leaves[0], leaves[1:])
    assert torch.equal(y, expected[0])
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), expected[1:], strict=True):
        assert torch.equal(a, b)


@native
def test_does_not_store_hidden_layers():
    """What autograd keeps: x, y and the parameters."""
    x, weights, _, _ = network((32, 64, 64, 3), torch.float32, n=1000)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = fastvfx.mlp(x, weights)
    assert sum(t.numel() for t in kept) == x.numel() + y.numel() + sum(w.numel() for w in weights)


@native
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_opcheck(bias):
    x, weights, biases, grad_y = network((5, 16, 3), torch.float32, bias, n=10)
    x, weights, biases = x.detach(), [w.detach() for w in weights], [b.detach() for b in biases]
    y = torch.ops.fastvfx.mlp_fwd(x, weights, biases, 1, 3)
    torch.library.opcheck(torch.ops.fastvfx.mlp_fwd.default, (x, weights, biases, 1, 3))
    for asked in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.fastvfx.mlp_bwd.default, (x, y, grad_y, weights, biases, 1, 3, *asked))


@native
def test_compiles_to_one_graph():
    net = fastvfx.MLP(5, 3, n_neurons=16, output_activation="Sigmoid", bias=True)
    x = torch.randn(20, 5, requires_grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    inputs = [x, *net.parameters()]
    expected = torch.autograd.grad(net(x).square().sum(), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.autograd.grad(compiled(x).square().sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@native
def test_fake_tensors():
    with FakeTensorMode():
        net = fastvfx.MLP(5, 3, n_neurons=16)
        x = torch.empty(20, 5, dtype=torch.float16, requires_grad=True)
        y = net(x)
        assert y.shape == (20, 3) and y.dtype is torch.float16
        y.sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape
        assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


def _bad_calls():
    x, w = torch.zeros(4, 8), [torch.zeros(16, 8), torch.zeros(3, 16)]
    b = [torch.zeros(16), torch.zeros(3)]
    return [
        ("x-rank", ValueError, r"expected x of shape \(\.\.\., n_in\), got \(\)", (torch.zeros(()), w)),
        ("x-width", ValueError, r"expected weights\[0\] of shape .* n_in=7 like x, got \(16, 8\)", (x[:, :7], w)),
        ("chain", ValueError, r"weights\[1\] .* n_in=16 like weights\[0\], got \(3, 15\)", (x, [w[0], w[1][:, :15]])),
        ("w-rank", ValueError, r"expected weights\[0\] of shape", (x, [torch.zeros(8)])),
        ("w-empty", ValueError, r"expected weights\[0\] of shape", (x, [torch.zeros(0, 8)])),
        ("no-weights", ValueError, "expected 1 to 16 weights, got 0", (x, [])),
        ("many", ValueError, "expected 1 to 16 weights, got 17", (x, [torch.zeros(8, 8)] * (MAX_LAYERS + 1))),
        ("one-tensor", TypeError, "weights to be a sequence of tensors", (x, w[0])),
        ("x-list", TypeError, "expected x to be a torch.Tensor, got list", ([1.0], w)),
        ("x-int", TypeError, "expected x of dtype float32, .* got torch.int64", (x.long(), w)),
        ("w-mixed", TypeError, r"expected weights\[1\] of dtype torch.float32", (x, [w[0], w[1].half()])),
        ("x-double", TypeError, "both in float64 or neither", (x.double(), w)),
        ("b-count", ValueError, "expected 2 biases, one for each weight, got 1", (x, w, b[:1])),
        ("b-shape", ValueError, r"expected biases\[1\] of shape \(3,\)", (x, w, [b[0], b[0]])),
        ("activation", ValueError, "expected activation to be one of none, relu, .*, got 'gelu'", (x, w, b, "gelu")),
        ("output", ValueError, "expected output_activation to be one of", (x, w, b, "relu", "softmax")),
        ("device", ValueError, r"expected weights\[0\] on cpu like x, got it on meta", (x, [w[0].to("meta"), w[1]])),
    ]


@pytest.mark.parametrize("error, message, arguments", [pytest.param(*c[1:], id=c[0]) for c in _bad_calls()])
def test_bad_arguments_are_named(error, message, arguments):
    with pytest.raises(error, match=message):
        fastvfx.mlp(*arguments)


def test_backends_agree(device):
    x, weights, biases, grad_y = network((32, 64, 16), torch.float32, bias=True, device=device)
    native = run(fastvfx.mlp, x, weights, biases, grad_y, "relu", "exp")
    with fastvfx.backend("reference"):
        plain = run(fastvfx.mlp, x, weights, biases, grad_y, "relu", "exp")
    for a, b in zip(native, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class TestModule:
    def test_parameters_are_ordinary_matrices(self):
        net = fastvfx.MLP(27, 3, n_neurons=64, n_hidden_layers=2, bias=True)
        shapes = {name: tuple(p.shape) for name, p in net.state_dict().items()}
        assert shapes == {
            "layers.0.weight": (64, 27),
            "layers.0.bias": (64,),
            "layers.1.weight": (64, 64),
            "layers.1.bias": (64,),
            "layers.2.weight": (3, 64),
            "layers.2.bias": (3,),
        }

    def test_is_the_function(self):
        net = fastvfx.MLP(
            4, 2, n_neurons=16, n_hidden_layers=1, activation="LeakyReLU", output_activation="Exponential"
        )
        x = torch.randn(10, 4)
        assert torch.equal(net(x), fastvfx.mlp(x, list(net.parameters()), None, "leaky_relu", "exp"))

    def test_xavier_uniform(self):
        weight = fastvfx.MLP(64, 64, n_neurons=128, n_hidden_layers=1).layers[0].weight
        bound = (6 / (64 + 128)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert abs(weight.std() - bound / 3**0.5) < 0.03 * bound

    def test_seed(self):
        state = torch.get_rng_state()
        a, b = fastvfx.MLP(8, 8, seed=5), fastvfx.MLP(8, 8, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        other = fastvfx.MLP(8, 8, seed=6)
        for p, q, r in zip(a.parameters(), b.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q) and not torch.equal(p, r)

    def test_global_seed(self):
        torch.manual_seed(3)
        a = fastvfx.MLP(8, 8)
        torch.manual_seed(3)
        assert torch.equal(a.layers[0].weight, fastvfx.MLP(8, 8).layers[0].weight)

    def test_state_dict_and_deepcopy(self):
        a, b = fastvfx.MLP(8, 8, seed=1), fastvfx.MLP(8, 8, seed=2)
        b.load_state_dict(a.state_dict())
        x = torch.randn(7, 8)
        assert torch.equal(a(x), b(x)) and torch.equal(a(x), copy.deepcopy(a)(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_dtype_of_parameters(self, dtype):
        net = fastvfx.MLP(8, 3, dtype=dtype)
        assert all(p.dtype is dtype for p in net.parameters())
        assert net(torch.randn(5, 8, dtype=dtype)).dtype is dtype

    def test_compute_dtype(self):
        """bfloat16 products with float32 points and parameters; same-dtype formula: everything in bfloat16."""
        net = fastvfx.MLP(27, 3, bias=True, compute_dtype=torch.bfloat16)
        x = torch.randn(500, 27, requires_grad=True)
        grad_y = torch.randn(500, 3)
        y = net(x)
        assert y.dtype is torch.float32
        got = [y, *torch.autograd.grad(y, [x, *net.parameters()], grad_y)]
        assert all(g.dtype is torch.float32 for g in got)
        weights = [layer.weight for layer in net.layers]
        biases = [layer.bias for layer in net.layers]
        to = torch.bfloat16
        same = run(reference, x.to(to), [w.to(to) for w in weights], [b.to(to) for b in biases], grad_y)
        exact = run(reference, x.double(), double(weights), double(biases), grad_y)
        order = [0, 1, *(i for layer in range(3) for i in (2 + layer, 5 + layer))]
        for i, (g, j) in enumerate(zip(got, order, strict=True)):
            assert_as_good_as_torch(g, same[j], exact[j], f"result {i}")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"n_hidden_layers": 16}, "n_hidden_layers from 0 to 15, got 16"),
            ({"n_neurons": 0}, "expected positive widths"),
            ({"activation": "Swish"}, "expected activation to be one of"),
        ],
        ids=["layers", "neurons", "activation"],
    )
    def test_bad_options(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            fastvfx.MLP(8, 3, **arguments)

    def test_learns(self):
        """Two hundred steps of Adam fit a product of sines far better than its mean."""
        torch.manual_seed(0)
        net = fastvfx.MLP(2, 1, n_neurons=32, activation="Sine", bias=True, seed=0)
        x = torch.rand(512, 2) * 2 - 1
        target = torch.sin(3 * x[:, :1]) * torch.sin(2 * x[:, 1:])
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (net(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.02 * target.var().item()
