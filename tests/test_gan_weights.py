"""Weights of generators and discriminators from files of every format."""

from __future__ import annotations

import argparse
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_pickles import (  # noqa: F401  (official_modules is a fixture)
    CONFIG,
    CONFIG3,
    D_CONFIG,
    SMALL,
    Official,
    dumped,
    generator,
    images,
    official,
    official_modules,
)
from torch import Tensor, nn

from fastvfx.models import stylegan2, stylegan3
from fastvfx.models.checkpoint import CheckpointError
from fastvfx.models.stylegan2 import (
    DiscriminatorConfig,
    GeneratorConfig,
    MappingConfig,
    SynthesisConfig,
    from_rosinality,
    to_rosinality,
)

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
