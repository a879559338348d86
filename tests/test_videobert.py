"""VideoBERT: sequences, masks, losses, batches."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvfx.models.videobert import (
    BatchConfig,
    Batches,
    Library,
    PretrainLoss,
    Segment,
    VideoBert,
    VideoBertConfig,
    VisualConfig,
    losses,
    pretraining_terms,
    train_vocabulary,
)
from fastvfx.models.videobert.batches import Batch
from fastvfx.models.videobert.masking import choose, mask_tokens, mask_vectors
from fastvfx.models.videobert.visual import VisualTransformer, patches

TOKENS = VisualConfig("tokens", n_tokens=30)
FEATURES = VisualConfig("features", dim=7)
FRAMES = VisualConfig("frames", frames=4, size=(8, 12), patch=(2, 4, 4))
KINDS = pytest.mark.parametrize("video", [TOKENS, FEATURES, FRAMES], ids=["tokens", "features", "frames"])


def make(video: VisualConfig = TOKENS, **options: Any) -> VideoBert:
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "inner": 32, "positions": 64, **options}
    return VideoBert(VideoBertConfig(40, video=video, **sizes))


def some_video(video: VisualConfig, batch: int = 3, n: int = 5) -> Tensor:
    if video.kind == "tokens":
        return torch.randint(video.n_tokens, (batch, n))
    return torch.randn(batch, n, video.dim) if video.kind == "features" else torch.rand(batch, 4, 3, 8, 12)


# --- the model ------------------------------------------------------------------------------------------------------


@KINDS
def test_shapes(video: VisualConfig) -> None:
    model = make(video)
    x, text = some_video(video), torch.randint(6, 40, (3, 9))
    n = 12 if video.kind == "frames" else 5
    hidden = model(x, text)
    assert hidden.text.shape == (3, 9, 16) and hidden.video.shape == (3, n, 16) and hidden.pooled.shape == (3, 16)
    assert model.text_logits(hidden.text).shape == (3, 9, 40)
    assert model.video_prediction(hidden.video).shape == (3, n, {"tokens": 30, "features": 7, "frames": 96}[video.kind])
    assert model.alignment_logits(hidden.pooled).shape == (3, 2)
    assert model(None, text).video.shape == (3, 0, 16) and model(x).text.shape == (3, 0, 16)


def test_the_sequence_is_cls_text_video_sep() -> None:
    model = make().eval()
    seen = {}
    model.cross_encoder.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0], there=inputs[1]))
    text, video = torch.tensor([[7, 8, 9], [10, 0, 0]]), torch.tensor([[3, 4], [5, 30]])
    model(video, text, video_there=torch.tensor([[True, True], [True, False]]))
    words, tokens = model.text_embeddings.words.weight, model.video_embeddings.tokens.weight  # type: ignore[union-attr]
    rows = [
        [words[2], words[7], words[8], words[9], words[5], tokens[3], tokens[4], words[3]],
        [words[2], words[10], words[0], words[0], words[5], tokens[5], tokens[30], words[3]],
    ]
    # Places count only what is there.
    places = [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, None, None, 2, 3, None, 4]]
    there = [[True] * 8, [True, True, False, False, True, True, False, True]]
    assert seen["there"].tolist() == there
    embeddings = model.text_embeddings
    for b, i in np.argwhere(np.array(there)):
        x = rows[b][i] + embeddings.positions.weight[places[b][i]] + embeddings.types.weight[int(i >= 5)]
        assert torch.allclose(seen["x"][b, i], embeddings.norm(x), atol=1e-6), (b, i)


@KINDS
def test_padding_changes_nothing(video: VisualConfig) -> None:
    model = make(video).eval()
    x, text = some_video(video, 1), torch.randint(6, 40, (1, 4))
    plain = model(x, text)
    padded_text = torch.cat([text, torch.zeros(1, 3, dtype=torch.long)], 1)
    if video.kind == "frames":
        padded = model(x, padded_text)
    else:
        more = torch.cat([x, 1e4 * torch.ones_like(x) if video.kind == "features" else x + 0], 1)
        padded = model(more, padded_text, video_there=torch.arange(10)[None] < 5)
    assert torch.allclose(padded.text[:, :4], plain.text, atol=1e-5)
    assert torch.allclose(padded.video[:, : plain.video.shape[1]], plain.video, atol=1e-5)
    assert torch.allclose(padded.pooled, plain.pooled, atol=1e-5)


def test_text_sees_video_and_video_sees_text() -> None:
    model = make().eval()
    video, text = some_video(TOKENS, 1), torch.randint(6, 40, (1, 4))
    a, b, c = model(video, text), model((video + 1) % 30, text), model(video, (text - 5) % 34 + 6)
    assert not torch.allclose(a.text, b.text) and not torch.allclose(a.video, c.video)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: make()(), "expected video_features or text_ids, got neither"),
        (lambda: make()(torch.rand(2, 3)), r"whole numbers of shape \(B, N\), got torch.float32 of shape \(2, 3\)"),
        (lambda: make(FEATURES)(torch.rand(2, 3, 8)), r"features of shape \(B, N, 7\), got .* \(2, 3, 8\)"),
        (lambda: make(FRAMES)(torch.rand(2, 4, 3, 8, 8)), r"frames of shape \(B, 4, 3, 8, 12\), got"),
        (lambda: make()(None, torch.ones(4, dtype=torch.long)), r"text_ids of shape \(B, L\), got \(4,\)"),
        (
            lambda: make()(some_video(TOKENS, 2), torch.ones(3, 4, dtype=torch.long)),
            r"text_ids of shape \(B, L\) with B=2, got \(3, 4\)",
        ),
        (
            lambda: make()(None, torch.ones(1, 63, dtype=torch.long)),
            "at most 64 tokens, got 63 of text, 0 of video and 2",
        ),
        (lambda: make(hidden=15), "heads that divide hidden=15, got 2"),
        (lambda: VisualConfig("frames", size=(60, 64)), r"a patch that divides clips of \(8, 60, 64\)"),
    ],
)
def test_bad_input(call, expected: str) -> None:
    with pytest.raises(ValueError, match=f"fastvfx.models.videobert.*{expected}"):
        call()


def test_configurations_survive_json() -> None:
    config = make(FRAMES).config
    assert VideoBertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# --- the visual transformer -----------------------------------------------------------------------------------------


def test_patches_against_loops() -> None:
    frames = torch.rand(2, 4, 3, 8, 12)
    x = patches(frames, (2, 4, 4)).view(2, 2, 2, 3, 96)
    for t, i, j in np.ndindex(2, 2, 3):
        block = frames[:, 2 * t : 2 * t + 2, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]  # (B, t, 3, h, w)
        assert torch.equal(x[:, t, i, j], block.permute(0, 2, 1, 3, 4).flatten(1))  # by colour first


@pytest.mark.parametrize(
    ("attention", "layers", "whole"),
    [("joint", 1, True), ("divided", 1, True), ("divided", 2, True), ("factorised", 1, False), ("factorised", 2, True)],
)
def test_what_a_patch_sees(attention: Any, layers: int, whole: bool) -> None:
    """Space alone leaves the other time step as it is; one look over time and one over space reach everything."""
    video = VisualConfig("frames", frames=4, size=(8, 12), patch=(2, 4, 4), attention=attention, layers=layers)
    visual = make(video).eval().video_embeddings
    assert isinstance(visual, VisualTransformer)
    clip = torch.rand(1, 4, 3, 8, 12)
    other = clip.clone()
    other[:, :2, :, :4, :4] += 1  # the first patch
    changed = ((visual(clip) - visual(other)).detach().abs().amax(2) > 1e-6)[0]  # (12,)
    assert changed[:6].all() and bool(changed[6:].all()) == whole and bool(changed[6:].any()) == whole


def test_a_masked_patch_is_not_seen() -> None:
    visual = make(FRAMES).eval().video_embeddings
    assert isinstance(visual, VisualTransformer)
    clip, masked = torch.rand(1, 4, 3, 8, 12), torch.arange(12)[None] == 0
    other = clip.clone()
    other[:, :2, :, :4, :4] += 1
    assert torch.equal(visual(clip, masked=masked), visual(other, masked=masked))
    assert not torch.equal(visual(clip), visual(clip, masked=masked))


def test_features_are_standardised() -> None:
    visual = make(FEATURES).video_embeddings
    assert isinstance(visual, VisualTransformer)
    features = torch.randn(500, 7) * torch.arange(1.0, 8) + 3
    visual.standardise(features)
    x = visual.inputs(features[None])
    assert x.mean((0, 1)).abs().max() < 1e-4 and (x.std((0, 1)) - 1).abs().max() < 0.01


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17, 100])
def test_fifteen_percent_are_chosen_and_at_least_one(n: int) -> None:
    there = torch.arange(120).expand(50, -1) < n
    chosen = choose(there)
    assert (chosen.sum(1) == max(1, round(0.15 * n))).all()
    assert not (chosen & ~there).any()


def test_nothing_is_chosen_where_nothing_is() -> None:
    assert not choose(torch.zeros(3, 5, dtype=torch.bool)).any()


def test_all_places_are_chosen_alike() -> None:
    counts = choose(torch.ones(20_000, 10, dtype=torch.bool)).sum(0)  # 2 of 10 in each row
    assert (counts - 4000).abs().max() < 5 * (20_000 * 0.2 * 0.8) ** 0.5


def test_eighty_ten_ten() -> None:
    ids = torch.randint(6, 1000, (400, 100))
    there = torch.rand(400, 100) < 0.9
    hidden, chosen = mask_tokens(ids, there, 4, torch.arange(6, 1000))
    assert not (chosen & ~there).any() and torch.equal(hidden[~chosen], ids[~chosen])
    n = int(chosen.sum())
    masked, same = (hidden[chosen] == 4), (hidden[chosen] == ids[chosen])
    for part, expected in ((masked, 0.8), (same, 0.1), (~masked & ~same, 0.1)):
        assert abs(int(part.sum()) - expected * n) < 5 * (n * expected * (1 - expected)) ** 0.5
    assert hidden[chosen & (hidden != 4)].min() >= 6  # never replaced by a special one


def test_vectors_are_hidden_the_same_way() -> None:
    x, there = torch.randn(200, 50, 3), torch.rand(200, 50) < 0.8
    vectors, masked, chosen = mask_vectors(x, there)
    assert not (masked & ~chosen).any() and not (chosen & ~there).any()
    n = int(chosen.sum())
    replaced = (vectors != x).any(2)
    assert not (replaced & (masked | ~chosen)).any()
    assert abs(int(masked.sum()) - 0.8 * n) < 5 * (n * 0.16) ** 0.5
    assert abs(int(replaced.sum()) - 0.1 * n) < 5 * (n * 0.09) ** 0.5
    pool = {tuple(v) for v in x[there].tolist()}
    assert all(tuple(v) in pool for v in vectors[replaced].tolist())


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_against_plain_formulas() -> None:
    logits, targets = torch.randn(6, 9).double(), torch.randint(9, (6,))
    rows = range(6)
    plain = -sum(float(logits[i, targets[i]] - logits[i].exp().sum().log()) for i in rows) / 6
    assert float(losses.masked_tokens(logits, targets)) == pytest.approx(plain, rel=1e-5)
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    assert float(losses.masked_regression(a, b)) == pytest.approx(float(((a - b) ** 2).sum() / 24), rel=1e-5)
    cosine = [[float(a[i] @ b[j] / a[i].norm() / b[j].norm()) / 0.1 for j in rows] for i in rows]
    plain = -sum(cosine[i][i] - np.log(np.exp(cosine[i]).sum()) for i in rows) / 6
    assert float(losses.masked_contrast(a, b)) == pytest.approx(plain, rel=1e-5)
    pair, aligned = torch.randn(6, 2), torch.tensor([True, False, True, True, False, False])
    p = pair.softmax(1)
    plain = -sum(float(p[i, 0 if aligned[i] else 1].log()) for i in rows) / 6
    assert float(losses.alignment(pair, aligned)) == pytest.approx(plain, rel=1e-5)


def test_losses_of_nothing_are_zero_with_a_gradient() -> None:
    x = torch.zeros(0, 4, requires_grad=True)
    for loss in (
        losses.masked_tokens(x, torch.zeros(0, dtype=torch.long)),
        losses.masked_regression(x, torch.zeros(0, 4)),
        losses.masked_contrast(x, torch.zeros(0, 4)),
    ):
        assert loss == 0
        loss.backward()


def pair_batch(video: VisualConfig, n: int = 4) -> Batch:
    x = some_video(video, n)
    there = None if video.kind == "frames" else torch.ones(n, 5, dtype=torch.bool)
    return Batch(torch.randint(6, 40, (n, 7)), x, there, torch.zeros(n, dtype=torch.long), ("",) * n)


@KINDS
@pytest.mark.parametrize("kind", ["regression", "contrast"])
def test_all_terms_reach_the_parameters(video: VisualConfig, kind: Any) -> None:
    model, batch = make(video), pair_batch(video)
    other, changed = torch.randint(6, 40, (4, 9)), torch.tensor([True, False, False, True])
    terms = pretraining_terms(model, batch, other, changed, torch.arange(6, 40), PretrainLoss(hidden_vectors=kind))
    assert list(terms) == ["text", "video", "joint_text", "joint_video", "alignment"]
    sum(terms.values()).backward()  # type: ignore[union-attr]
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_alignment_looks_at_whole_sentences_some_of_them_others() -> None:
    model, batch = make(dropout=0.0), pair_batch(TOKENS)
    other, changed = torch.randint(6, 40, (4, 9)), torch.tensor([True, False, False, True])
    loss = PretrainLoss(text=0, video=0, joint=0, alignment=2)
    terms = pretraining_terms(model, batch, other, changed, torch.arange(6, 40), loss)
    total = 0.0
    for i in range(4):
        text = other[i : i + 1] if changed[i] else batch.text[i : i + 1]
        p = model.alignment_logits(model(batch.video[i : i + 1], text).pooled).detach().log_softmax(1)[0]
        total -= float(p[1] if changed[i] else p[0]) / 4
    assert list(terms) == ["alignment"] and float(terms["alignment"].detach()) == pytest.approx(2 * total, rel=1e-4)


def test_weights_of_zero_leave_terms_out() -> None:
    model, batch = make(), pair_batch(TOKENS)
    for name, terms in (("text", ["text"]), ("video", ["video"]), ("joint", ["joint_text", "joint_video"])):
        loss = PretrainLoss(**{"text": 0, "video": 0, "joint": 0, "alignment": 0, name: 1})
        changed = torch.zeros(4, dtype=torch.bool)
        assert list(pretraining_terms(model, batch, batch.text, changed, torch.arange(6, 40), loss)) == terms


# --- batches --------------------------------------------------------------------------------------------------------

TEXTS = ("one knife", "two onions", "three pans", "four plates", "five hungry guests")
LIBRARY = Library(
    ("a", "b"),
    (torch.arange(100), torch.arange(1000, 1030)),
    (
        Segment(0, 0, 40, TEXTS[0]),
        Segment(0, 40, 60, TEXTS[1]),
        Segment(0, 60, 100, TEXTS[2]),
        Segment(1, 0, 10, TEXTS[3]),
        Segment(1, 10, 30, TEXTS[4]),
    ),
)


def batches(library: Library = LIBRARY, video: VisualConfig = TOKENS, seed: int = 0, **options: Any) -> Batches:
    return Batches(library, train_vocabulary(TEXTS), video, BatchConfig(**options), seed)


def test_each_segment_once_before_any_again() -> None:
    b = batches(batch=5, concatenate=0.0, subsample=1)
    for step in range(3):
        assert sorted(b.draw(step).texts) == sorted(TEXTS)
    assert b.draw(0).texts != b.draw(1).texts


def test_a_batch_depends_on_seed_and_step_only() -> None:
    first, again, other = batches(), batches(), batches(seed=1)
    again.draw(5)
    for x, y in zip(first.draw(3), again.draw(3), strict=True):
        assert x == y if isinstance(x, tuple) else torch.equal(x, y)  # type: ignore[arg-type]
    assert first.draw(3).texts != other.draw(3).texts


def test_neighbouring_sentences_are_put_together_with_their_video() -> None:
    b = batches(batch=400, concatenate=0.5, subsample=1, max_video=200)
    batch = b.draw(0)
    joined = 0
    for text, video, there in zip(batch.texts, batch.video, batch.video_there, strict=True):  # type: ignore[arg-type]
        parts = [i for i, t in enumerate(TEXTS) if t in text]
        assert parts == list(range(parts[0], parts[-1] + 1)) and text == " ".join(TEXTS[i] for i in parts)
        segments = [LIBRARY.segments[i] for i in parts]
        assert len({s.video for s in segments}) == 1
        assert torch.equal(video[there], LIBRARY.units[segments[0].video][segments[0].start : segments[-1].end])
        joined += len(parts) > 1
    # Three of the five segments have a next one.
    assert abs(joined - 400 * 3 / 5 / 2) < 40


def test_videos_are_subsampled_by_one_to_five() -> None:
    b = batches(batch=500, concatenate=0.0, subsample=5)
    batch = b.draw(0)
    rates = set()
    for video, there in zip(batch.video, batch.video_there, strict=True):  # type: ignore[arg-type]
        steps = video[there].diff().unique()
        assert len(steps) == 1
        rates.add(int(steps))
        if video[0] >= 1000 and video[there][-1] < 1010:
            assert int(there.sum()) >= 4  # of ten, four at least are left
    assert rates == {1, 2, 3, 4, 5}


def test_long_videos_and_texts_are_cut() -> None:
    batch = batches(batch=20, max_video=7, max_text=3).draw(0)
    assert batch.video.shape[1] <= 7 and batch.text.shape[1] == 3
    starts = {int(v[0]) for v in batches(batch=100, max_video=7, subsample=1).draw(0).video}
    assert len(starts) > 30  # a random part


def test_padding() -> None:
    batch = batches(batch=5, concatenate=0.0, subsample=1).draw(0)
    assert batch.video_there is not None
    assert (batch.video[~batch.video_there] == 30).all() and batch.video_there.sum() == 130
    assert (batch.text == 0).any() and (batch.text[:, 0] != 0).all()


def test_other_texts_are_other() -> None:
    b = batches()
    for step in range(5):
        assert all(a != o for a, o in zip(TEXTS, b.other_texts(TEXTS, step), strict=True))
    assert {b.other_texts(TEXTS[:1], step)[0] for step in range(50)} == set(TEXTS[1:])
    only = batches(Library(("a",), (torch.arange(9),), (Segment(0, 0, 9, "same"),)))
    assert only.other_texts(["same"], 0) == ["same"]


def test_clips_of_frames() -> None:
    n = 40
    frames = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 8, 12)
    library = Library(("a",), (frames,), (Segment(0, 0, n, TEXTS[0]), Segment(0, 38, n, TEXTS[1])))
    b = batches(library, FRAMES, batch=60, concatenate=0.0)
    batch = b.draw(0)
    assert batch.video.shape == (60, 4, 3, 8, 12) and batch.video_there is None
    seen = (batch.video[:, :, 0, 0, 0] * 255).round().long()
    long = seen[[text == TEXTS[0] for text in batch.texts]]
    assert {tuple(row.diff().tolist()) for row in long} == {(r,) * 3 for r in range(1, 6)}
    assert (seen[[text == TEXTS[1] for text in batch.texts]] == torch.tensor([38, 38, 39, 39])).all()
    whole = b.whole(library.segments)
    assert (whole.video[0, :, 0, 0, 0] * 255).round().tolist() == [0, 13, 26, 39]


def test_the_end_of_each_segment_is_held_out() -> None:
    learned, held = LIBRARY.split(hold_out=0.25)
    assert [(s.start, s.end) for s in learned.segments] == [(0, 30), (40, 55), (60, 90), (0, 8), (10, 25)]
    assert [(s.start, s.end) for s in held.segments] == [(30, 40), (55, 60), (90, 100), (8, 10), (25, 30)]
    learned, held = LIBRARY.split(test_every=2)
    assert {s.video for s in learned.segments} == {1} and {s.video for s in held.segments} == {0}
    assert LIBRARY.split()[0] == LIBRARY and LIBRARY.split()[1].segments == ()
