"""Weights of generators and discriminators from files: every format, every lie that a file can tell.

The pickles are made here in the form of NVIDIA's, by stand-ins for the two modules that theirs name.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastvfx.models import _unpickle, stylegan2, stylegan3
from fastvfx.models.checkpoint import CheckpointError
from fastvfx.models.stylegan2 import (
    DiscriminatorConfig,
    GeneratorConfig,
    MappingConfig,
    SynthesisConfig,
    from_rosinality,
    to_rosinality,
)

SMALL = {"channel_base": 64, "channel_max": 8}
CONFIG = GeneratorConfig(8, 0, 12, 16, 3, MappingConfig(num_layers=2), SynthesisConfig(**SMALL))
D_CONFIG = DiscriminatorConfig(0, 16, 3, **SMALL)
CONFIG3 = stylegan3.GeneratorConfig(
    8, 0, 12, 16, 3, MappingConfig(num_layers=2), stylegan3.SynthesisConfig(256, 12, num_layers=4)
)


@pytest.fixture(autouse=True)
def official_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch_utils.persistence`` and ``dnnlib.util`` for the pickler to name. Reading must not need them."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("ran the code of a pickle")

    class EasyDict(dict[str, Any]):
        pass

    for module, thing in {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}.items():
        stand_in = types.ModuleType(module)
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(stand_in, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, module, stand_in)
        package = module.partition(".")[0]
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))


class Official:
    """A module as NVIDIA's persistence pickles it."""

    def __init__(self, module: nn.Module, attributes: dict[str, dict[str, Any]], kwargs: Any = None, path: str = ""):
        self.module, self.attributes, self.kwargs, self.path = module, attributes, kwargs, path

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "training": False,
            "_parameters": OrderedDict(self.module._parameters),
            "_buffers": OrderedDict(self.module._buffers),
            "_non_persistent_buffers_set": set(),
            "_modules": OrderedDict(
                (name, Official(child, self.attributes, None, f"{self.path}.{name}".strip(".")))
                for name, child in self.module.named_children()
            ),
            "_init_kwargs": sys.modules["dnnlib.util"].EasyDict(self.kwargs or {}),
            "size": np.broadcast_to(np.asarray(3), [2]),
            "rate": np.float64(16),
            **self.attributes.get(self.path, {}),
        }
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('ran the code of a pickle')",
            "class_name": type(self.module).__name__,
            "state": state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def official(
    net: nn.Module, attributes: dict[str, dict[str, Any]] | None = None, kwargs: dict[str, Any] | None = None
) -> Official:
    return Official(net, attributes or {}, kwargs)


def dumped(path: Path, content: object, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def images(net: nn.Module) -> Tensor:
    """Some, the same for the same weights."""
    c = torch.eye(4)[:2] if net.c_dim else None
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net(z, c, truncation_psi=0.7, noise_mode="const", force_fp32=True)


def generator(**changes: Any) -> stylegan2.Generator:
    net = stylegan2.Generator(replace(CONFIG, **changes))
    with torch.no_grad():
        for name, x in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith(("bias", "noise_strength", "w_avg")):
                x.add_(0.3 * torch.randn_like(x))
    return net


# --- NVIDIA's pickles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_stylegan2(tmp_path: Path, protocol: int) -> None:
    average, last = generator(), generator()
    judge = stylegan2.Discriminator(D_CONFIG)
    content = {"G": official(last), "D": official(judge), "G_ema": official(average), "augment_pipe": None}
    path = dumped(tmp_path / "network.pkl", content, protocol)
    assert torch.equal(images(stylegan2.load_generator(path)), images(average))
    assert torch.equal(images(stylegan2.load_generator(path, "G")), images(last))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(stylegan2.load_discriminator(path)(x), judge(x))


def test_what_only_the_modules_know(tmp_path: Path) -> None:
    """Clamps, 16-bit blocks, learning rates and averages are no tensors."""
    attributes: dict[str, dict[str, Any]] = {
        "mapping": {"w_avg_beta": 0.995},
        "mapping.fc0": {"bias_gain": 0.1, "activation": "relu"},
        "synthesis.b4": {"architecture": "skip"},
        "synthesis.b4.conv1": {"conv_clamp": None, "activation": "swish"},
        "synthesis.b16": {"use_fp16": True},
    }
    path = dumped(tmp_path / "network.pkl", {"G_ema": official(generator(), attributes)})
    config = stylegan2.load_generator(path).config
    assert config.mapping == MappingConfig(2, lr_multiplier=0.1, activation="relu", w_avg_beta=0.995)
    assert config.synthesis.conv_clamp is None
    assert config.synthesis.activation == "swish"
    assert config.synthesis.num_half_res == 1
    attributes = {"b4": {"cmap_dim": 0}, "b4.mbstd": {"group_size": 8}, "b4.conv": {"conv_clamp": 64.0}}
    path = dumped(tmp_path / "network.pkl", {"D": official(stylegan2.Discriminator(D_CONFIG), attributes)})
    judge = stylegan2.load_discriminator(path).config
    assert judge.mbstd_group_size == 8 and judge.conv_clamp == 64


@pytest.mark.parametrize("radial", [False, True], ids=["T", "R"])
def test_a_pickle_of_stylegan3(tmp_path: Path, radial: bool) -> None:
    synthesis = replace(CONFIG3.synthesis, use_radial_filters=radial, conv_kernel=1 if radial else 3, margin_size=8)
    net = stylegan3.Generator(replace(CONFIG3, synthesis=synthesis))
    kwargs = {"channel_base": 256, "channel_max": 12, "margin_size": 8, "magnitude_ema_beta": 0.5}
    attributes = {"synthesis": {"num_fp16_res": 4}, "synthesis.L0_32_12": {"conv_clamp": 256}}
    path = dumped(tmp_path / "network.pkl", {"G_ema": official(net, attributes, kwargs)})
    loaded = stylegan3.load_generator(path)
    assert loaded.config.synthesis == replace(synthesis, num_half_res=4, magnitude_ema_beta=0.5)
    assert torch.equal(images(loaded), images(net))


def test_frozen_layers_are_buffers_in_a_pickle(tmp_path: Path) -> None:
    judge = stylegan2.Discriminator(replace(D_CONFIG, freeze_layers=3))
    loaded = stylegan2.load_discriminator(dumped(tmp_path / "network.pkl", {"D": official(judge)}))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(loaded(x), judge(x))


# --- pickles of the TensorFlow releases -------------------------------------------------------------------------------


class Network:
    """A network as ``dnnlib.tflib.network.Network`` pickles it."""

    def __init__(self, variables: dict[str, np.ndarray[Any, Any]], **options: Any) -> None:
        names = {name.partition("/")[0] for name in variables} & {"mapping", "synthesis"}
        below = {
            part: {name.removeprefix(f"{part}/"): x for name, x in variables.items() if name.startswith(f"{part}/")}
            for part in names
        }
        self.version, self.name, self.static_kwargs = 4, "network", options
        self.build_module_src = "raise SystemExit('ran the code of a pickle')"
        self.components = {part: Network(inner) for part, inner in below.items()}
        self.variables = [(name, x) for name, x in variables.items() if name.partition("/")[0] not in names]

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


def tensorflow_generator(net: stylegan2.Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Variables of the TensorFlow generator that makes the same images."""
    result = {"lod": np.zeros((), np.float32), "dlatent_avg": net.mapping.w_avg}
    for name, x in net.mapping.named_parameters():
        layer, _, key = name.rpartition(".")
        result[f"mapping/{layer.replace('fc', 'Dense').replace('embed', 'LabelEmbed')}/{key}"] = (
            x.T if x.dim() == 2 else x
        )
    number = 0
    for block in net.synthesis.blocks():
        there = f"synthesis/{block.resolution}x{block.resolution}"
        if block.in_channels == 0:
            result[f"{there}/Const/const"] = block.const[None]
        for name, layer in block.named_children():
            title = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}[name]
            title = "Conv" if block.in_channels == 0 and name == "conv1" else title
            weight = layer.weight.flip([2, 3]) if name in ("conv0", "skip") else layer.weight
            result[f"{there}/{title}/weight"] = weight.permute(2, 3, 1, 0)
            if name == "skip":
                continue
            result[f"{there}/{title}/bias"] = layer.bias
            result[f"{there}/{title}/mod_weight"] = layer.affine.weight.T
            result[f"{there}/{title}/mod_bias"] = layer.affine.bias - 1
            if name != "torgb":
                result[f"{there}/{title}/noise_strength"] = layer.noise_strength
                result[f"synthesis/noise{number}"] = layer.noise_const[None, None]
                number += 1
    return {name: x.detach().numpy() if isinstance(x, Tensor) else x for name, x in result.items()}


def tensorflow_discriminator(net: stylegan2.Discriminator) -> dict[str, np.ndarray[Any, Any]]:
    result = {}
    for name, x in net.named_parameters():
        owner, _, key = name.rpartition(".")
        block, _, layer = owner.partition(".")
        size = block[1:]
        title = {"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip", "conv": "Conv"}
        there = {"fc": "4x4/Dense0", "out": "Output"}.get(layer) or f"{size}x{size}/{title[layer]}"
        result[f"{there}/{key}"] = (x.permute(2, 3, 1, 0) if x.dim() == 4 else x.t()).detach().numpy()
    return result


@pytest.fixture
def tensorflow_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("dnnlib.tflib.network")
    monkeypatch.setattr(Network, "__module__", stand_in.__name__)
    stand_in.Network = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dnnlib.tflib", types.ModuleType("dnnlib.tflib"))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)


@pytest.mark.usefixtures("tensorflow_modules")
@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_a_pickle_of_tensorflow(tmp_path: Path, architecture: str) -> None:
    synthesis = replace(CONFIG.synthesis, architecture=architecture, conv_clamp=None)
    net, judge = generator(synthesis=synthesis), stylegan2.Discriminator(replace(D_CONFIG, conv_clamp=None))
    variables = tensorflow_generator(net)
    average = Network(variables, mapping_lrmul=0.01, label_size=0)
    last = Network(variables | {"dlatent_avg": np.zeros(12, np.float32)}, w_avg_beta=0.9)
    path = dumped(tmp_path / "network.pkl", (last, Network(tensorflow_discriminator(judge)), average))
    loaded = stylegan2.load_generator(path)
    torch.testing.assert_close(images(loaded), images(net))
    assert loaded.config.synthesis.architecture == architecture
    assert loaded.config.mapping.w_avg_beta == 0.995
    assert not stylegan2.load_generator(path, "G").mapping.w_avg.any()
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(stylegan2.load_discriminator(path)(x), judge(x))


@pytest.mark.usefixtures("tensorflow_modules")
def test_a_pickle_of_the_first_stylegan(tmp_path: Path) -> None:
    old = Network({})
    old.version = 2
    with pytest.raises(CheckpointError, match="version 2, before StyleGAN2"):
        stylegan2.load_generator(dumped(tmp_path / "network.pkl", (old, old, old)))


# --- other files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, c_dim=4, mapping=MappingConfig(3, embed_features=5, layer_features=7)),
        replace(CONFIG, synthesis=SynthesisConfig("orig", **SMALL)),
        replace(CONFIG, synthesis=SynthesisConfig("resnet", **SMALL, use_noise=False)),
        replace(CONFIG, z_dim=6, img_channels=1, synthesis=SynthesisConfig(**SMALL, kernel_size=1)),
        replace(CONFIG, synthesis=SynthesisConfig(**SMALL, resample_filter=(0.5, 0.5))),
        replace(CONFIG, img_resolution=4),
    ],
    ids=["skip", "labels", "orig", "resnet", "grey", "box filter", "one block"],
)
def test_the_shape_of_a_generator_follows_from_its_state(tmp_path: Path, config: GeneratorConfig) -> None:
    net = stylegan2.Generator(config)
    torch.save(net.state_dict(), tmp_path / "network.pt")
    loaded = stylegan2.load_generator(tmp_path / "network.pt")
    ws = torch.randn(1, net.num_ws, 12)
    assert torch.equal(loaded.synthesis(ws, "const"), net.synthesis(ws, "const"))
    assert loaded.config.mapping == config.mapping


@pytest.mark.parametrize(
    "config",
    [
        D_CONFIG,
        replace(D_CONFIG, architecture="skip"),
        replace(D_CONFIG, architecture="orig", mbstd_num_channels=0),
        replace(D_CONFIG, c_dim=4, cmap_dim=6, mapping=MappingConfig(2, w_avg_beta=None)),
    ],
    ids=["resnet", "skip", "orig", "labels"],
)
def test_the_shape_of_a_discriminator_follows_from_its_state(tmp_path: Path, config: DiscriminatorConfig) -> None:
    net = stylegan2.Discriminator(config)
    torch.save({"D": net.state_dict()}, tmp_path / "network.pt")
    loaded = stylegan2.load_discriminator(tmp_path / "network.pt")
    x, c = torch.randn(4, 3, 16, 16), torch.eye(4) if config.c_dim else None
    assert torch.equal(loaded(x, c), net(x, c))


@pytest.mark.parametrize("prefix", ["", "G_ema."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net, net3 = generator(), stylegan3.Generator(CONFIG3)
    for name, one in {"2": net, "3": net3}.items():
        state = {prefix + key: x.clone() for key, x in one.state_dict().items()}
        safetensors.save_file(state, tmp_path / f"{name}.safetensors")
    assert torch.equal(images(stylegan2.load_generator(tmp_path / "2.safetensors")), images(net))
    assert torch.equal(images(stylegan3.load_generator(tmp_path / "3.safetensors")), images(net3))


def test_the_file_may_be_of_an_older_torch(tmp_path: Path) -> None:
    net = generator()
    torch.save({"g_ema": net.state_dict()}, tmp_path / "network.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(images(stylegan2.load_generator(tmp_path / "network.pt")), images(net))


# --- rosinality -------------------------------------------------------------------------------------------------------


def test_names_and_shapes_of_rosinalitys_generator() -> None:
    expected = {
        "style.1.weight": (12, 8),
        "style.1.bias": (12,),
        "style.2.weight": (12, 12),
        "style.2.bias": (12,),
        "input.input": (1, 8, 4, 4),
        "latent_avg": (12,),
        "convs.0.conv.blur.kernel": (4, 4),
        "to_rgbs.0.upsample.kernel": (4, 4),
        "noises.noise_0": (1, 1, 4, 4),
        "noises.noise_1": (1, 1, 8, 8),
        "noises.noise_2": (1, 1, 8, 8),
    }
    modulation = {"modulation.weight": (8, 12), "modulation.bias": (8,)}
    for layer in ("conv1", "convs.0", "convs.1"):
        expected |= {f"{layer}.conv.{key}": shape for key, shape in modulation.items()}
        expected |= {f"{layer}.conv.weight": (1, 8, 8, 3, 3), f"{layer}.noise.weight": (1,)}
        expected[f"{layer}.activate.bias"] = (8,)
    for layer in ("to_rgb1", "to_rgbs.0"):
        expected |= {f"{layer}.conv.{key}": shape for key, shape in modulation.items()}
        expected |= {f"{layer}.conv.weight": (1, 3, 8, 1, 1), f"{layer}.bias": (1, 3, 1, 1)}
    state = to_rosinality(generator(img_resolution=8).state_dict())
    assert {name: tuple(x.shape) for name, x in state.items()} == expected
    assert state["convs.0.conv.blur.kernel"].sum() == state["to_rgbs.0.upsample.kernel"].sum() == 4


def test_names_and_shapes_of_rosinalitys_discriminator() -> None:
    expected = {
        "convs.0.0.weight": (8, 3, 1, 1),
        "convs.0.1.bias": (8,),
        "convs.1.conv1.0.weight": (8, 8, 3, 3),
        "convs.1.conv1.1.bias": (8,),
        "convs.1.conv2.0.kernel": (4, 4),
        "convs.1.conv2.1.weight": (8, 8, 3, 3),
        "convs.1.conv2.2.bias": (8,),
        "convs.1.skip.0.kernel": (4, 4),
        "convs.1.skip.1.weight": (8, 8, 1, 1),
        "final_conv.0.weight": (8, 9, 3, 3),
        "final_conv.1.bias": (8,),
        "final_linear.0.weight": (8, 128),
        "final_linear.0.bias": (8,),
        "final_linear.1.weight": (1, 8),
        "final_linear.1.bias": (1,),
    }
    state = to_rosinality(stylegan2.Discriminator(replace(D_CONFIG, img_resolution=8)).state_dict())
    assert {name: tuple(x.shape) for name, x in state.items()} == expected


@pytest.mark.parametrize("net", [generator(), stylegan2.Discriminator(D_CONFIG)], ids=["generator", "discriminator"])
def test_there_and_back(net: nn.Module) -> None:
    state = net.state_dict()
    back = from_rosinality(to_rosinality(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], x) for name, x in state.items())


def test_a_checkpoint_of_rosinality(tmp_path: Path) -> None:
    """With options and optimisers in it, and the average of w beside the networks or nowhere."""
    net, judge = generator(synthesis=replace(CONFIG.synthesis, conv_clamp=None)), stylegan2.Discriminator(D_CONFIG)
    state = to_rosinality(net.state_dict())
    average = state.pop("latent_avg")
    content = {
        "g": state,
        "d": to_rosinality(judge.state_dict()),
        "g_ema": state,
        "g_optim": torch.optim.Adam(net.parameters()).state_dict(),
        "args": argparse.Namespace(size=16),
        "ada_aug_p": 0.1,
    }
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    estimated = stylegan2.load_generator(path)
    mapped = net.mapping(torch.randn(20_000, 8))[:, 0]
    assert (estimated.mapping.w_avg - mapped.mean(0)).abs().max() < 0.1 * mapped.std()
    torch.save(content | {"latent_avg": average[None]}, path)
    loaded = stylegan2.load_generator(path)
    assert loaded.config.synthesis.conv_clamp is None
    assert torch.equal(images(loaded), images(net))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(stylegan2.load_discriminator(path)(x), judge(x))


# --- files that lie ---------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(target: Path) -> dict[str, object]:
    """Objects whose unpickling would make the file ``target``."""
    touch = f"open({str(target)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save(Calls(eval, touch), inner, _use_new_zipfile_serialization=False)
    net = stylegan2.Generator(CONFIG)
    net.register_buffer("trap", None)
    net._buffers["trap"] = Calls(os.system, f"touch {target}")  # type: ignore[assignment]
    return {
        "os.system": Calls(os.system, f"touch {target}"),
        "posix.system, nested": {"G_ema": {"state": [Calls(os.system, f"touch {target}")]}},
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "partial": Calls(functools.partial, eval, touch),
        "open": Calls(open, str(target), "w"),
        "in a storage": {"G_ema": Calls(torch.storage._load_from_bytes, inner.getvalue())},
        "in a module": {"G_ema": official(net)},
        "torch.load": Calls(torch.load, str(target)),
        "numpy.load": Calls(np.load, str(target)),
        "an unknown class": {"G_ema": argparse.Namespace()},
    }


@pytest.mark.parametrize("attack", attacks(Path("unused")).keys())
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attack: str) -> None:
    target = tmp_path / "it-ran"
    path = dumped(tmp_path / "network.pkl", attacks(target)[attack])
    with pytest.raises(CheckpointError, match=r"network\.pkl: not a file of networks that can be read"):
        stylegan2.load_generator(path)
    assert not target.exists()


def test_the_error_names_what_was_refused(tmp_path: Path) -> None:
    path = dumped(tmp_path / "network.pkl", Calls(os.system, "true"))
    with pytest.raises(CheckpointError, match=r"names (posix|nt)\.system, which no network file needs; nothing of it"):
        stylegan2.load_generator(path)


def test_a_malicious_file_of_torch_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "it-ran"
    torch.save({"g_ema": Calls(os.system, f"touch {target}")}, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="not a file of networks"):
        stylegan2.load_generator(tmp_path / "network.pt")
    assert not target.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        # sets an attribute of one of the classes that stand for others
        b"\x80\x02ccollections\nOrderedDict\nN}X\x06\x00\x00\x00updateK\x01s\x86b.",
        b"\x80\x02cdnnlib.util\nEasyDict\n}X\x0c\x00\x00\x00__setstate__K\x01sb.",
        # sets the state, or an attribute, of a function
        b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00xK\x01sb.",
        b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
        # a persistent object without a state; a module built of nothing
        b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.",
        b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81K\x01b.",
        # a persistent id, a tensor of a number, an array of objects
        b"\x80\x02Pname\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89}tR.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R.",
    ],
    ids=[
        "slots of a class",
        "method of a class",
        "function",
        "slots of a function",
        "no state",
        "no module",
        "persistent id",
        "no storage",
        "objects",
    ],
)
def test_odd_opcodes_are_errors(opcodes: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        _unpickle.load(io.BytesIO(opcodes))


def test_a_tensor_cannot_reach_beyond_its_storage() -> None:
    """The size in the file is a claim, and memory for it is only had where the file brought it."""
    storage = torch.zeros(4).storage()
    for offset, size, stride in [(2, (3,), (1,)), (0, (1 << 40,), (0,)), (1 << 62, (1, 1), (1 << 62, 1))]:
        claim = Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
        with pytest.raises(pickle.UnpicklingError, match="larger than its storage"):
            _unpickle.load(io.BytesIO(pickle.dumps(claim)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_arrays_and_numbers_come_out_as_they_went_in(protocol: int) -> None:
    base = torch.arange(24.0)
    content = {
        "view": base.reshape(4, 6).T[1:, ::2],
        "half": base.to(torch.bfloat16),
        "parameter": nn.Parameter(base.long().double()),
        "empty": torch.empty(0, 3),
        "scalar": np.float32(0.1),
        "count": np.int64(7),
        "array": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "set": {"a", "b"},
        "options": sys.modules["dnnlib.util"].EasyDict(path="x"),
    }
    got = _unpickle.load(io.BytesIO(pickle.dumps(content, protocol)))
    for name in ("view", "half", "parameter", "empty"):
        assert torch.equal(got[name], content[name]) and got[name].dtype == content[name].dtype
    assert got["scalar"] == np.float32(0.1).item() and got["count"] == 7 and type(got["count"]) is int
    np.testing.assert_array_equal(got["array"].array, content["array"])
    assert got["set"] == {"a", "b"} and got["options"] == {"path": "x"}


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    good = dumped(tmp_path / "good.pkl", {"G_ema": official(generator()), "D": official(generator())})
    files = {
        "cut.pkl": good.read_bytes()[:-1000],
        "empty.pkl": b"",
        "text.pkl": b"<html>404 Not Found</html>",
        "cut.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{",
        "nothing.pkl": pickle.dumps({"a": 1}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            stylegan2.load_generator(tmp_path / name)
    torch.save(generator().state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        stylegan2.load_generator(tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        stylegan2.load_generator(tmp_path / "missing.pkl")


def test_the_wrong_network(tmp_path: Path) -> None:
    net3 = stylegan3.Generator(CONFIG3)
    path = dumped(tmp_path / "three.pkl", {"G_ema": official(net3)})
    with pytest.raises(CheckpointError, match=r"no StyleGAN2 generator: it has no synthesis\.b4"):
        stylegan2.load_generator(path)
    with pytest.raises(CheckpointError, match="expected a network called D in it, got G_ema"):
        stylegan2.load_discriminator(path)
    path = dumped(tmp_path / "two.pkl", {"G_ema": official(generator()), "D": official(generator())})
    with pytest.raises(CheckpointError, match=r"no StyleGAN3 generator: it has no synthesis\.L0"):
        stylegan3.load_generator(path)
    with pytest.raises(CheckpointError, match="no StyleGAN2 discriminator"):
        stylegan2.load_discriminator(path)


def test_a_network_with_a_tensor_too_few(tmp_path: Path) -> None:
    state = generator().state_dict()
    del state["synthesis.b8.conv0.bias"]
    torch.save(state, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*b8\.conv0\.bias"):
        stylegan2.load_generator(tmp_path / "network.pt")


def test_layers_that_follow_no_schedule(tmp_path: Path) -> None:
    state = stylegan3.Generator(CONFIG3).state_dict()
    odd = {name.replace("L2_52_", "L2_53_").replace("L2_36_", "L2_37_"): x for name, x in state.items()}
    assert odd.keys() != state.keys()
    torch.save(odd, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="no schedule known here; pass a config"):
        stylegan3.load_generator(tmp_path / "network.pt")
    torch.save(state, tmp_path / "network.pt")
    assert stylegan3.load_generator(tmp_path / "network.pt", config=CONFIG3).config == CONFIG3
