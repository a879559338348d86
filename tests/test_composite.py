"""composite: values and gradients against the reference in float64, and everything that a caller may do to it."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx.reference import composite as reference

LAYOUTS = ["packed", "batched"]
KINDS = ["sigmas", "alphas"]
NAMES = ["values", "rgbs", "t_starts", "t_ends", "background"]


class Rays:
    """Random rays; packed ones have 0, 1, many (several blocks of the kernel) and a few samples."""

    counts = (0, 1, 700, 5, 123, 256, 257, 33)

    def __init__(
        self, layout="packed", kind="sigmas", channels=3, dtype=torch.float32, device="cpu", counts=None, per_ray=False
    ):
        t_dtype = torch.float64 if dtype is torch.float64 else torch.float32
        self.kind = kind
        counts = torch.tensor(self.counts if counts is None else counts)
        if layout == "packed":
            n = int(counts.sum())
            self.offsets: Tensor | None = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)
            shape: tuple[int, ...] = (n,)
        else:
            self.offsets = None
            shape = (len(counts), 37)
        dt = 0.02 * torch.rand(shape, dtype=torch.float64) + 1e-3
        t1 = 1 + dt.cumsum(-1)
        values = torch.rand(shape, dtype=torch.float64) * (0.2 if kind == "alphas" else 8.0)
        background = torch.rand((len(counts), channels) if per_ray else (channels,), dtype=torch.float64)
        self.inputs = [
            values.to(device, dtype),
            torch.rand((*shape, channels), dtype=torch.float64).to(device, dtype),
            (t1 - dt).to(device, t_dtype),
            t1.to(device, t_dtype),
            background.to(device, t_dtype),
        ]

    def as_type(self, dtype):
        return [x.detach().to(dtype).requires_grad_() for x in self.inputs]

    def leaves(self):
        return [x.detach().clone().requires_grad_() for x in self.inputs]

    def run(self, inputs, **options):
        values, rgbs, t_starts, t_ends, background = inputs
        function = fastvfx.composite if self.kind == "sigmas" else fastvfx.composite_alphas
        options = {"return_weights": True, "return_transmittance": True, **options}
        return function(values, rgbs, t_starts, t_ends, self.offsets, background, **options)

    def run_reference(self, inputs, depth="expected", depth_threshold=0.5, early_stop_eps=0.0):
        values, rgbs, t_starts, t_ends, background = inputs
        return reference(
            values, rgbs, t_starts, t_ends, self.offsets, background, self.kind == "alphas", depth, depth_threshold,
            early_stop_eps,
        )  # fmt: skip


def loss_of(outputs) -> Tensor:
    """Touches every output with weights that differ from element to element."""
    total = torch.zeros((), dtype=torch.float64, device=outputs[0].device)
    for i, x in enumerate(outputs):
        w = torch.linspace(0.3, 1.7, max(x.numel(), 1), dtype=torch.float64, device=x.device)[: x.numel()]
        total = total + (torch.sin(w * (i + 1)) * x.double().flatten()).sum()
    return total


OPTIONS = {
    "expected": {},
    "accumulated": {"depth": "accumulated"},
    "first_hit": {"depth": "first_hit", "depth_threshold": 0.3},
    "early_stop": {"early_stop_eps": 0.05},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_match_float64(layout, kind, dtype, options, device):
    rays = Rays(layout, kind, dtype=dtype, device=device)
    exact_in, same_in, ours_in = rays.as_type(torch.float64), rays.leaves(), rays.leaves()
    exact = rays.run_reference(exact_in, **options)
    same = rays.run_reference(same_in, **options)
    ours = rays.run(ours_in, **options)
    for name, got, torch_same, want in zip(ours._fields, ours, same, exact, strict=True):
        assert_as_good_as_torch(got, torch_same, want, name, floor=4)
    grads = [torch.autograd.grad(loss_of(o), i) for o, i in ((ours, ours_in), (same, same_in), (exact, exact_in))]
    for name, got, torch_same, want in zip(NAMES, *grads, strict=True):
        assert_as_good_as_torch(got, torch_same, want, f"grad_{name}", floor=4)
        if dtype in (torch.float32, torch.float64):
            assert_same_direction(got, want, f"grad_{name}")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16, 33])
def test_any_number_of_channels(channels, isa):
    rays = Rays(channels=channels, per_ray=True)
    ours, exact = rays.leaves(), rays.as_type(torch.float64)
    out, want = rays.run(ours), rays.run_reference(exact)
    assert_as_good_as_torch(out.rgb, out.rgb, want[0], "rgb", floor=8)
    grads, wants = torch.autograd.grad(loss_of(out), ours), torch.autograd.grad(loss_of(want), exact)
    for name, got, expected in zip(NAMES, grads, wants, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_thin_samples_keep_their_relative_precision(isa):
    """alpha of tau = 1e-7 is 1e-7, not what is left of 1 - (1 - 1e-7) in float32. Oracle: float64."""
    sigmas = torch.full((1, 64), 1e-4)
    t = torch.arange(65) * 1e-3
    out = fastvfx.composite(sigmas, torch.ones(1, 64, 1), t[None, :-1], t[None, 1:])
    exact = -torch.expm1(-(sigmas.double() * t.diff().double()).sum())
    assert abs(out.opacity.double() - exact) < 1e-6 * exact


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, layout):
    rays = Rays(layout, kind, channels=2, dtype=torch.float64, counts=(0, 3, 1, 4))
    if layout == "batched":
        rays.inputs = [x[:, :4].contiguous() if x.dim() > 1 else x for x in rays.inputs]
    for options in ({}, {"depth": "accumulated"}):
        assert torch.autograd.gradcheck(lambda *x, o=options: rays.run(x, **o), rays.leaves())
    assert torch.autograd.gradgradcheck(lambda *x: rays.run(x), rays.leaves(), atol=1e-4)


def test_gradient_is_exact_at_alpha_one():
    """An opaque sample in the middle of a ray: nothing is divided by 1 - alpha = 0. Oracle: the definition."""
    alphas = torch.tensor([[0.5, 1.0, 0.25]], dtype=torch.float64, requires_grad=True)
    rgbs = torch.tensor([[[0.3], [0.7], [0.9]]], dtype=torch.float64)
    t = torch.arange(4, dtype=torch.float64)[None]
    out = fastvfx.composite_alphas(alphas, rgbs, t[:, :-1], t[:, 1:])
    (grad,) = torch.autograd.grad(out.rgb.sum(), alphas)
    a0, a1, a2 = alphas.detach()[0]
    c0, c1, c2 = rgbs[0, :, 0]
    want = torch.stack([
        c0 - a1 * c1 - (1 - a1) * a2 * c2,
        (1 - a0) * (c1 - a2 * c2),
        (1 - a0) * (1 - a1) * c2,
    ])  # fmt: skip
    torch.testing.assert_close(grad[0], want)


def test_second_derivative_equals_that_of_the_formula():
    rays = Rays(channels=3, counts=(0, 5, 300))
    results = []
    for run in (rays.run, rays.run_reference):
        inputs = rays.leaves()
        first = torch.autograd.grad(loss_of(run(inputs)), inputs, create_graph=True)
        penalty = sum((g**2).sum() for g in first)
        results.append(torch.autograd.grad(penalty, inputs))
    for name, got, want in zip(NAMES, *results, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_median_is_the_first_hit_at_one_half():
    rays = Rays()
    median = rays.run(rays.inputs, depth="median").depth
    half = rays.run(rays.inputs, depth="first_hit", depth_threshold=0.5).depth
    torch.testing.assert_close(median, half, rtol=0, atol=0)
    assert median[2] > 1  # the ray with 700 samples is opaque
    assert median[0] == 0 and median[1] == 0  # no samples; too thin to reach one half


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("where", [0, 1, 2, 3], ids=NAMES[:4])
def test_a_bad_sample_stays_in_its_ray(where, poison, device):
    rays = Rays(device=device)
    assert rays.offsets is not None
    clean = rays.run(rays.inputs)
    begin, end = int(rays.offsets[3]), int(rays.offsets[4])  # the ray of 5 samples
    rays.inputs[where][begin + 2] = poison
    leaves = rays.leaves()
    bad = rays.run(leaves)
    grads = torch.autograd.grad(loss_of([torch.nan_to_num(x) for x in bad]), leaves[:4])
    others = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(bad.rgb[others], clean.rgb[others], rtol=0, atol=0)
    torch.testing.assert_close(bad.depth[others], clean.depth[others], rtol=0, atol=0)
    for g in grads:
        assert torch.isfinite(g[:begin]).all() and torch.isfinite(g[end:]).all()


def test_infinite_density_is_an_opaque_sample_with_finite_gradients():
    sigmas = torch.tensor([[1.0, float("inf"), 2.0]], requires_grad=True)
    t = torch.arange(4.0)[None]
    starts, ends = t[:, :-1].clone().requires_grad_(), t[:, 1:].clone().requires_grad_()
    out = fastvfx.composite(sigmas, torch.rand(1, 3, 3), starts, ends, background=torch.ones(3))
    assert out.opacity.item() == pytest.approx(1.0, abs=1e-6)
    for g in torch.autograd.grad(out.rgb.sum(), (sigmas, starts, ends)):
        assert torch.isfinite(g).all()


def test_no_rays_and_no_samples(device):
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    empty = torch.empty(0, device=device, requires_grad=True)
    out = fastvfx.composite(empty, empty.reshape(0, 1).expand(0, 3), empty, empty, zero)
    assert out.rgb.shape == (0, 3) and out.opacity.shape == (0,)
    torch.autograd.grad(out.rgb.sum(), empty)
    out = fastvfx.composite(
        empty, empty.reshape(0, 1).expand(0, 3), empty, empty, zero.expand(5), background=torch.ones(3, device=device)
    )
    assert (out.rgb == 1).all() and (out.opacity == 0).all() and (out.depth == 0).all()
    out = fastvfx.composite(*(torch.empty(4, 0, device=device),), torch.empty(4, 0, 3, device=device),
                            *(torch.empty(4, 0, device=device),) * 2)  # fmt: skip
    assert (out.rgb == 0).all() and out.rgb.shape == (4, 3)


def test_early_stop_leaves_the_rest_out():
    rays = Rays()
    assert rays.offsets is not None
    out = rays.run(rays.inputs, early_stop_eps=0.1)
    full = rays.run(rays.inputs)
    assert full.transmittance is not None and out.weights is not None
    stopped = full.transmittance < 0.1
    assert stopped.any() and (out.weights[stopped] == 0).all()
    torch.testing.assert_close(out.weights[~stopped], full.weights[~stopped], rtol=0, atol=0)


def test_padding_behind_the_last_ray_is_ignored(device):
    rays = Rays(device=device)
    clean = rays.run(rays.inputs)
    tail = [torch.full((9, *x.shape[1:]), float("nan"), device=device, dtype=x.dtype) for x in rays.inputs[:4]]
    padded = [torch.cat([x, y]) for x, y in zip(rays.inputs[:4], tail, strict=True)]
    leaves = [x.requires_grad_() for x in (*padded, rays.inputs[4].clone())]
    out = rays.run(leaves, padded=True)
    torch.testing.assert_close(out.rgb, clean.rgb, rtol=0, atol=0)
    assert out.weights is not None and (out.weights[-9:] == 0).all()
    for g in torch.autograd.grad(out.rgb.sum(), leaves[:4]):
        assert (g[-9:] == 0).all()


def test_threads_and_levels_agree(isa, one_thread_and_many):
    rays = Rays(counts=(3, 0, 70, 500) * 60)
    runs = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        leaves = rays.leaves()
        out = rays.run(leaves)
        runs.append([*out, *torch.autograd.grad(loss_of(out), leaves[:4])])
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    exact = rays.run_reference(rays.as_type(torch.float64))
    assert_as_good_as_torch(runs[0][0], rays.run_reference(rays.inputs)[0], exact[0], f"rgb at {isa}", floor=4)


def test_strides_of_any_kind_give_the_same():
    rays = Rays("batched")
    straight = rays.run(rays.inputs)
    values, rgbs, t0, t1, background = rays.inputs
    strange = [
        values.t().contiguous().t(),
        rgbs.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.stack([t0, t0], -1)[..., 0],
        t1.flip(0).flip(0),
        torch.stack([background, background], -1)[:, 1],
    ]
    for a, b in zip(rays.run(strange), straight, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_mixed_dtypes_are_promoted():
    rays = Rays()
    values, rgbs, t0, t1, _ = rays.inputs
    mixed = fastvfx.composite(values.half(), rgbs, t0, t1, rays.offsets)
    same = fastvfx.composite(values.half().float(), rgbs, t0, t1, rays.offsets)
    torch.testing.assert_close(mixed.rgb, same.rgb, rtol=0, atol=0)
    assert fastvfx.composite(values, rgbs, t0.double(), t1.double(), rays.offsets).rgb.dtype is torch.float64


def test_int32_offsets():
    rays = Rays()
    assert rays.offsets is not None
    want = rays.run(rays.inputs).rgb
    rays.offsets = rays.offsets.int()
    torch.testing.assert_close(rays.run(rays.inputs).rgb, want, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    rays = Rays(layout, counts=(0, 3, 40))
    values, rgbs, t0, t1, background = rays.inputs
    common = (values, rgbs, t0, t1, rays.offsets, background)
    options = (False, 0, 0.5, 0.0, False)
    torch.library.opcheck(torch.ops.fastvfx.composite_fwd.default, (*common, *options, True, True))
    rgb, opacity, depth, w, T = torch.ops.fastvfx.composite_fwd(*common, *options, True, True)
    grads = (opacity, depth, torch.ones_like(rgb), opacity, depth, torch.ones_like(w), torch.ones_like(T))
    torch.library.opcheck(torch.ops.fastvfx.composite_bwd.default, (*common, *grads, *options, True, True))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_into_one_graph(layout, dynamic):
    rays = Rays(layout, counts=(0, 3, 40))

    def step(*inputs):
        out = rays.run(inputs)
        return out.rgb.sum() + out.depth.sum() + (out.weights**2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    eager_in, compiled_in = rays.leaves(), rays.leaves()
    eager = torch.autograd.grad(step(*eager_in), eager_in)
    traced = torch.autograd.grad(compiled(*compiled_in), compiled_in)
    for a, b in zip(eager, traced, strict=True):
        torch.testing.assert_close(a, b)


def test_fake_tensors_never_reach_the_kernel():
    with FakeTensorMode():
        t = torch.empty(4, 9)
        out = fastvfx.composite(torch.empty(4, 8), torch.empty(4, 8, 3), t[:, :-1], t[:, 1:], return_weights=True)
        assert out.rgb.shape == (4, 3) and out.weights is not None and out.weights.shape == (4, 8)


def test_meta_tensors_of_more_than_two_to_the_31_elements():
    n = 2**31 + 64
    meta = torch.empty(n, device="meta")
    out = fastvfx.composite(meta, torch.empty(n, 3, device="meta"), meta, meta, torch.empty(9, device="meta").long())
    assert out.rgb.shape == (8, 3)


def test_backend_can_be_chosen():
    rays = Rays()
    with fastvfx.backend("reference"):
        assert fastvfx.get_backend() == "reference"
        slow = rays.run(rays.inputs)
    with fastvfx.backend("native"):
        fast = rays.run(rays.inputs)
    torch.testing.assert_close(slow.rgb, fast.rgb, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected one of auto, native, reference, got 'fast'"):
        fastvfx.backend("fast")  # type: ignore[arg-type]


def test_nothing_of_sample_size_is_left_behind():
    """Memory: outputs only. The weights of 2^20 samples would show as 4 MiB."""
    n = 1 << 20
    offsets = torch.arange(0, n + 1, 64)
    t = torch.rand(n)
    inputs = (torch.rand(n), torch.rand(n, 3), t, t + 0.01, offsets)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvfx.composite(*inputs)
    allocated = sum(e.cpu_memory_usage for e in profile.events() if e.cpu_memory_usage > 0 and e.name == "[memory]")
    assert allocated < 1 << 20


BAD = {
    "not a tensor": (lambda a: a.update(sigmas=[1.0]), TypeError, "expected sigmas to be a torch.Tensor, got list"),
    "integers": (lambda a: a.update(sigmas=a["sigmas"].long()), TypeError, "expected sigmas of dtype float32"),
    "rank": (
        lambda a: a.update(sigmas=a["sigmas"][None, None]),
        ValueError,
        r"expected sigmas of shape \(n_samples,\)",
    ),
    "rgbs too few": (
        lambda a: a.update(rgbs=a["rgbs"][:-1]),
        ValueError,
        r"expected rgbs of shape \(n_samples, channels\) with n_samples=12, got \(11, 3\)",
    ),
    "no channels": (lambda a: a.update(rgbs=a["rgbs"][:, :0]), ValueError, r"got \(12, 0\)"),
    "t_starts": (
        lambda a: a.update(t_starts=a["t_starts"][1:]),
        ValueError,
        r"expected t_starts of shape .* got \(11,\)",
    ),
    "background": (lambda a: a.update(background=torch.ones(4)), ValueError, "expected background of shape"),
    "device": (lambda a: a.update(rgbs=a["rgbs"].to("meta")), ValueError, "expected rgbs on cpu like sigmas"),
    "offsets float": (
        lambda a: a.update(offsets=torch.zeros(2)),
        TypeError,
        "expected offsets of dtype int32 or int64",
    ),
    "offsets rank": (lambda a: a.update(offsets=torch.zeros(1, 2).long()), ValueError, "expected offsets of shape"),
    "offsets short": (
        lambda a: a.update(offsets=torch.tensor([0, 5, 11])),
        ValueError,
        "from 0 to n_samples=12, got 0 to 11",
    ),
    "offsets long": (
        lambda a: a.update(offsets=torch.tensor([0, 5, 13])),
        ValueError,
        "from 0 to n_samples=12, got 0 to 13",
    ),
    "offsets late": (lambda a: a.update(offsets=torch.tensor([1, 5, 12])), ValueError, "got 1 to 12"),
    "offsets unsorted": (
        lambda a: a.update(offsets=torch.tensor([0, 7, 5, 12])),
        ValueError,
        r"offsets\[1\]=7 > offsets\[2\]=5",
    ),
    "depth": (lambda a: a.update(depth="mean"), ValueError, "expected depth to be one of"),
    "threshold": (lambda a: a.update(depth_threshold=0.0), ValueError, r"expected depth_threshold in \(0, 1\]"),
    "early stop": (lambda a: a.update(early_stop_eps=1.0), ValueError, r"expected early_stop_eps in \[0, 1\)"),
    "padded batched": (
        lambda a: a.update(
            sigmas=torch.rand(3, 4),
            rgbs=torch.rand(3, 4, 3),
            t_starts=torch.rand(3, 4),
            t_ends=torch.rand(3, 4),
            offsets=None,
            padded=True,
        ),
        ValueError,
        "expected offsets with padded=True",
    ),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case, backend):
    spoil, error, message = case
    arguments = {
        "sigmas": torch.rand(12),
        "rgbs": torch.rand(12, 3),
        "t_starts": torch.rand(12),
        "t_ends": torch.rand(12),
        "offsets": torch.tensor([0, 5, 12]),
    }
    spoil(arguments)
    with fastvfx.backend(backend), pytest.raises(error, match=message):
        fastvfx.composite(**arguments)


def test_renderer_learns_its_background():
    renderer = fastvfx.VolumeRenderer(background=(0.1, 0.2, 0.3), learn_background=True)
    assert [name for name, _ in renderer.named_parameters()] == ["background"]
    t = torch.linspace(0, 1, 5).expand(2, 5)
    out = renderer(torch.zeros(2, 4), torch.rand(2, 4, 3), t[:, :-1], t[:, 1:])
    out.rgb.sum().backward()
    torch.testing.assert_close(out.rgb[0], renderer.background)
    torch.testing.assert_close(renderer.background.grad, torch.full((3,), 2.0))
    with pytest.raises(ValueError, match="expected a background"):
        fastvfx.VolumeRenderer(learn_background=True)
