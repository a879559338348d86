"""StyleGAN2: names and numbers of the published networks, a second formula for its images, and what training needs."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvfx.models.stylegan2 import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    MappingConfig,
    MappingNetwork,
    SynthesisConfig,
)

ARCHITECTURES = ["orig", "skip", "resnet"]
SYNTHESIS = SynthesisConfig(channel_base=64, channel_max=8)
CONFIG = GeneratorConfig(8, 0, 12, 16, 3, MappingConfig(num_layers=2), SYNTHESIS)
D_CONFIG = DiscriminatorConfig(
    0, 16, 3, channel_base=64, channel_max=8, mapping=MappingConfig(num_layers=2, w_avg_beta=None)
)


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """Biases, noise strengths and averages start at 0 and would hide mistakes."""
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith(("bias", "noise_strength", "w_avg")):
                x.add_(0.3 * torch.randn_like(x))
    return module


def generator(**changes: object) -> Generator:
    return stirred(Generator(replace(CONFIG, **changes)))  # type: ignore[return-value,arg-type]


def discriminator(**changes: object) -> Discriminator:
    return stirred(Discriminator(replace(D_CONFIG, **changes)))  # type: ignore[return-value,arg-type]


# --- the published networks -------------------------------------------------------------------------------------------


def test_names_and_shapes_of_a_generator() -> None:
    """Those of NVIDIA's PyTorch release, spelt out for 8x8."""
    layer = {"resample_filter": (4, 4), "affine.bias": (8,), "noise_strength": (), "bias": (8,)}
    expected = {
        "mapping.fc0.weight": (12, 8),
        "mapping.fc0.bias": (12,),
        "mapping.fc1.weight": (12, 12),
        "mapping.fc1.bias": (12,),
        "mapping.w_avg": (12,),
        "synthesis.b4.const": (8, 4, 4),
        "synthesis.b4.resample_filter": (4, 4),
        "synthesis.b8.resample_filter": (4, 4),
    }
    for name, size in {"b4.conv1": 4, "b8.conv0": 8, "b8.conv1": 8}.items():
        shapes = layer | {"affine.weight": (8, 12), "weight": (8, 8, 3, 3), "noise_const": (size, size)}
        expected |= {f"synthesis.{name}.{key}": shape for key, shape in shapes.items()}
    for block in ("b4", "b8"):
        shapes = {"affine.weight": (8, 12), "affine.bias": (8,), "weight": (3, 8, 1, 1), "bias": (3,)}
        expected |= {f"synthesis.{block}.torgb.{key}": shape for key, shape in shapes.items()}
    state = Generator(replace(CONFIG, img_resolution=8)).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == expected


def test_names_and_shapes_of_a_discriminator() -> None:
    expected = {"b8.resample_filter": (4, 4)}
    convs = {
        "b8.fromrgb": (8, 3, 1, 1),
        "b8.conv0": (8, 8, 3, 3),
        "b8.conv1": (8, 8, 3, 3),
        "b8.skip": (8, 8, 1, 1),
        "b4.conv": (8, 9, 3, 3),
    }
    for name, shape in convs.items():
        expected |= {f"{name}.weight": shape, f"{name}.resample_filter": (4, 4)}
        if name != "b8.skip":
            expected[f"{name}.bias"] = (8,)
    expected |= {"b4.fc.weight": (8, 128), "b4.fc.bias": (8,), "b4.out.weight": (1, 8), "b4.out.bias": (1,)}
    state = Discriminator(replace(D_CONFIG, img_resolution=8)).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == expected


def test_size_of_config_f() -> None:
    """Table 1 of the paper's networks at 1024x1024: 30 and 29 million parameters, 18 styles."""
    with torch.device("meta"):
        big_generator = Generator(GeneratorConfig(img_resolution=1024))
        big_discriminator = Discriminator(DiscriminatorConfig(img_resolution=1024))
    assert sum(p.numel() for p in big_generator.parameters()) == 30_370_060
    assert sum(p.numel() for p in big_discriminator.parameters()) == 29_012_513
    assert big_generator.num_ws == 18


# --- values -----------------------------------------------------------------------------------------------------------


def layer_formula(state: dict[str, Tensor], name: str, x: Tensor, w: Tensor) -> Tensor:
    """One image (1, I, H, W) and its style (w_dim,) through a modulated layer, weights first, as the paper has it."""
    s = state[f"{name}.affine.weight"] @ w / math.sqrt(len(w)) + state[f"{name}.affine.bias"]
    weight = state[f"{name}.weight"] * s[None, :, None, None]
    if "torgb" in name:
        return F.conv2d(x, weight / math.sqrt(len(s))) + state[f"{name}.bias"][:, None, None]
    weight = weight / (weight.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt()
    if name.endswith("conv0"):
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        taps = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 4
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
        x = F.conv2d(x, kernel, padding=1, groups=x.shape[1])
    else:
        x = F.conv2d(x, weight, padding=1)
    x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
    return (F.leaky_relu(x + state[f"{name}.bias"][:, None, None], 0.2) * math.sqrt(2)).clamp(-256, 256)


def image_formula(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """The skip generator for one latent, from its state alone."""
    w = z / (z.square().mean() + 1e-8).sqrt()
    for k in range(2):
        weight, bias = state[f"mapping.fc{k}.weight"], state[f"mapping.fc{k}.bias"]
        w = F.leaky_relu(0.01 * (weight @ w / math.sqrt(len(w)) + bias), 0.2) * math.sqrt(2)
    state = {name.removeprefix("synthesis."): x for name, x in state.items()}
    x = layer_formula(state, "b4.conv1", state["b4.const"][None], w)
    image = layer_formula(state, "b4.torgb", x, w)
    for block in ("b8", "b16"):
        x = layer_formula(state, f"{block}.conv1", layer_formula(state, f"{block}.conv0", x, w), w)
        taps = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 4
        kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
        image = F.conv_transpose2d(image, kernel, stride=2, padding=1, groups=3)
        image = image + layer_formula(state, f"{block}.torgb", x, w)
    return image


def test_images_match_the_papers_formula() -> None:
    net = generator().double()
    z = torch.randn(3, 8, dtype=torch.float64)
    state = dict(net.state_dict())
    expected = torch.cat([image_formula(state, z_one) for z_one in z])
    image = net(z, noise_mode="const")
    # A dozen layers of float64, their sums in another order.
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert image.is_contiguous()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_makes_and_judges_images(architecture: str) -> None:
    net = generator(synthesis=replace(SYNTHESIS, architecture=architecture))
    judge = discriminator(architecture=architecture)
    images = net(torch.randn(4, 8))
    assert images.shape == (4, 3, 16, 16)
    logits = judge(images)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    lost = [name for name, p in [*net.named_parameters(), *judge.named_parameters()] if p.grad is None]
    assert lost == []


def test_residual_blocks_keep_the_variance() -> None:
    """Both branches have variance 1 with fresh weights, and so has their sum, the gain of sqrt(1/2) included."""
    judge = Discriminator(replace(D_CONFIG, channel_base=4096, channel_max=128, img_resolution=32))
    x, _ = judge.blocks()[0](None, torch.randn(2, 3, 32, 32), False)
    assert 0.1 < x.square().mean() < 1.5


def test_batches_are_judged_in_groups() -> None:
    """A copy of an image in the batch changes the verdict on it; without the statistics it would not."""
    x = torch.randn(4, 3, 16, 16)
    same = x[:1].expand(4, -1, -1, -1)
    judge = discriminator()
    assert not torch.allclose(judge(x)[0], judge(same)[0])
    alone = discriminator(mbstd_num_channels=0)
    torch.testing.assert_close(alone(x)[0], alone(same)[0])


# --- styles and noise -------------------------------------------------------------------------------------------------


def test_truncation_pulls_styles_to_their_average() -> None:
    mapping = generator().mapping
    z = torch.randn(3, 8)
    full, half = mapping(z), mapping(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (full + mapping.w_avg) / 2)
    torch.testing.assert_close(mapping(z, truncation_psi=0.0), mapping.w_avg.expand_as(full))
    partly = mapping(z, truncation_psi=0.5, truncation_cutoff=2)
    torch.testing.assert_close(partly, torch.cat([half[:, :2], full[:, 2:]], 1))


def test_average_of_w_moves_when_asked_only() -> None:
    net = generator()
    before = net.mapping.w_avg.clone()
    z = torch.randn(16, 8)
    net(z)
    torch.testing.assert_close(net.mapping.w_avg, before, rtol=0, atol=0)
    w = net.mapping(z, update_emas=True)[:, 0].mean(0)
    torch.testing.assert_close(net.mapping.w_avg, 0.998 * before + 0.002 * w.detach())


def test_noise_modes() -> None:
    net = generator()
    z = torch.randn(2, 8)
    assert torch.equal(net(z, noise_mode="const"), net(z, noise_mode="const"))
    assert torch.equal(net(z, noise_mode="none"), net(z, noise_mode="none"))
    assert not torch.allclose(net(z), net(z))
    torch.manual_seed(5)
    first = net(z)
    torch.manual_seed(5)
    assert torch.equal(net(z), first)
    with torch.no_grad():
        for block in net.synthesis.blocks():
            for name, p in block.named_parameters():
                if name.endswith("noise_strength"):
                    p.zero_()
    torch.testing.assert_close(net(z), net(z, noise_mode="none"))


def test_labels_steer_both_networks() -> None:
    net, judge = generator(c_dim=4), discriminator(c_dim=4)
    z, one, two = torch.randn(1, 8), torch.eye(4)[:1], torch.eye(4)[1:2]
    image = net(z, one, noise_mode="none")
    assert not torch.allclose(image, net(z, two, noise_mode="none"))
    assert not torch.allclose(judge(image, one), judge(image, two))


# --- precision and derivatives ----------------------------------------------------------------------------------------


def test_blocks_in_bfloat16_come_close() -> None:
    half = {"num_half_res": 2, "half_dtype": "bfloat16"}
    net = generator(synthesis=replace(SYNTHESIS, **half))
    judge = discriminator(**half)
    z = torch.randn(4, 8)
    image, exact = net(z, noise_mode="const"), net(z, noise_mode="const", force_fp32=True)
    assert image.dtype == exact.dtype == torch.float32
    error = (image - exact).norm() / exact.norm()
    assert 0 < error < 0.02
    logits = judge(exact)
    assert logits.dtype == torch.float32
    assert 0 < (logits - judge(exact, force_fp32=True)).abs().max() < 0.1


def test_float16_stays_float32_on_a_processor() -> None:
    net = generator(synthesis=replace(SYNTHESIS, num_half_res=2))
    z = torch.randn(2, 8)
    assert torch.equal(net(z, noise_mode="const"), net(z, noise_mode="const", force_fp32=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 is for GPUs")
def test_float16_on_a_gpu() -> None:
    net = generator(synthesis=replace(SYNTHESIS, num_half_res=2)).cuda()
    z = torch.randn(2, 8, device="cuda")
    exact = net(z, noise_mode="const", force_fp32=True)
    assert 0 < (net(z, noise_mode="const") - exact).norm() / exact.norm() < 0.01


def directional_derivative(module: torch.nn.Module, value: Callable[[], Tensor]) -> tuple[float, float]:
    """Of ``value()`` along a random direction of all parameters: by autograd and by central differences."""
    parameters = list(module.parameters())
    step = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(value(), parameters, allow_unused=True)
    by_autograd = sum(float((g * d).sum()) for g, d in zip(grads, step, strict=True) if g is not None)
    eps = 1e-6

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, step, strict=True):
                p.add_(by * d)
        return value().item()

    above = moved(eps)
    below = moved(-2 * eps)
    moved(eps)
    return by_autograd, (above - below) / (2 * eps)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_penalty_has_the_right_gradient(architecture: str) -> None:
    """R1 differentiates the discriminator twice."""
    judge = discriminator(architecture=architecture).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        (grad,) = torch.autograd.grad(judge(x).sum(), x, create_graph=True)
        return grad.square().sum()

    by_autograd, by_differences = directional_derivative(judge, penalty)
    assert by_autograd == pytest.approx(by_differences, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_path_length_has_the_right_gradient(architecture: str) -> None:
    """The path length regularisation differentiates the generator twice."""
    net = generator(synthesis=replace(SYNTHESIS, architecture=architecture)).double()
    z = torch.randn(2, 8, dtype=torch.float64)
    direction = torch.randn(2, 3, 16, 16, dtype=torch.float64) / 16

    def length() -> Tensor:
        ws = net.mapping(z)
        image = net.synthesis(ws, noise_mode="const")
        (grad,) = torch.autograd.grad((image * direction).sum(), ws, create_graph=True)
        return (grad.square().sum(2).mean(1).sqrt() - 0.1).square().sum()

    by_autograd, by_differences = directional_derivative(net, length)
    assert by_autograd == pytest.approx(by_differences, rel=1e-5)


# --- what a project does with a network -------------------------------------------------------------------------------


def test_copies_and_states_make_the_same_images() -> None:
    net = generator()
    z = torch.randn(2, 8)
    image = net(z, noise_mode="const")
    assert torch.equal(copy.deepcopy(net)(z, noise_mode="const"), image)
    other = Generator(CONFIG)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(z, noise_mode="const"), image)


@pytest.mark.parametrize("config", [CONFIG, D_CONFIG, replace(CONFIG, mapping=MappingConfig(w_avg_beta=None))])
def test_configs_survive_json(config: GeneratorConfig | DiscriminatorConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configs_know_strangers() -> None:
    with pytest.raises(ValueError, match="zdim"):
        GeneratorConfig.from_dict({"zdim": 512})
    with pytest.raises(ValueError, match="mapping of its fields"):
        GeneratorConfig.from_dict({"mapping": 3})


def test_frozen_layers_are_not_trained() -> None:
    """Layers count from the image: fromrgb, conv0, conv1 and skip of the first block, conv0 of the second."""
    judge, frozen = discriminator(), discriminator(freeze_layers=5)
    assert judge.state_dict().keys() == frozen.state_dict().keys()
    lost = {name for name, _ in judge.named_parameters()} - {name for name, _ in frozen.named_parameters()}
    assert {name.rpartition(".")[0] for name in lost} == {
        "b16.fromrgb",
        "b16.conv0",
        "b16.conv1",
        "b16.skip",
        "b8.conv0",
    }


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_compiles_whole(which: str) -> None:
    if which == "generator":
        module, args = generator(img_resolution=8).synthesis, (torch.randn(2, 4, 12), "const")
    else:
        module, args = discriminator(img_resolution=8), (torch.randn(4, 3, 8, 8),)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), module(*args))


def test_nothing_in_nothing_out() -> None:
    images = generator()(torch.randn(0, 8))
    assert images.shape == (0, 3, 16, 16)
    assert discriminator()(images).shape == (0, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: generator()(torch.randn(2, 9)), r"z of shape \(N, 8\), got \(2, 9\)"),
        (lambda: generator(c_dim=4)(torch.randn(2, 8)), "c to be a torch.Tensor, got NoneType"),
        (lambda: generator(c_dim=4)(torch.randn(2, 8), torch.randn(3, 4)), "as many labels as latents"),
        (lambda: generator().synthesis(torch.randn(2, 3, 12)), r"ws of shape \(N, 6, 12\), got \(2, 3, 12\)"),
        (lambda: generator()(torch.randn(2, 8), noise_mode="some"), "noise_mode to be one of random, const, none"),
        (lambda: generator(img_resolution=24), "power of two from 4, got 24"),
        (lambda: discriminator(img_resolution=4), "power of two from 8, got 4"),
        (lambda: discriminator()(torch.randn(4, 3, 16, 8)), r"img of shape \(N, 3, 16, 16\)"),
        (lambda: discriminator()(torch.randn(6, 3, 16, 16)), "multiple of group_size=4"),
        (lambda: MappingNetwork(0, 0, 8, None), "z_dim or c_dim above 0"),
        (
            lambda: MappingNetwork(8, 0, 8, 4, MappingConfig(w_avg_beta=None))(torch.randn(1, 8), truncation_psi=0.5),
            "truncation_psi=1 without an average",
        ),
    ],
)
def test_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
