"""``fastvfx video``, as a user meets it: exit codes, one line for a mistake, files that are there."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from clips import SCENES, captioned, scene, write_clip
from marks import sigint
from PIL import Image

from fastvfx import cli
from fastvfx._backend import backend, get_backend
from fastvfx.models.checkpoint import Format
from fastvfx.models.videobert import Trainer, load_system
from fastvfx.models.videobert.tokenfile import load_tokens

#: Small and quick.
TINY = ["--model", "tiny", "--threads", "1", "--batch", "4", "--concatenate", "0"]
WINDOW = ["--fps", "10", "--clip-frames", "4", "--frame-size", "16", "--depth", "1", "--ways", "8"]


@pytest.fixture(autouse=True)
def unchanged_settings() -> Iterator[None]:
    """Commands set the backend and the number of threads for the process."""
    before, threads = get_backend(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    backend(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of two seconds, with captions and labels."""
    return captioned(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training on tokens."""
    out = tmp_path_factory.mktemp("run")
    arguments = ["video", "pretrain", str(data), "--out", str(out), "--max-steps", "60", "--learning-rate", "2e-3"]
    assert cli.run([*arguments, "--hold-out", "0.4", *TINY, *WINDOW]) == 0
    return out


@pytest.fixture(scope="module")
def of_frames(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two steps on frames."""
    out = tmp_path_factory.mktemp("frames")
    front_end = ["--front-end", "frames", "--frame-size", "16", "--patch", "8", "--clip-frames", "4"]
    assert cli.run(["video", "pretrain", str(data), "--out", str(out), *front_end, "--max-steps", "2", *TINY]) == 0
    return out


def run(*arguments: object) -> int:
    return cli.run(["video", *(str(a) for a in arguments)])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Run a command that fails; its last line, behind those of progress bars."""
    assert run(*arguments) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("fastvfx")
    return last


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([], "finetune"),
        (["tokenize"], "tokens.safetensors"),
        (["pretrain"], '{"cut.mp4": "a person cuts an onion"'),
        (["finetune"], "--decoder-layers"),
        (["caption"], "--fill"),
    ],
    ids=" ".join,
)
def test_help(capsys: pytest.CaptureFixture[str], command: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["video", *command, "--help"])
    assert end.value.code == 0
    assert expected in capsys.readouterr().out


# --- tokenize -------------------------------------------------------------------------------------------------------


def test_tokenize_and_pretrain_from_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenize", data, "--out", tmp_path / "t", *WINDOW) == 0
    told = json.loads((tmp_path / "t" / "tokens.json").read_text())
    assert told["clips"] == 20 and told["seconds_per_clip"] == 0.4 and 4 <= told["tokens"] <= 8
    # Colours that stand still are one token from beginning to end, and different ones.
    red, green = (set(told["videos"][f"{name}.mp4"]) for name in ("red", "green"))
    assert len(red) == len(green) == 1 and red != green
    assert Image.open(tmp_path / "t" / "tokens.png").width > 100
    reader, raw = load_tokens(tmp_path / "t" / "tokens.safetensors")
    assert reader.finish(raw["red.mp4"]).tolist() == told["videos"]["red.mp4"]
    assert "20 clips of 4 videos became" in capsys.readouterr().err

    tokens = tmp_path / "t" / "tokens.safetensors"
    for kind in ("tokens", "features"):
        assert (
            run(
                "pretrain",
                data,
                "--out",
                tmp_path / kind,
                "--tokens",
                tokens,
                "--front-end",
                kind,
                "--max-steps",
                1,
                *TINY,
            )
            == 0
        )
        assert json.loads((tmp_path / kind / "metrics.json").read_text())["reader"]["length"] == 4
    told = mistake(capsys, "pretrain", data, "--out", tmp_path / "x", "--tokens", tokens, "--front-end", "frames")
    assert told == "fastvfx: --tokens holds features: it is for --front-end tokens or features"
    write_clip(tmp_path / "more.mp4", scene("red"), 4)
    (tmp_path / "captions.csv").write_text("video,caption\nmore.mp4,x\n")
    told = mistake(capsys, "pretrain", tmp_path, "--out", tmp_path / "x", "--tokens", tokens)
    assert "more.mp4 is not in it" in told


# --- pretrain -------------------------------------------------------------------------------------------------------


def test_pretrain_writes_its_results(pretrained: Path) -> None:
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert metrics["steps"] == 60 and metrics["clips"] == 4 and metrics["videos"] == 4 and metrics["held_out"] == 4
    assert metrics["config"]["hidden"] == 64 and metrics["config"]["video"]["kind"] == "tokens"
    assert metrics["reader"] == {
        "kind": "tokens", "fps": 10.0, "length": 4, "size": 16, "network": "random", "depth": 1, "ways": 8,
    }  # fmt: skip
    for what in ("training clips", "held-out clips"):
        found = metrics[f"retrieval, {what}"]
        assert [row["clip"] for row in found["ranks"]] == list(SCENES)
        assert sum(row["rank"] for row in found["ranks"]) / 4 == pytest.approx(found["mean_rank"])
        assert found["captions"] == 4 and found["chance_top1"] == 0.25 and 0 <= found["top1"] <= 1
        assert 0 <= metrics[f"words filled in, {what}"]["with_video"] <= 1
    assert set(metrics["history"][0]) == {"step", "seconds", "text", "video", "joint_text", "joint_video", "alignment"}
    for name in ("loss.png", "retrieval.png"):
        assert Image.open(pretrained / name).width > 300
    assert not (pretrained / "attention.png").exists()


def test_pretrain_on_frames_draws_attention(data: Path, of_frames: Path, tmp_path: Path) -> None:
    assert Image.open(of_frames / "attention.png").width > 100
    template = ["--fill", "a picture of [MASK] things", "--attention", tmp_path / "one.png"]
    own = of_frames / "checkpoint.safetensors"
    assert run("caption", own, data / "red.mp4", *template) == 0
    one = Image.open(tmp_path / "one.png")
    more = [data / "red.mp4", data / "green.mp4", "--fill", "[MASK] picture of [MASK] things"]
    assert run("caption", own, *more, "--attention", tmp_path / "four.png") == 0
    assert Image.open(tmp_path / "four.png").height > 2 * one.height


def test_resume_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["pretrain", data, "--out", tmp_path, *TINY, *WINDOW]
    assert run(*base, "--max-steps", 2) == 0
    assert run(*base, "--max-steps", 4, "--resume") == 0
    assert "going on from step 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 4
    told = mistake(capsys, *base, "--max-steps", 5, "--resume", "--seed", 3)
    assert "trained with other settings (train)" in told
    told = mistake(capsys, *base, "--max-steps", 5, "--resume", "--front-end", "frames", "--patch", 8)
    assert "trained with other settings (config, reader)" in told
    assert run(*base, "--max-steps", 1) == 0
    assert (tmp_path / "previous.safetensors").is_file()


def test_from_a_bert(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "things", *SCENES]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    arguments = ["pretrain", data, "--out", tmp_path / "run", "--bert", tmp_path / "bert", "--max-steps", 1]
    assert run(*arguments, *TINY, *WINDOW) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["config"]["hidden"] == 16 and metrics["vocabulary"] == len(words)
    (tmp_path / "bert" / "config.json").unlink()
    assert "expected a folder with config.json" in mistake(capsys, *arguments)


@sigint
def test_interrupt_keeps_and_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer, progress: float = 0.0) -> None:
        step(self, progress)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert run("pretrain", data, "--out", tmp_path, "--max-seconds", 300, *TINY, *WINDOW) == 130
    assert f"interrupted after 2 steps; saved {tmp_path / 'checkpoint.safetensors'}, go on with --resume" in " ".join(
        capsys.readouterr().err.split()
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["interrupted"]
    assert load_system(tmp_path / "checkpoint.safetensors").kind == "pretrained"


# --- finetune and caption -------------------------------------------------------------------------------------------


def test_finetune_to_captions_and_write_them(
    data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = pretrained / "checkpoint.safetensors"
    arguments = ["--out", tmp_path, "--max-steps", 60, "--learning-rate", "3e-3", "--batch", 4, "--hold-out", 0.4]
    assert run("finetune", checkpoint, data, *arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["training clips"]["right"] == 1 and metrics["training clips"]["bleu4"] == pytest.approx(1)
    rows = json.loads((tmp_path / "results.json").read_text())["clips"]
    assert rows[0]["said"] == rows[0]["caption"] == "a picture of red things" and len(rows) == 8
    capsys.readouterr()
    own = tmp_path / "checkpoint.safetensors"
    assert run("caption", own, data / "green.mp4", data / "red.mp4", "--beams", 2) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["caption"] for line in lines] == ["a picture of green things", "a picture of red things"]
    assert "a captioner; --fill is for checkpoints" in mistake(
        capsys, "caption", own, data / "red.mp4", "--fill", "[MASK]"
    )
    assert "expected a checkpoint of `fastvfx video pretrain`" in mistake(
        capsys, "finetune", own, data, "--out", tmp_path / "x"
    )


def test_captions_with_capitals_are_right(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """Word pieces in lower case cannot write them."""
    (tmp_path / "red.mp4").write_bytes((data / "red.mp4").read_bytes())
    (tmp_path / "captions.json").write_text('{"red.mp4": "A Picture of RED things"}')
    arguments = ["--out", tmp_path / "run", "--max-steps", 60, "--learning-rate", "3e-3", "--batch", 4]
    assert run("finetune", pretrained / "checkpoint.safetensors", tmp_path, *arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["training clips"]["right"] == 1


def test_finetune_to_classes(data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = pretrained / "checkpoint.safetensors"
    arguments = ["--out", tmp_path, "--max-steps", 60, "--learning-rate", "3e-3", "--batch", 4, "--task", "classify"]
    assert run("finetune", checkpoint, data, *arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["training clips"] == {"right": 1.0} and metrics["labels"] == sorted(SCENES)
    capsys.readouterr()
    assert run("caption", tmp_path / "checkpoint.safetensors", data / "stripes.mp4", "--top", 2) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert len(classes) == 2 and next(iter(classes)) == "stripes"


def test_fill(data: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = pretrained / "checkpoint.safetensors"
    assert run("caption", own, data / "red.mp4", "--fill", "a picture of [MASK] [MASK]", "--top", 3) == 0
    (first, second) = json.loads(capsys.readouterr().out)["fill"]
    assert len(first) == 3 and next(iter(second)) == "things" and 0 < sum(first.values()) <= 1
    assert run("caption", own, data / "red.mp4", "--fill", "a [MASK]", "--top", 100000) == 0
    (all_of_them,) = json.loads(capsys.readouterr().out)["fill"]
    assert "[SEP]" not in all_of_them and sum(all_of_them.values()) == pytest.approx(1, abs=0.01)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_with_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "out", "--max-steps", 1, *TINY, *WINDOW]
    assert "no such file or folder" in mistake(capsys, "pretrain", tmp_path / "lost", *out)
    assert "expected captions.json" in mistake(capsys, "pretrain", tmp_path, *out)
    (tmp_path / "captions.csv").write_text("video,caption\nlost.mp4,x\n")
    assert "captions.csv: line 2: no such video" in mistake(capsys, "pretrain", tmp_path, *out)
    (tmp_path / "a.mp4").write_bytes((data / "red.mp4").read_bytes()[:700])
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,x\n")
    assert "a.mp4: " in mistake(capsys, "pretrain", tmp_path, *out)
    assert "none of its videos can be read" in mistake(capsys, "pretrain", tmp_path, *out, "--skip-broken")
    (tmp_path / "b.mp4").write_bytes((data / "red.mp4").read_bytes())
    (tmp_path / "captions.csv").write_text("video,caption,start\nb.mp4,x,7\n")
    assert "line 2: begins at 7 s, b.mp4 ends at 2.00 s" in mistake(capsys, "pretrain", tmp_path, *out)
    (tmp_path / "captions.csv").write_text(
        "video,caption,start\na.mp4,x,0\nb.mp4,y,7\nb.mp4,z,0\nlost.mp4,x,0\nb.mp4,w,1\n"
    )
    assert run("pretrain", tmp_path, *out, "--skip-broken") == 0
    said = capsys.readouterr().err
    assert "left out line 5: no such video" in said and "left out a.mp4" in said and "begins at 7 s" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--hold-out", "1"], "expected --hold-out in [0, 1), got 1"),
        (["--batch", "0"], "expected --batch above 0, got 0"),
        (["--fps", "-1"], "expected --fps above 0, got -1"),
        (["--depth", "0"], "expected --depth of at least 1"),
        (["--test-every", "1"], "nothing is left to learn from"),
        (["--dropout", "1"], "expected --dropout in [0, 1), got 1"),
        (["--concatenate", "1"], "expected --concatenate in [0, 1), got 1"),
        (["--front-end", "frames", "--frame-size", "15"], "--frame-size, --patch: "),
        (["--vocabulary", "lost.txt"], "lost.txt: can't be read"),
        (["--threads", "0"], "expected --threads of at least 1"),
        (["--seed", "-1"], "expected --seed of at least 0"),
        (["--max-steps", "0"], "expected --max-steps above 0, got 0"),
        (["--learning-rate", "inf"], "expected --learning-rate above 0, got inf"),
        (["--fps", "1e9"], "expected --fps of at most 1000, got 1e+09"),
        (["--visual-layers", "-1"], "expected --visual-layers of at least 0, got -1"),
        (["--tokens", "lost.safetensors"], "lost.safetensors: no such checkpoint"),
        (["--bert", "lost"], "lost: expected a folder with config.json"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_mistakes_with_options(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    base = dict(zip([*WINDOW[::2]], WINDOW[1::2], strict=True))
    base.update(dict(zip(options[::2], options[1::2], strict=True)))
    arguments = [word for pair in base.items() for word in pair]
    told = mistake(capsys, "pretrain", data, "--out", tmp_path / "out", "--max-steps", 1, *arguments)
    assert expected in told
    assert not (tmp_path / "out").exists()


def test_mistakes_with_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with av.open(str(tmp_path / "none.mp4"), "w") as container:  # a track, and nothing on it
        container.add_stream("libx264", rate=10).width = 32
        container.start_encoding()
    write_clip(tmp_path / "single.mp4", scene("red"), 1)
    out = ["--out", tmp_path / "out", *WINDOW]
    (tmp_path / "captions.json").write_text('{"none.mp4": "nothing", "single.mp4": "a picture"}')
    assert "none.mp4: " in mistake(capsys, "tokenize", tmp_path, *out)
    assert run("tokenize", tmp_path, *out, "--skip-broken") == 0
    assert "left out none.mp4" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "tokens.json").read_text())["clips"] == 1
    (tmp_path / "empty").mkdir()
    assert "empty: expected captions.json" in mistake(capsys, "tokenize", tmp_path / "empty", *out)
    for place in ("single.mp4", "single.mp4/run"):
        told = mistake(capsys, "tokenize", tmp_path, "--out", tmp_path / place, *WINDOW)
        assert told == f"fastvfx: {tmp_path / 'single.mp4'}: is a file, expected a folder for the results"


def test_mistakes_with_checkpoints(
    data: Path, pretrained: Path, of_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = pretrained / "checkpoint.safetensors"
    assert "pre-trained only: give --fill" in mistake(capsys, "caption", own, data / "red.mp4")
    assert "expected a [MASK]" in mistake(capsys, "caption", own, data / "red.mp4", "--fill", "red")
    assert "--attention needs --fill" in mistake(
        capsys, "caption", own, data / "red.mp4", "--fill", "[MASK]", "--attention", tmp_path / "a.png"
    )
    assert "expected at least one VIDEO" in mistake(capsys, "caption", own)
    told = mistake(capsys, "finetune", own, data, "--out", pretrained)
    assert f"--out: {own} is in this folder itself" in told
    assert "no such video" in mistake(capsys, "caption", own, tmp_path / "lost.mp4", "--fill", "[MASK]")
    assert "expected --end after 2, got 1" in mistake(
        capsys, "caption", own, data / "red.mp4", "--fill", "[MASK]", "--start", 2, "--end", 1
    )
    assert "no such checkpoint" in mistake(capsys, "caption", tmp_path / "lost", data / "red.mp4")
    Format("fastvfx.gan").save(tmp_path / "gan.safetensors", {"x": torch.zeros(1)}, {})
    assert "a checkpoint of fastvfx.gan, not of fastvfx.videobert" in mistake(
        capsys, "finetune", tmp_path / "gan.safetensors", data, "--out", tmp_path / "out"
    )
    for place, expected in (("a.txt", "expected --attention to be a .png file"), ("lost/a.png", "there is no folder")):
        arguments = ["--fill", "[MASK]", "--attention", tmp_path / place]
        assert expected in mistake(
            capsys, "caption", of_frames / "checkpoint.safetensors", data / "red.mp4", *arguments
        )
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,x\n")
    (tmp_path / "a.mp4").write_bytes((data / "red.mp4").read_bytes())
    assert "expected labels of at least 2 classes, got 0" in mistake(
        capsys, "finetune", own, tmp_path, "--out", tmp_path / "out", "--task", "classify"
    )
