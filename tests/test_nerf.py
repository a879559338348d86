"""The NeRF: learning, checkpoints and what can go wrong with them, evaluation."""

from __future__ import annotations

import errno
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from marks import sigint
from scenes import ball

import fastvfx
from fastvfx.data import SceneBounds
from fastvfx.models.nerf import (
    CheckpointError,
    Diverged,
    FieldConfig,
    MarchConfig,
    NerfConfig,
    Probe,
    RadianceField,
    TrainConfig,
    Trainer,
    distortion_loss,
    evaluate,
    load_scene,
    opacity_entropy,
)
from fastvfx.models.nerf import trainer as trainer_module
from fastvfx.models.nerf.trainer import FILES

SMALL = NerfConfig(
    FieldConfig(n_levels=6, log2_hashmap_size=12, max_resolution=64, hidden=16, color_layers=1),
    MarchConfig(step_size=0.05, grid_resolution=16),
    TrainConfig(target_samples=1 << 11, occupancy_start=32, occupancy_every=16),
)
WHITE = torch.ones(3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, and on a busy machine lose a lot."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_learns_the_ball() -> None:
    """The loss falls, and views that were not trained on come out right."""
    trainer = Trainer(ball(), SMALL)
    first = float(trainer.train_step())
    trainer.fit(max_steps=300)
    unseen = ball(3)  # other cameras
    result = evaluate(trainer.model, unseen, WHITE)
    assert trainer.loss < first / 5
    assert result.psnr > 20, f"{result.psnr:.2f} dB"
    assert result.ssim > 0.7
    assert len(result.views) == 3 and result.rays == 3 * 32 * 32


def test_learns_with_the_reference_backend() -> None:
    """Both backends are the same model: after a few steps they agree."""
    losses = {}
    for name in ("native", "reference") if fastvfx._ext._C is not None else ("reference",):
        with fastvfx.backend(name):
            trainer = Trainer(ball(), SMALL)
            losses[name] = [float(trainer.train_step()) for _ in range(4)]
    reference = losses["reference"]
    assert reference[-1] < reference[0]
    assert losses.get("native", reference) == pytest.approx(reference, rel=2e-2)


def test_keeps_to_the_samples_per_step() -> None:
    """The number of rays follows the number of samples."""
    trainer = Trainer(ball(), SMALL)
    trainer.fit(max_steps=60)
    before = trainer.samples
    trainer.fit(max_steps=70)
    assert trainer.samples - before == pytest.approx(10 * SMALL.train.target_samples, rel=0.3)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = Trainer(ball(), SMALL)
    whole.fit(max_steps=40)

    half = Trainer(ball(), SMALL)
    for _ in range(20):
        half.train_step(half.step / 40)
    half.save(tmp_path / "half.safetensors")
    other = Trainer(ball(), SMALL)
    other.train_step()  # whatever it did before is forgotten
    other.restore(tmp_path / "half.safetensors")
    other.fit(max_steps=40)

    assert other.step == whole.step and other.n_rays == whole.n_rays and other.samples == whole.samples
    for a, b in zip(parameters(other), parameters(whole), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_result() -> None:
    runs = []
    for seed in (3, 3, 4):
        trainer = Trainer(ball(), replace(SMALL, train=replace(SMALL.train, seed=seed)))
        trainer.fit(max_steps=10)
        runs.append(torch.cat([p.flatten() for p in parameters(trainer)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_loaded_scene_renders_the_same(tmp_path: Path) -> None:
    trainer = Trainer(ball(), SMALL)
    trainer.fit(max_steps=20, checkpoint=tmp_path / "c.safetensors")
    scene = load_scene(tmp_path / "c.safetensors")
    assert torch.equal(scene.cameras.camera_to_world, trainer.data.cameras.camera_to_world)
    a, b = (model.image(scene.cameras, 0, WHITE) for model in (scene.model, trainer.model))
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth)
    assert a.rgb.shape == (32, 32, 3)


# --- checkpoints that are not ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    trainer = Trainer(ball(), SMALL)
    trainer.train_step()
    trainer.save(path)
    return path


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_scene(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_truncated_checkpoint(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged"):
        load_scene(saved)


def test_garbled_checkpoint(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[:200] = bytes(200)
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        load_scene(saved)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "gan.safetensors"
    save_file({"w": torch.zeros(3)}, path, metadata={"model": "fastvfx.stylegan2"})
    with pytest.raises(CheckpointError, match=r"gan\.safetensors: a checkpoint of fastvfx\.stylegan2, not of fastvfx"):
        load_scene(path)
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="of an unknown program"):
        Trainer(ball(), SMALL).restore(path)


def test_checkpoint_of_another_version(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "FILES", replace(FILES, version=99))
    with pytest.raises(CheckpointError, match="version 1 of the format, this fastvfx reads version 99"):
        load_scene(saved)


def test_checkpoint_whose_tensors_do_not_fit(saved: Path) -> None:
    stored = FILES.load(saved)
    stored.state["config"]["field"]["hidden"] = 32
    FILES.save(saved, stored.tensors, stored.state)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_scene(saved)


def test_resuming_another_scene(saved: Path) -> None:
    data = ball()
    data.bounds = SceneBounds.from_box((-2, -2, -2), (2, 2, 2))
    with pytest.raises(CheckpointError, match="other settings or on another scene"):
        Trainer(data, SMALL).restore(saved)


# --- a full disk, interruptions, divergence -------------------------------------------------------------------------


def test_full_disk_keeps_the_last_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where saving on the way fails training goes on with a warning; where it fails at the end there is an error."""
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    warnings: list[str] = []
    trainer = Trainer(ball(), SMALL)
    with pytest.raises(OSError, match="disk is full"):
        trainer.fit(max_steps=3, checkpoint=saved, checkpoint_every=0, on_warning=warnings.append)
    assert trainer.step == 3 and len(warnings) == 3 and "disk is full" in warnings[0]
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "no temporary file is left"


def test_full_device(tmp_path: Path) -> None:
    """A device without space, not a simulation of it."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError), open(full, "wb") as file:
        file.write(bytes(1 << 20))  # it is what it says
    trainer = Trainer(ball(4, 16), SMALL)
    trainer.train_step()
    trainer.save(tmp_path / "a.safetensors")
    assert load_scene(tmp_path / "a.safetensors").model.bounds == trainer.model.bounds


def test_diverged(tmp_path: Path) -> None:
    trainer = Trainer(ball(), SMALL)
    trainer.fit(max_steps=2, checkpoint=tmp_path / "c.safetensors")
    with torch.no_grad():
        next(trainer.model.field.color_net.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="loss is nan at step 16"):
        trainer.fit(max_steps=40, checkpoint=tmp_path / "c.safetensors")
    assert load_scene(tmp_path / "c.safetensors").model.field.color_net.layers[0].weight.isfinite().all()


INTERRUPTED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from scenes import ball
from test_nerf import SMALL
from fastvfx.models.nerf import Trainer
trainer = Trainer(ball(), SMALL)
shout = lambda trainer, _: print(trainer.step, flush=True)
print("interrupted", trainer.fit(max_seconds=600, checkpoint=Path(sys.argv[1]), on_step=shout), trainer.step)
"""


@sigint
def test_interrupt_saves(tmp_path: Path) -> None:
    """Ctrl-C ends the training after a whole step and keeps it."""
    path = tmp_path / "c.safetensors"
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "1\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read().split("\n")
        assert process.wait(60) == 0, process.stderr.read()
    said, was, step = output[-2].split()
    assert (said, was) == ("interrupted", "True")
    trainer = Trainer(ball(), SMALL)
    trainer.restore(path)
    assert trainer.step == int(step) >= 1
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


# --- parts ----------------------------------------------------------------------------------------------------------


def test_config_survives_json() -> None:
    config = NerfConfig.for_bounds(SceneBounds.from_box((-1, -1, -1), (1, 1, 1), levels=3, near=0.2), seed=5)
    assert NerfConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown colour in FieldConfig"):
        NerfConfig.from_dict({**config.to_dict(), "field": {"colour": 1}})


@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("contract", [False, True])
def test_field_covers_the_outermost_box(levels: int, contract: bool) -> None:
    """The whole outer box lands in the grid's unit cube, its corners on the cube's."""
    bounds = SceneBounds.from_box((-1, -2, -1), (1, 2, 1), levels=levels)
    field = RadianceField(replace(SMALL.field, contract=contract), bounds)
    box = torch.tensor(bounds.outer_aabb).view(2, 3)
    torch.testing.assert_close(field.to_unit(box), torch.tensor([[0.0, 0, 0], [1, 1, 1]]), atol=1e-6, rtol=0)
    inside = box[0] + torch.rand(1000, 3) * (box[1] - box[0])
    unit = field.to_unit(inside)
    assert bool(((unit >= -1e-6) & (unit <= 1 + 1e-6)).all())


def test_field_gradient_is_that_of_its_formula() -> None:
    """The joined step between the two networks against slicing and concatenating under autograd."""
    field = RadianceField(SMALL.field, SceneBounds.from_box((-1, -1, -1), (1, 1, 1)))
    x, directions = torch.rand(50, 3), torch.nn.functional.normalize(torch.randn(7, 3), dim=-1)
    rays = torch.randint(0, 7, (50,), dtype=torch.int32)
    to_sigmas, to_rgbs = torch.randn(50), torch.randn(50, 3)
    grads = []
    for joined in (True, False):
        if joined:
            sigmas, rgbs = field(x, directions, rays)
        else:
            features = field.geometry(x)
            sigmas, rgbs = field.density_of(features), field.color(features, directions, rays)
        loss = (sigmas * to_sigmas).sum() + (rgbs * to_rgbs).sum()
        grads.append((loss, torch.autograd.grad(loss, list(field.parameters()))))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_distortion_loss_is_the_double_sum() -> None:
    """Against the definition, ray by ray; one ray has no samples."""
    offsets = torch.tensor([0, 5, 5, 9])
    edges = torch.rand(10, dtype=torch.float64).sort().values
    t_starts, t_ends = edges[:-1], edges[1:]
    weights = torch.rand(9, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros((), dtype=torch.float64)
    middle, width = (t_starts + t_ends) / 2, t_ends - t_starts
    for a, b in ((0, 5), (5, 9)):
        w, m = weights[a:b], middle[a:b]
        expected = expected + (w[:, None] * w * (m[:, None] - m).abs()).sum() + (w * w * width[a:b]).sum() / 3
    got = distortion_loss(weights, t_starts, t_ends, offsets)
    torch.testing.assert_close(got, expected / 3)
    assert torch.autograd.gradcheck(lambda w: distortion_loss(w, t_starts, t_ends, offsets), weights)
    none = torch.zeros(0)
    assert float(distortion_loss(none, none, none, torch.zeros(4, dtype=torch.int64))) == 0


def test_opacity_entropy() -> None:
    assert float(opacity_entropy(torch.tensor([0.5]))) == pytest.approx(math.log(2))
    assert float(opacity_entropy(torch.tensor([0.0, 1.0]))) < 2e-3


def test_regularisers_train() -> None:
    config = replace(SMALL, train=replace(SMALL.train, opacity_weight=1e-3, distortion_weight=1e-3, loss="mse"))
    trainer = Trainer(ball(), config)
    first = float(trainer.train_step())
    trainer.fit(max_steps=40)
    assert trainer.loss < first


@pytest.mark.parametrize("n_views", [1, 3])
def test_probe_of_every_pixel_is_the_evaluation(n_views: int) -> None:
    """Both are the mean over views of the PSNR of a view, and not the PSNR of all pixels together."""
    trainer = Trainer(ball(), SMALL)
    trainer.fit(max_steps=30)
    views = ball(n_views)
    exact = evaluate(trainer.model, views, WHITE).psnr
    assert Probe(views, WHITE, n_views * 32 * 32)(trainer.model) == pytest.approx(exact, abs=1e-3)


def test_probe_looks_at_enough_of_a_view() -> None:
    """Where there are many views, at some of them rather than at a handful of pixels of each."""
    assert Probe(ball(8), WHITE, 1024).counts == [256] * 4
    assert Probe(ball(8), WHITE, 100).counts == [100]


def test_history_and_its_clock() -> None:
    """Probing takes no training time, and the history ends with the training."""
    trainer = Trainer(ball(4, 16), SMALL)

    def slow_probe(_: object) -> float:
        time.sleep(0.02)
        return 1.0

    start = time.perf_counter()
    trainer.fit(max_steps=40, probe=slow_probe)
    seconds = time.perf_counter() - start
    assert len(trainer.history) >= 10
    assert trainer.seconds < seconds - 0.02 * len(trainer.history) + 0.01
    assert [p.step for p in trainer.history] == sorted({p.step for p in trainer.history})
    assert trainer.history[-1].step == 40


def test_scene_without_a_sample_in_sight() -> None:
    """Cameras that look away: nothing to learn, nothing breaks."""
    data = ball(3, 8)
    data.cameras.camera_to_world[:, :, 3] += 100
    trainer = Trainer(data, SMALL)
    trainer.fit(max_steps=3)
    assert trainer.samples == 0
    picture = trainer.model.image(data.cameras, 0, WHITE)
    assert torch.equal(picture.rgb, torch.ones(8, 8, 3))
