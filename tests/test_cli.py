"""The command line, as a user meets it: exit codes, one line for a mistake, files that are there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import sigint
from scenes import write_ball

from fastvfx import cli
from fastvfx._backend import backend, get_backend

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def unchanged_settings():
    """Commands set the backend and the number of threads for the process."""
    before, threads = get_backend(), torch.get_num_threads()
    torch.set_num_threads(1)  # scenes this small gain nothing from more
    yield
    backend(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ball(tmp_path_factory.mktemp("ball"))


@pytest.fixture(scope="module")
def trained(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training."""
    out = tmp_path_factory.mktemp("run")
    arguments = [
        "nerf",
        "train",
        str(capture),
        "--out",
        str(out),
        "--max-steps",
        "30",
        "--film-frames",
        "4",
        "--threads",
        "1",
    ]
    assert cli.run(arguments) == 0
    return out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Run a command that fails; its one line."""
    assert cli.run([str(a) for a in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fastvfx")
    return lines[0]


# --- info and help --------------------------------------------------------------------------------------------------


def test_info_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["info"]) == 0
    text = capsys.readouterr().out
    for name in ("fastvfx", "torch", "backend", "CPU kernels", "CUDA kernels", "CUDA device", "Triton", "tyro"):
        assert f"{name} " in text


def test_info_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvfx._ext._C", None)
    monkeypatch.setattr("fastvfx._ext.native_devices", frozenset())
    monkeypatch.setattr("fastvfx._ext.why_missing", "no compiler that day")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.run(["info"]) == 0
    text = capsys.readouterr().out
    assert "no compiler that day" in text
    assert "pip install 'fastvfx[cli]'" in text
    assert "CPU tensors run the PyTorch reference" in text


def test_without_tyro(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'fastvfx[cli]'" in mistake(capsys, "nerf", "train", "x", "--out", "y")


def test_module_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "fastvfx", "info"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("fastvfx")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nerf"),
        (["nerf"], "train"),
        (["nerf", "train"], "--max-seconds"),
        (["nerf", "render"], "--frames"),
        (["nerf", "eval"], "--split"),
        (["nerf", "report"], "RUN [RUN ...]"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run([*arguments, "--help"])
    assert end.value.code == 0
    assert expected in capsys.readouterr().out


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["nerf", "train", "x", "--out", "y", "--sped", "3"])
    assert end.value.code == 2
    assert "--sped" in capsys.readouterr().err


# --- train, render, eval, report ------------------------------------------------------------------------------------


def test_train_writes_its_results(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["steps"] == 30 and metrics["device"] == "cpu" and metrics["backend"] in ("native", "reference")
    assert metrics["train_seconds"] > 0 and metrics["samples_per_second"] > 0
    assert 5 < metrics["psnr_test"] < 60 and 0 < metrics["ssim_test"] <= 1
    assert [v["name"] for v in metrics["views"]] == ["000.png", "008.png"]
    assert not metrics["interrupted"] and metrics["history"][-1]["step"] == 30
    names = {p.name for p in (trained / "test").iterdir()}
    assert {"000_render.png", "000_truth.png", "000_depth.png", "001_render.png"} <= names
    assert (trained / "film.mp4").stat().st_size > 0
    assert (trained / "checkpoint.safetensors").is_file()


def test_resume_goes_on(capture: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoint.safetensors", tmp_path)
    base = ["nerf", "train", str(capture), "--out", str(tmp_path), "--film-frames", "0"]
    assert cli.run([*base, "--max-steps", "32", "--resume"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 32 and metrics["history"][0]["step"] < 30


def test_new_training_keeps_the_old_checkpoint(capture: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoint.safetensors", tmp_path)
    base = ["nerf", "train", str(capture), "--out", str(tmp_path), "--film-frames", "0", "--test-every", "0"]
    assert cli.run([*base, "--max-steps", "2"]) == 0
    assert (tmp_path / "previous.safetensors").read_bytes() == (trained / "checkpoint.safetensors").read_bytes()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 2 and metrics["psnr_test"] is None


def test_eval_repeats_the_score(
    capture: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoint.safetensors"
    assert cli.run(["nerf", "eval", str(checkpoint), str(capture), "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert printed["psnr_test"] == pytest.approx(metrics["psnr_test"], abs=1e-4)
    assert json.loads((tmp_path / "metrics.json").read_text()) == printed
    assert (tmp_path / "001_truth.png").is_file()


@pytest.mark.parametrize("path", ["orbit", "poses"])
def test_render_film(trained: Path, tmp_path: Path, path: str) -> None:
    out = tmp_path / "film.mp4"
    arguments = ["--out", str(out), "--frames", "3", "--width", "16", "--path", path]
    assert cli.run(["nerf", "render", str(trained / "checkpoint.safetensors"), *arguments]) == 0
    assert out.stat().st_size > 0


def test_render_views(capture: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "views"), "--views", str(capture), "--split", "test"]
    assert cli.run(["nerf", "render", str(trained / "checkpoint.safetensors"), *arguments]) == 0
    assert sorted(p.name for p in (tmp_path / "views").iterdir()) == ["0000.png", "0001.png"]


def test_report_holds_everything(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert cli.run(["nerf", "report", str(trained), str(trained), "--out", str(out), "--title", "a <ball>"]) == 0
    page = out.read_text()
    assert "a &lt;ball&gt;" in page and "<svg" in page and "data:video/mp4" in page
    assert page.count("data:image/png") == 2 * 4  # two views: the truth, two runs, the depth
    assert 'src="http' not in page
    assert "Settings, seed, number of threads and processor are the same." in page


def test_report_says_what_differs(trained: Path, tmp_path: Path) -> None:
    """A comparison of trainings that are not alike is no comparison of backends."""
    other = shutil.copytree(trained, tmp_path / "other")
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["seed"], metrics["history"][0]["psnr"] = 5, None
    (other / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "report.html"
    assert cli.run(["nerf", "report", str(trained), str(other), "--out", str(out)]) == 0
    assert "The trainings differ in: seed." in out.read_text()


@pytest.mark.parametrize("content", ["3", "{}", "[1, 2", '{"backend": "native"}'])
def test_report_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    assert "metrics.json" in mistake(capsys, "nerf", "report", tmp_path, "--out", tmp_path / "report.html")


@sigint
def test_interrupt_keeps_what_was_learned(capture: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastvfx", "nerf", "train", str(capture), "--out", str(tmp_path)]
    # The first probe is made after the first steps: metrics exist from there.
    wrapper = "import sys, fastvfx.models.nerf.trainer as t, fastvfx.cli as c\n"
    wrapper += "step = t.Trainer.train_step\n"
    wrapper += "def loud(self, *a):\n    loss = step(self, *a)\n    print(self.step, flush=True)\n    return loss\n"
    wrapper += "t.Trainer.train_step = loud\nsys.exit(c.run(sys.argv[1:]))\n"
    command = [sys.executable, "-c", wrapper, *command[3:], "--max-seconds", "600", "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "1\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"] and metrics["steps"] >= 1 and metrics["psnr_test"] is not None
    assert (tmp_path / "checkpoint.safetensors").is_file()


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_no_such_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere" in mistake(capsys, "nerf", "train", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_capture_without_an_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_ball(tmp_path / "ball", n=3)
    (folder / "001.png").unlink()
    assert "001.png" in mistake(capsys, "nerf", "train", folder, "--out", tmp_path / "out")


def test_truncated_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_ball(tmp_path / "ball", n=3)
    image = folder / "001.png"
    image.write_bytes(image.read_bytes()[:60])
    assert "001.png" in mistake(capsys, "nerf", "train", folder, "--out", tmp_path / "out")


def test_out_is_a_file(capsys: pytest.CaptureFixture[str], capture: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "is a file" in mistake(capsys, "nerf", "train", capture, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "option", [("--max-seconds", "0"), ("--max-steps", "-1"), ("--downscale", "0"), ("--threads", "0")], ids=" ".join
)
def test_bad_number(capsys: pytest.CaptureFixture[str], capture: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    assert option[0] in mistake(capsys, "nerf", "train", capture, "--out", tmp_path / "out", *option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str], capture: Path, tmp_path: Path) -> None:
    said = mistake(capsys, "nerf", "train", capture, "--out", tmp_path, "--device", "cuda")
    assert "no CUDA device" in said


def test_native_without_the_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, capture: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("fastvfx._ext.native_devices", frozenset())
    monkeypatch.setattr("fastvfx._ext.why_missing", "no compiler that day")
    said = mistake(capsys, "nerf", "train", capture, "--out", tmp_path, "--backend", "native")
    assert "no compiler that day" in said


def test_checkpoint_that_is_none(capsys: pytest.CaptureFixture[str], capture: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert "no such checkpoint" in mistake(capsys, "nerf", "eval", path, capture)
    path.write_text("hello")
    assert "damaged" in mistake(capsys, "nerf", "render", path, "--out", tmp_path / "film.mp4")


def test_report_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "metrics.json" in mistake(capsys, "nerf", "report", tmp_path, "--out", tmp_path / "report.html")


def test_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, capture: Path, tmp_path: Path
) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    arguments = ["nerf", "train", str(capture), "--out", str(tmp_path / "out"), "--max-steps", "2"]
    assert cli.run(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "disk is full" in lines[-1] and "Traceback" not in "".join(lines)
