"""Training of generators: the same numbers again, checkpoints, limits, interrupts, what can go wrong."""

from __future__ import annotations

import errno
import json
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from marks import sigint

from fastvfx.data import Photos
from fastvfx.models import stylegan1, stylegan2, stylegan3
from fastvfx.models.gan import (
    AugmentConfig,
    CheckpointError,
    Diverged,
    Ema,
    GanConfig,
    GrowConfig,
    LossConfig,
    OptimizerConfig,
    Preset,
    TrainConfig,
    Trainer,
    grid,
    load_sampler,
    losses,
    preset,
)
from fastvfx.models.gan.networks import mix_styles
from fastvfx.models.gan.trainer import FILES

WIDTHS = {"channel_base": 64, "channel_max": 8}


def networks(label_dim: int = 0) -> tuple[stylegan2.GeneratorConfig, stylegan2.DiscriminatorConfig]:
    """Eight by eight pixels, eight channels."""
    return (
        stylegan2.GeneratorConfig(
            8, label_dim, 8, 8, 3, stylegan2.MappingConfig(2), stylegan2.SynthesisConfig(**WIDTHS)
        ),
        stylegan2.DiscriminatorConfig(label_dim, 8, mbstd_group_size=2, **WIDTHS),
    )


ALL = LossConfig(r1_gamma=0.1, r2_gamma=0.1, path_length=2, discriminator_every=3, generator_every=2, style_mixing=0.9)
CONFIG = GanConfig(*networks(), ALL, TrainConfig(4, ema_kimg=0.02), AugmentConfig(p=0.3, kimg=0.1, every=2))


def photos(n: int = 6, resolution: int = 8, classes: int = 0) -> Photos:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (n, 3, resolution, resolution), dtype=torch.uint8, generator=generator)
    labels = torch.eye(classes)[torch.arange(n) % classes] if classes else None
    return Photos(pixels, tuple(f"{i}.png" for i in range(n)), resolution, labels, mirror=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, and on a busy machine lose a lot."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    parts = {"g": trainer.generator, "d": trainer.discriminator, "ema": trainer.ema.network, "pl": trainer.path_length}
    return {f"{k}.{name}": x.detach().clone() for k, part in parts.items() for name, x in part.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- determinism and resumption -------------------------------------------------------------------------------------


def test_same_seed_same_weights_other_seed_others() -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(photos(), replace(CONFIG, train=replace(CONFIG.train, seed=seed)))
        torch.manual_seed(seed + 77)  # of no influence
        trainer.fit(max_steps=3)
        runs.append(weights(trainer))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Trainer(photos(), CONFIG).fit(max_steps=1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("classes", [0, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, classes: int) -> None:
    """Through lazy terms, averages, augmentation and its control, in the middle of everything."""
    config = replace(CONFIG, **dict(zip(("generator", "discriminator"), networks(classes), strict=True)))
    whole = Trainer(photos(classes=classes), config)
    whole.fit(max_steps=7)
    first = Trainer(photos(classes=classes), config)
    first.fit(max_steps=3, checkpoint=tmp_path / "c.safetensors")
    second = Trainer(photos(classes=classes), config)
    second.restore(tmp_path / "c.safetensors")
    assert second.step == 3 and second.images == 12
    second.fit(max_steps=7)
    assert same(weights(whole), weights(second))
    assert whole.augment is not None and second.augment is not None and whole.augment.p == second.augment.p
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in second.history]


# --- what a step does -----------------------------------------------------------------------------------------------


def test_terms_of_a_step_match_the_formulas() -> None:
    """The numbers in the history are those of the losses on the same images."""
    loss = LossConfig(r1_gamma=0.5, drift=0.1, discriminator_every=1)
    trainer = Trainer(photos(), GanConfig(*networks(), loss, TrainConfig(4)))
    seen = []
    judge = trainer._judge

    def spy(images: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        logits = judge(images, c)
        seen.append((images.detach().clone(), logits.detach().clone()))
        return logits

    trainer._judge = spy  # type: ignore[method-assign]
    before = Trainer(photos(), trainer.config)
    trainer.train_step()
    (real, real_logits), (_, fake_logits), _ = seen
    row = trainer.meter.read()
    assert torch.equal(real, photos().shuffled(0, 4, 0).images)
    assert row["loss_d"] == pytest.approx(losses.discriminator_loss("logistic", real_logits, fake_logits).item())
    assert row["drift"] == pytest.approx(0.1 * real_logits.square().mean().item(), rel=1e-5)
    x = real.clone().requires_grad_()
    (grad,) = torch.autograd.grad(before.discriminator(x).sum(), x)
    assert row["r1"] == pytest.approx(0.25 * grad.square().flatten(1).sum(1).mean().item(), rel=1e-4)
    assert row["loss_g"] == pytest.approx(losses.generator_loss("logistic", seen[2][1]).item())


def test_lazy_terms_come_when_due_and_count_for_all() -> None:
    trainer = Trainer(photos(), CONFIG)
    trainer.fit(max_steps=6)
    assert [row["step"] for row in trainer.history if "r1" in row] == [1, 4]
    assert [row["step"] for row in trainer.history if "path_length" in row] == [1, 3, 5]


def test_lazy_regularisation_corrects_adam() -> None:
    trainer = Trainer(photos(), CONFIG)
    (group,) = trainer.optimizers["discriminator"].param_groups
    assert group["lr"] == pytest.approx(0.002 * 3 / 4) and group["betas"] == pytest.approx((0.0, 0.99 ** (3 / 4)))
    (group,) = trainer.optimizers["generator"].param_groups
    assert group["lr"] == pytest.approx(0.002 * 2 / 3) and group["betas"] == pytest.approx((0.0, 0.99 ** (2 / 3)))


def test_critic_is_updated_n_times_and_clipped() -> None:
    loss = LossConfig("wasserstein", clip=0.01)
    rms = OptimizerConfig("rmsprop", 5e-5)
    trainer = Trainer(photos(), GanConfig(*networks(), loss, TrainConfig(4, 5, rms, rms)))
    trainer.train_step()
    assert trainer.images == 20 and trainer.step == 1
    assert max(p.abs().max().item() for p in trainer.discriminator.parameters()) <= 0.01 + 1e-9


def test_w_average_moves() -> None:
    trainer = Trainer(photos(), CONFIG)
    trainer.train_step()
    assert float(trainer.ema.network.mapping.w_avg.abs().sum()) > 0  # type: ignore[union-attr]


def test_style_mixing_replaces_later_layers() -> None:
    generator = Trainer(photos(), CONFIG).generator
    z = torch.randn(64, 8)
    ws, other = generator.mapping(z), generator.mapping(-z)
    mixed = mix_styles(generator, ws, -z, None, 1.0)
    later = (mixed == other).all(2)
    assert bool(((mixed == ws).all(2) ^ later).all())
    starts = {int(row.int().argmax()) for row in later}
    assert bool(later[:, -1].all()) and starts == set(range(1, generator.num_ws))
    assert torch.equal(mix_styles(generator, ws, -z, None, 0.0), ws)


def test_discriminator_learns_what_is_easy() -> None:
    """Against a generator that hardly moves, it tells photographs from images."""
    adam = OptimizerConfig(learning_rate=0.01)
    still = OptimizerConfig(learning_rate=1e-9)
    config = GanConfig(*networks(), LossConfig(), TrainConfig(4, generator=still, discriminator=adam))
    trainer = Trainer(photos(), config)
    trainer.fit(max_steps=40)
    assert trainer.history[-1]["loss_d"] < trainer.history[0]["loss_d"] / 2
    assert trainer.history[-1]["real_sign"] == 1


def test_learns_a_colour() -> None:
    """Photographs of one colour each, all reddish: so become the images."""
    pixels = torch.tensor([220, 40, 60], dtype=torch.uint8)[None, :, None, None].expand(4, 3, 8, 8).contiguous()
    adam = OptimizerConfig(learning_rate=0.005)
    config = GanConfig(*networks(), LossConfig(r1_gamma=1.0), TrainConfig(4, 1, adam, adam, ema_kimg=0.02))
    trainer = Trainer(Photos(pixels, tuple("abcd"), 8), config)
    trainer.fit(max_steps=100)
    colour = trainer.ema.network(torch.randn(8, 8)).mean((0, 2, 3))
    assert torch.allclose(colour, torch.tensor([220, 40, 60]) / 127.5 - 1, atol=0.35), colour


# --- moving average -------------------------------------------------------------------------------------------------


def test_ema_is_the_exponential_average() -> None:
    layer = torch.nn.BatchNorm1d(2)
    ema = Ema(layer, kimg=1, rampup=None)
    expected = layer.weight.detach().clone()
    for k in range(4):
        with torch.no_grad():
            layer.weight.fill_(float(k))
            layer.running_mean.fill_(k)  # type: ignore[union-attr]
        ema.update(layer, 500, 500 * (k + 1))
        expected = 0.5**0.5 * expected + (1 - 0.5**0.5) * k
    assert torch.allclose(ema.network.weight, expected)
    assert torch.equal(ema.network.running_mean, layer.running_mean)  # type: ignore[arg-type]
    assert not ema.network.weight.requires_grad


def test_ema_ramps_up() -> None:
    ema = Ema(torch.nn.Linear(1, 1), kimg=10, rampup=0.05)
    assert ema.beta(32, 32) == 0.5 ** (32 / 1.6)
    assert ema.beta(32, 10**6) == 0.5 ** (32 / 10_000)
    assert Ema(torch.nn.Linear(1, 1), kimg=0).beta(32, 100) == 0


# --- limits, interrupts, divergence ---------------------------------------------------------------------------------


def test_limits() -> None:
    trainer = Trainer(photos(), CONFIG)
    assert not trainer.fit(max_kimg=0.012) and trainer.images == 12
    assert not trainer.fit(max_seconds=1e-6) and trainer.step == 3
    with pytest.raises(ValueError, match="expected max_steps, max_seconds or max_kimg"):
        trainer.fit()


def test_history_is_thinned() -> None:
    trainer = Trainer(photos(), CONFIG)
    trainer.history = [{"step": k} for k in range(1, 1000)]
    trainer.step = 999
    trainer.fit(max_steps=1001)
    assert trainer.history_every == 2 and [row["step"] for row in trainer.history[-2:]] == [998, 1000]


@pytest.mark.parametrize("what", ["weight", "loss"])
def test_divergence_is_said_and_kept_out(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    trainer = Trainer(photos(), CONFIG)
    trainer.fit(max_steps=1, checkpoint=path)
    saved = path.read_bytes()
    if what == "weight":
        with torch.no_grad():
            next(trainer.discriminator.parameters())[0] = math.nan
    else:
        monkeypatch.setattr(
            "fastvfx.models.gan.objectives.discriminator_loss", lambda kind, real, fake: (real / 0).sum()
        )
    before = weights(trainer)
    with pytest.raises(Diverged, match=r"not finite at step 1 \(.*loss_d.*lower learning rate"):
        trainer.fit(max_steps=3, checkpoint=path)
    after = weights(trainer)
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before if not k.startswith("ema"))
    assert path.read_bytes() == saved


@sigint
def test_interrupt_ends_after_the_step_and_saves(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(photos(), CONFIG)
    path = tmp_path / "c.safetensors"

    def interrupt(trainer: Trainer, progress: float) -> None:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)

    assert trainer.fit(max_steps=100, checkpoint=path, on_step=interrupt)
    assert trainer.step == 2 and FILES.load(path).state["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_works_in_a_thread() -> None:
    trainer = Trainer(photos(), CONFIG)
    thread = threading.Thread(target=lambda: trainer.fit(max_steps=1))
    thread.start()
    thread.join()
    assert trainer.step == 1


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    Trainer(photos(), CONFIG).fit(max_steps=1, checkpoint=path)
    return path


def test_config_survives_json() -> None:
    for config in (CONFIG, replace(CONFIG, augment=None), preset("stylegan2", 64, label_dim=3, bfloat16=True)):
        assert GanConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"gamma": 1}}, "gamma"),
        ({"generator": {"family": "biggan"}}, "biggan"),
        ({"train": None}, "mapping"),
        ({"loss": {}, "augment": 3}, "mapping"),
    ],
)
def test_config_of_another_version(saved: Path, change: dict, message: str) -> None:
    stored = FILES.load(saved)
    stored.state["config"] |= change
    FILES.save(saved, stored.tensors, stored.state)
    with pytest.raises(CheckpointError, match=message):
        load_sampler(saved)


def test_other_settings_are_refused(saved: Path) -> None:
    other = Trainer(photos(), replace(CONFIG, train=replace(CONFIG.train, batch=2)))
    with pytest.raises(CheckpointError, match="other settings"):
        other.restore(saved)
    with pytest.raises(CheckpointError, match="other photographs"):
        Trainer(photos(9), CONFIG).restore(saved)


def test_checkpoint_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_sampler(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="damaged"):
        load_sampler(path)


def test_full_disk_on_the_way_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    warnings: list[str] = []
    trainer = Trainer(photos(), CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="disk is full"):
            trainer.fit(max_steps=2, checkpoint=tmp_path / "c", checkpoint_every=0, on_warning=warnings.append)
    assert len(warnings) == 2 and "disk is full" in warnings[0]


def test_networks_fit_the_photographs() -> None:
    with pytest.raises(ValueError, match=r"expected a generator for images of 16x16 .*got img_resolution=8, c_dim=0"):
        Trainer(photos(resolution=16), CONFIG)
    with pytest.raises(ValueError, match="labels of 3 numbers"):
        Trainer(photos(classes=3), CONFIG)
    with pytest.raises(TypeError, match="expected a configuration of one of dcgan, pggan"):
        Trainer(photos(), replace(CONFIG, generator=CONFIG.discriminator))


# --- pictures -------------------------------------------------------------------------------------------------------


def test_sampler_gives_the_averaged_generator(saved: Path) -> None:
    trainer = Trainer(photos(), CONFIG)
    trainer.restore(saved)
    sampler = load_sampler(saved)
    z = sampler.latents([3, 4, 3])
    images = sampler.images(z, batch=2)
    expected = trainer.ema.network(z, noise_mode="const")
    assert images.shape == (3, 3, 8, 8) and torch.allclose(images, expected, atol=1e-5)
    assert torch.allclose(images[0], images[2], atol=1e-5) and not torch.allclose(images[0], images[1], atol=1e-2)
    average = sampler.images(z, truncation=0)
    assert torch.allclose(average[0], average[1], atol=1e-6)


def test_path_passes_the_images_and_closes(saved: Path) -> None:
    sampler = load_sampler(saved)
    z = sampler.latents([0, 1, 2])
    frames = torch.stack(list(sampler.path(z, None, frames=4, batch=5)))
    assert frames.shape == (12, 3, 8, 8)
    assert torch.allclose(frames[::4], sampler.images(z), atol=1e-5)


def test_labels_of_a_sampler(saved: Path) -> None:
    sampler = load_sampler(saved)
    assert sampler.labels(4) is None
    with pytest.raises(ValueError, match="expected no label, the generator has none, got 1"):
        sampler.labels(4, 1)


def test_grid() -> None:
    images = torch.stack([torch.full((3, 2, 2), float(v)) for v in (-1, 0, 1)])
    sheet = grid(images)
    assert sheet.shape == (4, 4, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 2, 0] == 0.5 and sheet[2, 0, 0] == 1 and sheet[2, 2, 0] == 0
    assert grid(images, columns=3).shape == (2, 6, 3)


# --- presets --------------------------------------------------------------------------------------------------------


def shrunk(config: GanConfig) -> GanConfig:
    """The same recipe on networks small enough for a test."""
    generator, discriminator = config.generator, config.discriminator
    if isinstance(generator, stylegan2.GeneratorConfig):
        generator = replace(generator, z_dim=8, w_dim=8, synthesis=replace(generator.synthesis, **WIDTHS))
    elif isinstance(generator, stylegan1.GeneratorConfig):
        generator = replace(generator, z_dim=8, w_dim=8, synthesis=stylegan1.SynthesisConfig(**WIDTHS))
    elif isinstance(generator, stylegan3.GeneratorConfig):
        small = replace(generator.synthesis, num_layers=4, margin_size=2, **WIDTHS)
        generator = replace(generator, z_dim=8, w_dim=8, synthesis=small)
    else:
        generator = replace(generator, z_dim=8, **WIDTHS)  # type: ignore[arg-type, call-arg]
    return replace(config, generator=generator, discriminator=replace(discriminator, **WIDTHS))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", get_args(Preset))
def test_every_preset_trains(name: Preset, tmp_path: Path) -> None:
    """Its losses, optimisers and kinds of networks; its checkpoint makes pictures."""
    path = tmp_path / "c.safetensors"
    trainer = Trainer(photos(resolution=16), shrunk(preset(name, 16, batch=4)))
    trainer.fit(max_steps=2, checkpoint=path)
    assert all(math.isfinite(v) for row in trainer.history for v in row.values())
    sampler = load_sampler(path)
    side = trainer.resolution
    assert sampler.images(sampler.latents(range(3)), truncation=0.5).shape == (3, 3, side, side)
    assert len(list(sampler.path(sampler.latents(range(2)), None, 2))) == 4
    again = Trainer(photos(resolution=16), shrunk(preset(name, 16, batch=4)))
    again.restore(path)
    assert same(weights(trainer), weights(again))


@pytest.mark.parametrize("name", ["pggan", "stylegan1"])
def test_networks_grow(name: Preset) -> None:
    """4x4, then 8x8 fading in, then 8x8; the optimisers begin anew, the average follows; resumed in the middle."""
    config = shrunk(preset(name, 8, batch=4))
    config = replace(config, grow=GrowConfig(4, fade_kimg=0.008, stable_kimg=0.008))
    trainer, states = Trainer(photos(), config), []
    trainer.fit(max_steps=6, on_step=lambda t, _: states.append(t.generator.growth))  # type: ignore[arg-type]
    assert [(g.resolution, g.alpha) for g in states] == [(4, 1), (4, 1), (8, 0), (8, 0.5), (8, 1), (8, 1)]
    assert trainer.ema.network.growth == trainer.discriminator.growth == states[-1]
    assert max(int(s["step"]) for s in trainer.optimizers["generator"].state.values()) == 4


def test_growing_resumes(tmp_path: Path) -> None:
    config = shrunk(preset("pggan", 8, batch=4))
    config = replace(config, grow=GrowConfig(4, fade_kimg=0.008, stable_kimg=0.008))
    whole = Trainer(photos(), config)
    whole.fit(max_steps=5)
    for cut in (2, 3):
        first, second = Trainer(photos(), config), Trainer(photos(), config)
        first.fit(max_steps=cut, checkpoint=tmp_path / "c")
        second.restore(tmp_path / "c")
        second.fit(max_steps=5)
        assert same(weights(whole), weights(second))


def test_pictures_are_as_large_as_the_network_has_grown(tmp_path: Path) -> None:
    """Layers to come have learned nothing yet."""
    config = shrunk(preset("pggan", 8, batch=4))
    trainer = Trainer(photos(), config)
    trainer.fit(max_steps=1, checkpoint=tmp_path / "c")
    sampler = load_sampler(tmp_path / "c")
    z = sampler.latents([1, 2])
    assert sampler.images(z).shape == (2, 3, 4, 4)
    assert torch.equal(sampler.images(z), trainer.ema.network(z).detach())


def test_only_some_networks_grow() -> None:
    growing = preset("pggan", 8)
    for config in (CONFIG, replace(CONFIG, generator=growing.generator), replace(growing, generator=CONFIG.generator)):
        with pytest.raises(ValueError, match=r"expected networks of fastvfx\.models\.pggan to grow"):
            Trainer(photos(), replace(config, grow=GrowConfig()))


def test_presets_say_what_their_papers_say() -> None:
    config = preset("stylegan2", 256)
    assert config.loss.r1_gamma == 0.0002 * 256**2 / 32 and config.loss.discriminator_every == 16
    assert config.train.generator.betas == (0.0, 0.99) and config.augment is not None
    adam = preset("adam-1e-3", 64)
    for optimizer in (adam.train.generator, adam.train.discriminator):
        assert optimizer.learning_rate == 1e-3 and optimizer.betas == (0.5, 0.999)
    assert preset("stylegan2", 64, augment=False).augment is None
    assert preset("stylegan2", 64, batch=8, seed=3).train.seed == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("stylegan9", 64), "expected one of"), (("stylegan2", 48), "power of two from 8, got 48")],
    ids=["name", "resolution"],
)
def test_bad_preset(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(*arguments)


def test_presets_without_an_option() -> None:
    with pytest.raises(ValueError, match="expected no labels, sngan's networks take none, got 3"):
        preset("sngan", 64, label_dim=3)
    with pytest.raises(ValueError, match="expected networks of StyleGAN for bfloat16"):
        preset("sngan", 64, bfloat16=True)
    with pytest.raises(ValueError, match="expected batch of at least 1"):
        preset("sngan", 64, batch=0)


def test_bfloat16_trains() -> None:
    config = preset("stylegan2-small", 16, batch=4, bfloat16=True)
    trainer = Trainer(photos(resolution=16), config)
    trainer.train_step()
    assert all(p.dtype is torch.float32 for p in trainer.generator.parameters())
    assert trainer.generator.synthesis.b16.half_dtype == "bfloat16"  # type: ignore[union-attr]
