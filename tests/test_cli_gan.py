"""``fastvfx gan``, as a user meets it: exit codes, one line for a mistake, files that are there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import sigint
from official_pickles import CONFIG, CONFIG3, Calls, dumped, official, official_modules  # noqa: F401  (a fixture)
from PIL import Image

from fastvfx import cli
from fastvfx._backend import backend, get_backend
from fastvfx.cli.gan import parse_seeds
from fastvfx.data import load_photos, read_image
from fastvfx.models import stylegan2, stylegan3
from fastvfx.models.gan import Sampler, Trainer, grid, load_sampler, preset

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def unchanged_settings():
    """Commands set the backend and the number of threads for the process."""
    before, threads = get_backend(), torch.get_num_threads()
    torch.set_num_threads(1)  # images this small gain nothing from more
    yield
    backend(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of 8x8 in two classes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(6):
        path = root / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training, with classes."""
    out = tmp_path_factory.mktemp("run")
    arguments = ["gan", "train", str(data), "--out", str(out), "--max-steps", "4", "--batch", "4", "--threads", "1"]
    assert cli.run([*arguments, "--labels", "--mirror", "--samples", "5", "--augment", "ada", "--gamma", "0.5"]) == 0
    return out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Run a command that fails; its last line, behind those of progress bars."""
    assert cli.run([str(a) for a in arguments]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("fastvfx")
    return last


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gan"], "generate"),
        (["gan", "train"], "--max-kimg"),
        (["gan", "generate"], "0-15"),
        (["gan", "eval"], "PPL-x"),
    ],
    ids=" ".join,
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run([*arguments, "--help"])
    assert end.value.code == 0
    assert expected in capsys.readouterr().out


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_writes_its_results(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["steps"] == 4 and metrics["kimg"] == 0.016 and metrics["train_seconds"] > 0
    assert metrics["photos"] == 6 and metrics["class_names"] == ["cats", "dogs"] and metrics["resolution"] == 8
    assert metrics["config"]["loss"]["r1_gamma"] == 0.5 and metrics["config"]["augment"]["target"] == 0.6
    assert metrics["backend"] in ("native", "reference") and not metrics["interrupted"]
    assert [row["step"] for row in metrics["history"]] == [1, 2, 3, 4]
    assert (trained / "checkpoint.safetensors").is_file()
    assert (trained / "loss.svg").read_text().startswith("<svg")
    grids = sorted(p.name for p in (trained / "samples").iterdir())
    assert grids[-1] == "step0000004.png" and len(grids) == 4
    for name in ("samples.png", "photos.png"):
        assert Image.open(trained / name).size == (24, 16)


def test_resume_goes_on(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoint.safetensors", tmp_path)
    base = [
        "gan",
        "train",
        str(data),
        "--out",
        str(tmp_path),
        "--batch",
        "4",
        "--labels",
        "--mirror",
        "--augment",
        "ada",
    ]
    assert cli.run([*base, "--gamma", "0.5", "--max-steps", "5", "--resume"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 5 and len(metrics["history"]) == 5


def test_resume_with_other_settings(
    capsys: pytest.CaptureFixture[str], data: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copy(trained / "checkpoint.safetensors", tmp_path)
    said = mistake(capsys, "gan", "train", data, "--out", tmp_path, "--labels", "--max-steps", 5, "--resume")
    assert "other settings" in said


def test_new_training_keeps_the_old_checkpoint(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoint.safetensors", tmp_path)
    assert cli.run(["gan", "train", str(data), "--out", str(tmp_path), "--batch", "2", "--max-kimg", "0.002"]) == 0
    assert (tmp_path / "previous.safetensors").read_bytes() == (trained / "checkpoint.safetensors").read_bytes()


@sigint
def test_interrupt_keeps_what_was_learned(data: Path, tmp_path: Path) -> None:
    wrapper = (
        "import sys, fastvfx.models.gan.trainer as t, fastvfx.cli as c\n"
        "step = t.Trainer.train_step\n"
        "def loud(self):\n    step(self)\n    print(self.step, flush=True)\n"
        "t.Trainer.train_step = loud\nsys.exit(c.run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", wrapper, "gan", "train", str(data), "--out", str(tmp_path), "--batch", "2"]
    command += ["--max-seconds", "600", "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "1\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"] and metrics["steps"] >= 1
    assert (tmp_path / "checkpoint.safetensors").is_file() and (tmp_path / "samples.png").is_file()


def test_divergence(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    said = mistake(
        capsys, "gan", "train", data, "--out", tmp_path, "--batch", 2, "--max-steps", 9, "--learning-rate", 1e30, code=1
    )
    assert "not finite at step" in said and "lower learning rate" in said


# --- generate and eval ----------------------------------------------------------------------------------------------


def test_generate_into_a_folder(trained: Path, tmp_path: Path) -> None:
    arguments = ["gan", "generate", str(trained / "checkpoint.safetensors"), "--out", str(tmp_path), "--label", "dogs"]
    assert cli.run([*arguments, "--seeds", "0-2,7", "--truncation", "0.7", "--interpolate", "--frames", "2"]) == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["grid.png", "interpolation.mp4", *(f"seed{i:04d}.png" for i in (0, 1, 2, 7))]
    assert Image.open(tmp_path / "grid.png").size == (16, 16)


def test_generate_a_grid_or_a_film(trained: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    base = ["gan", "generate", str(trained / "checkpoint.safetensors"), "--seeds", "3-5", "--label", "0", "--out"]
    assert cli.run([*base, str(tmp_path / "g.png"), "--columns", "3"]) == 0
    assert Image.open(tmp_path / "g.png").size == (24, 8)
    assert cli.run([*base, str(tmp_path / "walk.mp4"), "--frames", "4"]) == 0
    with av.open(str(tmp_path / "walk.mp4")) as film:
        assert len(list(film.decode(video=0))) == 12


def test_eval_prints_distances(capsys: pytest.CaptureFixture[str], data: Path, trained: Path) -> None:
    capsys.readouterr()
    assert cli.run(["gan", "eval", str(trained / "checkpoint.safetensors"), str(data), "--paths", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["FD-random"] > 0 and result["PPL-random"] > 0 and result["images"] == 6
    assert set(result) == {"FD-random", "KID-random", "PPL-random", "images", "truncation"}


def test_half_grown_networks(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    """Pictures are as large as the network has grown, and are compared with photographs of that size."""
    recipe = preset("pggan", 8, batch=4)
    generator = replace(recipe.generator, z_dim=8, channel_base=64)  # type: ignore[call-arg]
    discriminator = replace(recipe.discriminator, channel_base=64)  # type: ignore[call-arg]
    path = tmp_path / "c.safetensors"
    trainer = Trainer(load_photos(data), replace(recipe, generator=generator, discriminator=discriminator))
    trainer.fit(max_steps=1, checkpoint=path)
    capsys.readouterr()
    assert cli.run(["gan", "eval", str(path), str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["FD-random"] > 0
    assert cli.run(["gan", "generate", str(path), "--seeds", "3", "--out", str(tmp_path)]) == 0
    assert read_image(next(tmp_path.glob("*3.png"))).shape[:2] == (4, 4)


def test_seeds() -> None:
    assert parse_seeds("0-3, 7,5") == [0, 1, 2, 3, 7, 5]
    for bad in ("", "a", "3-1", "-1", "0-99999999999", "1,,2"):
        with pytest.raises(cli.UserError, match="expected --seeds"):
            parse_seeds(bad)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_no_such_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere" in mistake(capsys, "gan", "train", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_damaged_image(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "photos")
    broken = tmp_path / "photos" / "cats" / "2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    base = ["gan", "train", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--batch", "2"]
    assert "2.png" in mistake(capsys, *base)
    assert cli.run([*base, "--max-steps", "1", "--skip-broken"]) == 0
    assert "left out 1 files that can't be read" in capsys.readouterr().err


def test_malformed_zip(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"PK\x03\x04")
    assert "damaged, or no zip file" in mistake(capsys, "gan", "train", tmp_path / "p.zip", "--out", tmp_path / "out")


def test_out_is_a_file(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "is a file" in mistake(capsys, "gan", "train", data, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "option",
    [
        ("--max-seconds", "0"),
        ("--max-kimg", "-1"),
        ("--resolution", "48"),
        ("--batch", "0"),
        ("--gamma", "-1"),
        ("--seed", "-1"),
        ("--learning-rate", "0"),
        ("--threads", "0"),
    ],
    ids=" ".join,
)
def test_bad_number(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    assert option[0] in mistake(capsys, "gan", "train", data, "--out", tmp_path / "out", *option)


def test_preset_without_labels(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    said = mistake(capsys, "gan", "train", data, "--out", tmp_path, "--preset", "sngan", "--labels")
    assert "networks take none" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "birds"], "expected --label to be a number or one of cats, dogs, got birds"),
        (["--label", "2"], "expected a label from 0 to 1, got 2"),
        ([], "expected a label from 0 to 1, got None"),
        (["--label", "0", "--seeds", "x"], "expected --seeds"),
        (["--label", "0", "--fps", "0"], "expected --fps above 0"),
    ],
)
def test_bad_generate(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    checkpoint = trained / "checkpoint.safetensors"
    assert message in mistake(capsys, "gan", "generate", checkpoint, "--out", tmp_path / "out", *options)


def test_generate_into_what(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    said = mistake(capsys, "gan", "generate", trained / "checkpoint.safetensors", "--out", tmp_path / "a.gif")
    assert "expected a folder, a .png or a .mp4 file" in said


def test_checkpoint_of_a_nerf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fastvfx.models.checkpoint import Format

    Format("fastvfx.nerf").save(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, {})
    said = mistake(capsys, "gan", "generate", tmp_path / "c.safetensors", "--out", tmp_path / "out")
    assert "a checkpoint of fastvfx.nerf, not of fastvfx.gan" in said


# --- files of other programs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [stylegan2.Generator(CONFIG), stylegan3.Generator(CONFIG3)], ids=["2", "3"])
def test_pictures_from_a_pickle_of_nvidias(tmp_path: Path, net: torch.nn.Module) -> None:
    path = dumped(tmp_path / "network.pkl", {"G_ema": official(net)})
    assert cli.run(["gan", "generate", str(path), "--seeds", "0-1", "--out", str(tmp_path / "grid.png")]) == 0
    z = load_sampler(path).latents([0, 1])
    expected = grid(Sampler(net.eval()).images(z))
    written = read_image(tmp_path / "grid.png")  # 8 bits: half a step off at most
    torch.testing.assert_close(written.float() / 255, expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_malicious_pickle_is_refused_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = dumped(tmp_path / "network.pkl", {"G_ema": Calls(os.system, f"touch {tmp_path / 'ran'}")})
    said = mistake(capsys, "gan", "generate", path, "--out", tmp_path / "grid.png")
    assert "not a file of networks that can be read" in said and "system" in said
    assert not (tmp_path / "ran").exists()
