"""The faces of NVlabs' torch_utils.ops and rosinality's op: names, signatures, and that their networks run on them.

Their code may not be in this repository. With checkouts at hand, ``FASTVFX_STYLEGAN3`` and ``FASTVFX_ROSINALITY`` (the
folders) make the last tests run their networks, unmodified, on their reference operators and on ours.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from packaging.version import parse

import fastvfx
from fastvfx.compat import rosinality, torch_utils

OPS = torch_utils.ops


@pytest.fixture
def installed():
    """``torch_utils`` and ``op`` as a program of theirs sees them, for one test."""
    before = dict(sys.modules)
    torch_utils.install("torch_utils")
    rosinality.install("op")
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("torch_utils", "op"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("function", "names"),
    {
        OPS.bias_act.bias_act: "x b dim act alpha gain clamp impl",
        OPS.upfirdn2d.setup_filter: "f device normalize flip_filter gain separable",
        OPS.upfirdn2d.upfirdn2d: "x f up down padding flip_filter gain impl",
        OPS.upfirdn2d.filter2d: "x f padding flip_filter gain impl",
        OPS.upfirdn2d.upsample2d: "x f up padding flip_filter gain impl",
        OPS.upfirdn2d.downsample2d: "x f down padding flip_filter gain impl",
        OPS.filtered_lrelu.filtered_lrelu: "x fu fd b up down padding gain slope clamp flip_filter impl",
        OPS.conv2d_resample.conv2d_resample: "x w f up down padding groups flip_weight flip_filter",
        OPS.conv2d_gradfix.conv2d: "input weight bias stride padding dilation groups",
        OPS.conv2d_gradfix.conv_transpose2d: "input weight bias stride padding output_padding groups dilation",
        OPS.conv2d_gradfix.no_weight_gradients: "disable",
        OPS.grid_sample_gradfix.grid_sample: "input grid",
        OPS.fma.fma: "a b c",
        rosinality.upfirdn2d: "input kernel up down pad",
        rosinality.fused_leaky_relu: "input bias negative_slope scale",
    }.items(),
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_signatures(function, names):
    assert list(inspect.signature(function).parameters) == names.split()


def test_installed_modules_are_found_by_import(installed):
    import torch_utils.ops.upfirdn2d as module
    from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d
    from op.fused_act import fused_leaky_relu as same
    from torch_utils import misc, persistence
    from torch_utils.ops import bias_act, fma

    assert bias_act.bias_act is OPS.bias_act.bias_act
    assert fma.fma is OPS.fma.fma
    assert module.setup_filter is fastvfx.functional.setup_filter
    assert misc.assert_shape and persistence.persistent_class
    assert same is fused_leaky_relu and callable(upfirdn2d)
    assert FusedLeakyReLU is rosinality.FusedLeakyReLU
    assert conv2d_gradfix.no_weight_gradients is OPS.conv2d_gradfix.no_weight_gradients


def test_operators_alone_leave_the_rest_of_the_package(tmp_path):
    """In a process of its own: their ``misc`` stays theirs, and a stale import of their operators gives way."""
    theirs = tmp_path / "torch_utils"
    (theirs / "ops").mkdir(parents=True)
    (theirs / "__init__.py").touch()
    (theirs / "misc.py").write_text("whose = 'theirs'")
    (theirs / "ops" / "__init__.py").touch()
    (theirs / "ops" / "bias_act.py").write_text("raise ImportError('built a plugin')")
    script = """
        import torch_utils.ops
        from fastvfx.compat.torch_utils import install
        install("torch_utils.ops")
        from torch_utils import misc
        from torch_utils.ops import bias_act
        import torch_utils
        assert misc.whose == "theirs" and bias_act.activation_funcs["lrelu"].def_gain > 1.4
        assert torch_utils.ops.bias_act is bias_act
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env={**os.environ, "PYTHONPATH": path})


def test_install_refuses_what_is_no_name():
    with pytest.raises(ValueError, match="expected the dotted name"):
        torch_utils.install("torch utils/ops")


def test_impl_chooses_the_backend(monkeypatch):
    seen = []
    real = fastvfx.functional.bias_act

    def spy(*args):
        seen.append(fastvfx.get_backend())
        return real(*args)

    monkeypatch.setattr(fastvfx.functional, "bias_act", spy)
    x = torch.randn(2, 3, 4, 4)
    a, b = (OPS.bias_act.bias_act(x, torch.ones(3), act="lrelu", impl=impl) for impl in ("ref", "cuda"))
    assert seen == ["reference", "auto"]
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="impl to be 'cuda' or 'ref', got 'triton'"):
        OPS.bias_act.bias_act(x, impl="triton")


def test_activation_funcs_are_what_bias_act_computes():
    x = torch.randn(100)
    for name, spec in OPS.bias_act.activation_funcs.items():
        ours = OPS.bias_act.bias_act(x, act=name, dim=0)
        torch.testing.assert_close(ours, spec.func(x) * spec.def_gain)


def test_no_weight_gradients():
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    gradfix = OPS.conv2d_gradfix
    y = gradfix.conv2d(x, w, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1))
    with gradfix.no_weight_gradients():
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with gradfix.no_weight_gradients(disable=False):  # the outer one still holds
            y.sum().backward(retain_graph=True)
    assert w.grad is None
    g.square().sum().backward()  # R1: the weights' gradient of the penalty is wanted
    assert w.grad is not None and w.grad.abs().sum() > 0
    t = gradfix.conv_transpose2d(y.detach(), w, stride=2, output_padding=1)
    torch.testing.assert_close(t, F.conv_transpose2d(y.detach(), w, stride=2, output_padding=1))


def test_fma_broadcasts():
    a, b, c = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 1), (3, 4), (1,)))
    assert torch.autograd.gradgradcheck(OPS.fma.fma, (a, b, c))
    torch.testing.assert_close(OPS.fma.fma(a, b, c), a * b + c)


def test_rosinality_operators():
    x, kernel = torch.randn(2, 3, 6, 7), fastvfx.functional.setup_filter([1, 3, 3, 1])
    up = rosinality.upfirdn2d(x, kernel * 4, up=2, pad=(2, 1))
    torch.testing.assert_close(up, fastvfx.upfirdn2d(x, kernel, up=2, padding=(2, 1, 2, 1), gain=4))
    layer = rosinality.FusedLeakyReLU(3, negative_slope=0.1)
    torch.testing.assert_close(layer(x), F.leaky_relu(x, 0.1) * 2**0.5)
    assert list(layer.state_dict()) == ["bias"] and not list(rosinality.FusedLeakyReLU(3, bias=False).parameters())


def test_misc():
    misc = torch_utils.misc
    a = misc.constant([1.0, 2.0], shape=[3, 2])
    assert a.shape == (3, 2) and misc.constant([1.0, 2.0], shape=[3, 2]) is a
    misc.assert_shape(a, [None, 2])
    with pytest.raises(AssertionError, match="expected size 4 in dimension 1, got 2"):
        misc.assert_shape(a, [3, 4])
    with pytest.raises(AssertionError, match="expected 3 dimensions, got 2"):
        misc.assert_shape(a, [3, 4, 5])
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    misc.copy_params_and_buffers(source, target, require_all=True)
    torch.testing.assert_close(source.weight, target.weight)
    with pytest.raises(KeyError, match=r"0\.weight is missing in Linear"):
        misc.copy_params_and_buffers(source, torch.nn.Sequential(target), require_all=True)
    assert misc.profiled_function(torch.relu).__name__ == "relu"
    with misc.ddp_sync(source, False):
        pass
    assert len(misc.params_and_buffers(torch.nn.BatchNorm1d(2))) == 5


@torch_utils.persistence.persistent_class
class Base(torch.nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
        self.layers = torch.nn.Linear(width, depth)


@torch_utils.persistence.persistent_class
class Derived(Base):
    def __init__(self, width):
        super().__init__(width, depth=2)


def test_persistent_classes_remember_their_arguments():
    is_persistent = torch_utils.persistence.is_persistent
    base, derived = Base(3, depth=4), Derived(5)
    assert base.init_args == (3,) and base.init_kwargs.depth == 4
    assert derived.init_args == (5,) and derived.init_kwargs == {}
    assert is_persistent(base) and is_persistent(Base) and not is_persistent(torch.nn.Linear(1, 1))
    again = pickle.loads(pickle.dumps(copy.deepcopy(derived)))
    assert again.init_args == (5,)
    torch.testing.assert_close(again.layers.weight, derived.layers.weight)
    with pytest.raises(ValueError, match="run nothing"):
        torch_utils.persistence._reconstruct_persistent_obj({})


# --- their networks -----------------------------------------------------------------------------------------------


@pytest.fixture
def their_code(request, monkeypatch):
    """Their checkout on the path, and nothing of it left behind."""
    folder = os.environ.get(request.param)
    if folder is None or not Path(folder).is_dir():
        pytest.skip(f"{request.param} names no checkout")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(torch.utils, "cpp_extension", None, raising=False)  # nobody builds a plugin
    yield Path(folder)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def fresh(module: str, ours: bool):
    """A network module of theirs, imported anew on their operators or on ours."""
    for name in [m for m in sys.modules if m.partition(".")[0] in ("torch_utils", "training", "op", "model", "dnnlib")]:
        del sys.modules[name]
    if ours:
        torch_utils.install("torch_utils.ops")
    elif (
        "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None
    ):  # today's setuptools; theirs can't be imported without
        shim = ModuleType("pkg_resources")
        shim.parse_version = parse  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = shim
    return importlib.import_module(module)


def assert_interchangeable(theirs, ours, within=1e-4):
    """Each result to a part of its own largest value; 1e-4 is what exchanging networks promises in float32, through
    some twenty layers and two derivatives. What is 0 there must be 0 here."""
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=within * a.abs().max().item())


def losses(generator, discriminator, z):
    """Image, logits, and gradients of the adversarial loss, of R1 and of path length, with fixed noise."""
    generator.requires_grad_(True)
    ws = generator.mapping(z, None)
    image = generator.synthesis(ws, noise_mode="const") if hasattr(generator, "synthesis") else generator(ws)
    results = [image]
    parameters = [p for p in generator.parameters() if p.requires_grad]
    (g_ws,) = torch.autograd.grad((image * image.detach().cos()).sum() / image.shape[2], ws, create_graph=True)
    length = g_ws.square().sum(2).mean(1).sqrt()
    # Whether a parameter that does not count gets None or zeros is not the networks' concern: both are 0 here.
    results += torch.autograd.grad(length.sum(), parameters, allow_unused=True, materialize_grads=True)
    # Not the image: a rounding of it can be what takes a feature over the corner of the leaky ReLU.
    real = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    logits = discriminator(real, None)
    (g_real,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    penalty = g_real.square().sum([1, 2, 3]).mean() + F.softplus(-logits).mean()
    results += torch.autograd.grad(penalty, list(discriminator.parameters()))
    return [logits, *results]


@pytest.mark.parametrize("their_code", ["FASTVFX_STYLEGAN3"], indirect=True)
@pytest.mark.parametrize("network", ["stylegan2", "stylegan3-t", "stylegan3-r"])
def test_nvlabs_networks_run_unmodified(their_code, network):
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        module = fresh(f"training.networks_{network[:9]}", ours)
        sizes = {"channel_base": 1024, "channel_max": 16, "num_layers": 6, "num_critical": 2}
        if network == "stylegan2":
            sizes = {"channel_base": 512, "channel_max": 16}
        if network == "stylegan3-r":
            sizes |= {"conv_kernel": 1, "use_radial_filters": True}
        generator = module.Generator(8, 0, 16, 32, 3, mapping_kwargs={"num_layers": 2}, **sizes)
        for p in generator.parameters():
            torch.nn.init.normal_(p, std=0.3) if p.dim() == 0 else None
        discriminator = fresh("training.networks_stylegan2", ours).Discriminator(
            0, 32, 3, channel_base=512, channel_max=16, epilogue_kwargs={"mbstd_group_size": 2}
        )
        torch.manual_seed(1)
        results.append(losses(generator, discriminator, torch.randn(4, 8)))
    assert len(results[0]) == len(results[1]) > 20
    assert_interchangeable(*results)


@pytest.mark.parametrize("their_code", ["FASTVFX_ROSINALITY"], indirect=True)
def test_rosinality_networks_run_unmodified(their_code, installed):
    """Theirs needs a compiler and CUDA to be imported at all, so ours is compared with the fallback in PyTorch."""
    model = importlib.import_module("model")
    # In float64: of a million features, a rounding of float32 takes one or the other over the corner of the leaky ReLU.
    real = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    images = []
    for name in ("reference", "auto"):
        torch.manual_seed(0)
        generator, discriminator = model.Generator(32, 16, 2).double(), model.Discriminator(32).double()
        noise = [x.double() for x in generator.make_noise()]
        with fastvfx.backend(name):
            image, _ = generator([torch.randn(2, 16, dtype=torch.float64)], noise=noise)
            (g,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
            g.square().sum().backward()
        images.append([image.detach(), g.detach(), discriminator.convs[0][0].weight.grad])
    assert all(x.abs().max() > 0 for x in images[0])
    assert_interchangeable(*images, within=1e-10)
