"""Training of VideoBERT: the same numbers again, checkpoints, what it learns and what is done with it."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import sigint
from torch import Tensor

from fastvfx.models.videobert import (
    BatchConfig,
    Captioner,
    CheckpointError,
    Classifier,
    DecoderConfig,
    Diverged,
    Library,
    PretrainLoss,
    ReaderConfig,
    Segment,
    System,
    TrainConfig,
    Trainer,
    VideoBert,
    VideoBertConfig,
    VideoReader,
    VisualConfig,
    fill,
    fill_accuracy,
    load_system,
    retrieval,
    train_vocabulary,
)
from fastvfx.models.videobert.bleu import bleu
from fastvfx.models.videobert.system import FILES
from fastvfx.models.videobert.trainer import schedule

TEXTS = ("a red thing", "a green thing", "a blue thing", "a white thing")
KINDS = ("tokens", "features", "frames")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, and on a busy machine lose a lot."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def library(kind: str = "tokens", texts: tuple[str, ...] = TEXTS) -> Library:
    """Four videos of six units, each with tokens, features or colours of its own."""
    generator = torch.Generator().manual_seed(0)
    units: list[Tensor] = []
    for i in range(len(texts)):
        if kind == "tokens":
            units.append(3 * i + torch.randint(3, (6,), generator=generator))
        elif kind == "features":
            units.append(torch.nn.functional.one_hot(torch.tensor(i), 8) + 0.1 * torch.randn(6, 8, generator=generator))
        else:
            color = torch.tensor([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200)][i % 4], dtype=torch.uint8)
            units.append(color[None, :, None, None].expand(6, 3, 8, 8).contiguous())
    segments = tuple(Segment(i, 0, 6, text, i % 2) for i, text in enumerate(texts))
    return Library(tuple(f"{i}.mp4" for i in range(len(texts))), tuple(units), segments, ("even", "odd"))


VISUAL = {
    "tokens": VisualConfig("tokens", n_tokens=12),
    "features": VisualConfig("features", dim=8, layers=1),
    "frames": VisualConfig("frames", frames=2, size=(8, 8), patch=(1, 4, 4), layers=1),
}


def system(kind: str = "tokens", seed: int = 0, **options: Any) -> System:
    vocabulary = train_vocabulary(TEXTS)
    sizes: dict[str, Any] = {"hidden": 32, "layers": 2, "heads": 2, "inner": 64, "positions": 64, **options}
    torch.manual_seed(seed)
    model = VideoBert(VideoBertConfig(len(vocabulary), vocabulary.special, VISUAL[kind], **sizes))
    reader = VideoReader(ReaderConfig(kind, fps=10, size=8))  # type: ignore[arg-type]
    return System(model, reader, vocabulary, BatchConfig(batch=8), ("even", "odd"))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in trainer.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CONFIG = TrainConfig(learning_rate=1e-3, decay_steps=7)


# --- determinism and resumption -------------------------------------------------------------------------------------


def test_same_seed_same_weights_other_seed_others() -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(system(), library(), replace(CONFIG, seed=seed))
        torch.manual_seed(seed + 77)  # of no influence
        trainer.fit(max_steps=3)
        runs.append(weights(trainer))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    whole = Trainer(system(kind), library(kind), CONFIG)
    whole.fit(max_steps=7)
    Trainer(system(kind), library(kind), CONFIG).fit(max_steps=3, checkpoint=tmp_path / "c.safetensors")
    second = Trainer(system(kind, seed=9), library(kind), CONFIG)
    second.restore(tmp_path / "c.safetensors")
    assert second.step == 3
    second.fit(max_steps=7)
    assert same(weights(whole), weights(second))
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in second.history]


def test_a_loaded_system_says_the_same(tmp_path: Path) -> None:
    trainer = Trainer(system(), library(), CONFIG)
    trainer.fit(max_steps=2, checkpoint=tmp_path / "c.safetensors")
    loaded = load_system(tmp_path / "c.safetensors")
    batch = trainer.batches.whole(library().segments)
    trainer.network.eval()
    a, b = (s.encoder(batch.video, batch.text, video_there=batch.video_there) for s in (trainer.system, loaded))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert loaded.kind == "pretrained" and loaded.vocabulary.to_json() == trainer.system.vocabulary.to_json()


@sigint
def test_interrupt_keeps_what_was_learned(tmp_path: Path) -> None:
    trainer = Trainer(system(), library(), CONFIG)

    def on_step(trainer: Trainer, progress: float) -> None:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)

    assert trainer.fit(max_steps=100, checkpoint=tmp_path / "c.safetensors", on_step=on_step)
    assert trainer.step == 2 and FILES.load(tmp_path / "c.safetensors").state["step"] == 2


def test_the_rate_rises_and_falls_in_straight_lines() -> None:
    assert [schedule(p, 0.2) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert schedule(0, 0.2) == 0.01 and schedule(0.5, 0.0) == 0.5


# --- checkpoints that do not fit ------------------------------------------------------------------------------------


def test_wrong_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    Trainer(system(), library(), CONFIG).fit(max_steps=1, checkpoint=path)

    def going_on(
        kind: str = "tokens", config: TrainConfig = CONFIG, what: Library | None = None, **options: Any
    ) -> None:
        Trainer(system(kind, **options), what or library(kind), config).restore(path)

    with pytest.raises(CheckpointError, match=r"other settings \(config\)"):
        going_on(layers=1)
    with pytest.raises(CheckpointError, match=r"other settings \(config, reader\)"):
        going_on("features")
    with pytest.raises(CheckpointError, match=r"other settings \(train\)"):
        going_on(config=replace(CONFIG, seed=5))
    with pytest.raises(CheckpointError, match="other videos or captions"):
        going_on(what=library(texts=TEXTS[:3]))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_system(tmp_path / "lost.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged, or no safetensors file"):
        load_system(path)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    replace(FILES, model="fastvfx.nerf").save(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"a checkpoint of fastvfx.nerf, not of fastvfx.videobert"):
        load_system(path)
    FILES.save(path, {"x": torch.zeros(1)}, {"kind": "pretrained"})
    with pytest.raises(CheckpointError, match=r"c.safetensors: "):
        load_system(path)


def test_nothing_finite_is_an_error_and_leaves_the_weights() -> None:
    trainer = Trainer(system("features"), library("features"), CONFIG)
    trainer.fit(max_steps=1)
    before = weights(trainer)
    trainer.library.units[0].fill_(math.nan)
    with pytest.raises(Diverged, match="not finite at step"):
        trainer.fit(max_steps=9)
    assert trainer.step > 1 or same(before, weights(trainer))
    assert all(torch.isfinite(x).all() for x in weights(trainer).values())


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_reads_hidden_words_from_videos(kind: str) -> None:
    trainer = Trainer(system(kind, dropout=0.0), library(kind), TrainConfig(3e-3))
    trainer.fit(max_steps=150)
    first, last = trainer.history[:10], trainer.history[-20:]
    for name in ("text", "video", "joint_text", "joint_video"):
        assert sum(r[name] for r in last) / 20 < 0.7 * sum(r[name] for r in first) / 10, name
    model, segments = trainer.system.encoder, library(kind).segments
    accuracy = fill_accuracy(model, trainer.batches, segments)
    # Without the video a colour can only be guessed.
    assert accuracy == {"pieces": 12, "with_video": 1, "without_video": 0.75}
    vocabulary, batch = trainer.system.vocabulary, trainer.batches.whole(segments)
    guesses = fill(model, vocabulary, batch, "a [MASK] [MASK]", top=3)
    assert [place[1][0].piece for place in guesses] == ["thing"] * 4
    assert [place[0][0].piece for place in guesses] == ["red", "green", "blue", "white"]
    assert len(guesses[0][0]) == 3 and 0.5 < guesses[0][0][0].probability <= 1
    with pytest.raises(ValueError, match=r"expected a \[MASK\] in the sentence, got 'a red'"):
        fill(model, vocabulary, batch, "a red")


def test_pretraining_learns_which_caption_belongs_to_a_video() -> None:
    s = system("features", dropout=0.0, layers=3)
    s.batch = BatchConfig(batch=16)
    trainer = Trainer(s, library("features"), TrainConfig(2e-3, decay_steps=500, loss=PretrainLoss(text=0, video=0)))
    for steps in (100, 200, 300, 400):  # it is found at once, after a while
        trainer.fit(max_steps=steps)
        found = retrieval(s.encoder, trainer.batches, library("features").segments, TEXTS)
        if found.mean_rank == 1:
            break
    assert found.top1 == 1 and found.mean_rank == 1 and found.chance1 == 0.25


def test_an_untrained_model_is_near_chance_and_ties_count_half() -> None:
    s = system()
    with torch.no_grad():
        s.encoder.alignment_head.weight.zero_()
    trainer = Trainer(s, library(), CONFIG)
    found = retrieval(s.encoder, trainer.batches, library().segments, TEXTS)
    assert found.top1 == 0 and found.mean_rank == 2.5 and found.summary()["captions"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_learned_and_read_again(tmp_path: Path, kind: str) -> None:
    s = system(kind, dropout=0.0)
    s.network = Captioner(s.encoder, DecoderConfig(layers=1, heads=2, max_length=6, dropout=0.0))
    trainer = Trainer(s, library(kind), TrainConfig(3e-3))
    trainer.fit(max_steps=80, checkpoint=tmp_path / "c.safetensors")
    loaded = load_system(tmp_path / "c.safetensors")
    batch = trainer.batches.whole(library(kind).segments)
    assert loaded.kind == "captioner"
    assert loaded.captions(batch) == list(TEXTS) and loaded.captions(batch, beams=3) == list(TEXTS)


@pytest.mark.parametrize("freeze", [False, True])
def test_classes_are_learned(tmp_path: Path, freeze: bool) -> None:
    s = system(dropout=0.0)
    encoder = {name: x.clone() for name, x in s.encoder.state_dict().items()}
    s.network = Classifier(s.encoder, 2, dropout=0.0)
    trainer = Trainer(s, library(), TrainConfig(1e-2 if freeze else 3e-3, freeze=freeze))
    trainer.fit(max_steps=80, checkpoint=tmp_path / "c.safetensors")
    loaded = load_system(tmp_path / "c.safetensors")
    p = loaded.probabilities(trainer.batches.whole(library().segments))
    assert p.argmax(1).tolist() == [0, 1, 0, 1] and torch.allclose(p.sum(1), torch.ones(4))
    assert same(encoder, dict(s.encoder.state_dict())) == freeze
    with pytest.raises(TypeError, match="expected a captioner, got a classifier one"):
        loaded.captions(trainer.batches.whole(library().segments))
    without = replace(library(), segments=(replace(library().segments[0], label=-1),))
    with pytest.raises(ValueError, match="expected a label of each segment"):
        Trainer(s, without, CONFIG)


# --- searching for sentences ----------------------------------------------------------------------------------------


def mean_log_probability(network: Captioner, memory: Tensor, sentence: list[int]) -> float:
    """Of a sentence and the [SEP] behind it, from the logits of the whole; what is never said has none."""
    special = network.encoder.config.special
    logits = network(memory, None, torch.tensor([[special.cls, *sentence]]))[0].double()
    logits[:, [special.pad, special.unk, special.cls, special.mask, special.video]] = -math.inf
    if len(sentence) == network.config.max_length - 1:
        logits[-1, torch.arange(logits.shape[1]) != special.sep] = -math.inf
    p = logits.log_softmax(-1)
    return float(sum(p[i, piece] for i, piece in enumerate([*sentence, special.sep]))) / (len(sentence) + 1)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_sentence_of_all(seed: int) -> None:
    torch.manual_seed(seed)
    model = VideoBert(VideoBertConfig(10, video=VisualConfig(n_tokens=5), hidden=8, layers=1, heads=2, inner=8))
    network = Captioner(model, DecoderConfig(layers=1, heads=2, max_length=4)).eval()
    for p in network.parameters():
        p.mul_(8)
    video = torch.randint(5, (1, 3))
    memory = network.memory(video)
    words = [6, 7, 8, 9]
    sentences = [list(s) for n in range(4) for s in product(words, repeat=n)]
    best = max(sentences, key=lambda s: mean_log_probability(network, memory, s))
    assert network.write(video, beams=500) == [best]
    greedy: list[int] = []
    while len(greedy) < 3:
        logits = network(memory, None, torch.tensor([[2, *greedy]]))[0, -1]
        piece = max([3, *words], key=lambda i: float(logits[i]))
        if piece == 3:
            break
        greedy.append(piece)
    assert network.write(video, beams=1) == [greedy]


@torch.no_grad()
def test_captions_do_not_depend_on_padding_or_company() -> None:
    s = system()
    network = Captioner(s.encoder, DecoderConfig(layers=1, heads=2, max_length=5)).eval()
    video = torch.randint(12, (2, 4))
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    together = network.write(video, there, beams=2)
    assert together == [network.write(video[:1], beams=2)[0], network.write(video[1:, :2], beams=2)[0]]


def test_a_caption_sees_only_the_words_before() -> None:
    s = system()
    network = Captioner(s.encoder, DecoderConfig(layers=2, heads=2)).eval()
    memory = torch.randn(1, 3, 32)
    a, b = torch.tensor([[2, 7, 8, 9]]), torch.tensor([[2, 7, 8, 10]])
    x, y = network(memory, None, a), network(memory, None, b)
    assert torch.allclose(x[:, :3], y[:, :3], atol=1e-6) and not torch.allclose(x[:, 3], y[:, 3], atol=1e-3)


def test_the_loss_of_captions_against_a_loop() -> None:
    s = system()
    network = Captioner(s.encoder, DecoderConfig(layers=1, heads=2)).eval()
    trainer = Trainer(replace(s, network=network), library(), CONFIG)
    batch = trainer.batches.whole(library().segments)
    total, count = 0.0, 0
    for i, text in enumerate(TEXTS):
        ids = s.vocabulary.encode(text)
        p = network(network.memory(batch.video[i : i + 1]), None, torch.tensor([[2, *ids]])).detach().log_softmax(-1)
        total -= sum(float(p[0, j, piece]) for j, piece in enumerate([*ids, 3]))
        count += len(ids) + 1
    assert network.loss(batch).item() == pytest.approx(total / count, rel=1e-4)


def test_bleu() -> None:
    assert bleu(["the cat is on the mat"], ["The cat is on the mat"]) == pytest.approx(1)
    assert bleu(["a dog"], ["the cat is here"]) == 0
    # Of the runs of one word six of seven are right, of two five of six, and so on.
    said, right = ["a b c d e f x"], ["a b c d e f g"]
    assert bleu(said, right) == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert bleu(["a b c d"], ["a b c d e f g h"]) == pytest.approx(math.exp(1 - 8 / 4))  # too short
    assert bleu(["a a a a"], ["a a b b"], order=1) == pytest.approx(0.5)  # each as often as it is there


def test_history_is_json() -> None:
    trainer = Trainer(system(), library(), replace(CONFIG, loss=PretrainLoss(text=0.5)))
    trainer.fit(max_steps=2)
    assert [row["step"] for row in json.loads(json.dumps(trainer.history))] == [1, 2]
    with pytest.raises(ValueError, match=r"Trainer.fit: expected max_steps or max_seconds"):
        trainer.fit()
