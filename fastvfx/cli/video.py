"""What ``fastvfx video pretrain`` and ``finetune`` do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import Captions, load_captions
from ..models._training import seeded
from ..models.videobert import (
    SIZES,
    BatchConfig,
    Batches,
    Captioner,
    Classifier,
    DecoderConfig,
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
    Vocabulary,
    fill_accuracy,
    load_bert,
    load_system,
    load_vocabulary,
    make_library,
    read_all,
    read_bert,
    retrieval,
    train_vocabulary,
)
from ..models.videobert.bleu import bleu
from ..models.videobert.draw import loss_curves, retrieval_map
from ..models.videobert.draw_attention import attention_over_frames, look_for_rarest, shown_frames
from ..models.videobert.embeddings import VideoTokenEmbeddings
from ..models.videobert.tokenfile import load_tokens
from ..models.videobert.visual import VisualTransformer
from ..models.videobert.weights import Bert
from .common import CHECKPOINT, METRICS, about, begin, checked_folder, prepare, progress, say, write_json
from .errors import UserError

if TYPE_CHECKING:
    from .video_commands import Finetune, Pretrain

_PICTURES = 4  # clips in attention.png
_MOST_FPS = 1000  # a frame is repeated where the video has fewer
#: fps, frames of a clip, side of a frame
DEFAULTS = {"tokens": (20.0, 30, 112), "features": (20.0, 30, 112), "frames": (10.0, 8, 64)}


def pretrain(options: Pretrain) -> int:
    """``fastvfx video pretrain``. Returns the exit code."""
    above_zero(
        options, "max_seconds", "max_steps", "batch", "learning_rate", "fps", "clip_frames", "frame_size", "patch",
        "vocabulary_size", "subsample",
    )  # fmt: skip
    _check_splits(options)
    if not 0 <= options.dropout < 1:
        raise UserError(f"expected --dropout in [0, 1), got {options.dropout:g}")
    if not 0 <= options.concatenate < 1:
        raise UserError(f"expected --concatenate in [0, 1), got {options.concatenate:g}")
    if options.visual_layers < 0:
        raise UserError(f"expected --visual-layers of at least 0, got {options.visual_layers}")
    if options.tokens is not None and options.front_end == "frames":
        raise UserError("--tokens holds features: it is for --front-end tokens or features")
    prepare("video", options.device, options.backend, options.threads)
    out = checked_folder(options.out)
    # What is quick to find out comes before the videos are read.
    bert = None if options.bert is None else read_bert(options.bert)
    given = options.vocabulary or options.bert
    vocabulary = None if given is None else load_vocabulary(given)
    before = load_system(out / CHECKPOINT) if options.resume and (out / CHECKPOINT).exists() else None
    captions = load(options.data, options.skip_broken)
    reader, raw = _raw(options, captions)
    library = make_library(captions, raw, reader.config.rate, skip_broken=options.skip_broken)
    _tell_broken(library.broken)
    learned, held = library.split(options.hold_out, options.test_every)
    if not learned.segments:
        raise UserError("nothing is left to learn from: --test-every holds out every video")
    raw_parts = [learned.part(segment) for segment in learned.segments]
    if before is not None:  # with the tree that it began with
        if before.reader.config == reader.config:
            reader = before.reader
    elif options.tokens is None or held.segments:  # what is held out has no part in the tree
        reader.fit(raw_parts, options.seed)
    library, learned, held = (
        replace(part, units=tuple(reader.finish(units) for units in part.units)) for part in (library, learned, held)
    )
    if vocabulary is None:
        vocabulary = train_vocabulary(learned.texts, options.vocabulary_size)
    config = _config(options, reader, raw_parts, vocabulary, bert)
    with seeded(torch.device("cpu"), options.seed):
        model = VideoBert(config)
    if isinstance(model.video_embeddings, VideoTokenEmbeddings):
        assert reader.tree is not None
        model.video_embeddings.initialise(reader.tree.centroids)
    elif isinstance(model.video_embeddings, VisualTransformer) and config.video.kind == "features":
        model.video_embeddings.standardise(torch.cat(raw_parts))
    if bert is not None and (missing := load_bert(model, bert)):
        say(f"{bert.path} lacks {', '.join(missing)}: they start from random numbers")
    batch = BatchConfig(batch=options.batch, concatenate=options.concatenate, subsample=options.subsample)
    system = System(model.to(options.device), reader, vocabulary, batch)
    loss = PretrainLoss(hidden_vectors=options.hidden_vectors)
    trainer = Trainer(system, learned, TrainConfig(options.learning_rate, loss=loss, seed=options.seed))
    begin(trainer, out, options.resume)
    interrupted = _fit(trainer, options, 600.0)
    metrics = {**_metrics(options, trainer, interrupted), "videos": len(library.names), "held_out": len(held.segments)}
    write_json(out / METRICS, metrics)
    if interrupted:
        return _interrupted(trainer, out)
    if trainer.history:
        squares = config.video.kind != "tokens" and options.hidden_vectors == "regression"
        unit = "nats; video: squared error" if squares else "nats"
        loss_curves(out / "loss.png", trainer.history, "Pre-training", unit)
    results, names = {}, {}
    for what, part in (("training clips", learned), ("held-out clips", held)):
        names[what] = [_name(part, segment) for segment in part.segments]
        if part.segments:
            result = results[what] = retrieval(model, trainer.batches, part.segments, library.texts)
            ranks = [
                {"clip": name, "rank": rank} for name, rank in zip(names[what], result.ranks.tolist(), strict=True)
            ]
            metrics[f"retrieval, {what}"] = {**result.summary(), "ranks": ranks}
            metrics[f"words filled in, {what}"] = fill_accuracy(model, trainer.batches, part.segments)
    write_json(out / METRICS, metrics)
    retrieval_map(out / "retrieval.png", results, names)
    if config.video.kind == "frames":
        _draw_attention(out / "attention.png", trainer, held if held.segments else learned, captions)
    told = "; ".join(
        f"right caption of {what} first {r.top1:.0%} (chance {r.chance1:.0%})" for what, r in results.items()
    )
    say(f"{trainer.step} steps in {trainer.seconds:.1f} s; {told}; results in {out}")
    return 0


def finetune(options: Finetune) -> int:
    """``fastvfx video finetune``. Returns the exit code."""
    above_zero(options, "max_seconds", "max_steps", "batch", "learning_rate", "decoder_layers", "beams")
    _check_splits(options)
    prepare("video", options.device, options.backend, options.threads)
    out = checked_folder(options.out)
    system = load_system(options.checkpoint, options.device)
    if options.checkpoint.resolve().parent == out.resolve():  # and what is there would be replaced
        raise UserError(f"--out: {options.checkpoint} is in this folder itself, expected another one")
    if not isinstance(system.network, VideoBert):
        raise UserError(f"{options.checkpoint}: a {system.kind}, expected a checkpoint of `fastvfx video pretrain`")
    captions = load(options.data, options.skip_broken)
    raw = read(system.reader, captions, options.skip_broken)
    units = {name: system.reader.finish(x) for name, x in raw.items()}
    library = make_library(captions, units, system.reader.config.rate, skip_broken=options.skip_broken)
    _tell_broken(library.broken)
    if options.task == "classify":
        library = _labelled(library, captions)
    learned, held = library.split(options.hold_out, options.test_every)
    if not learned.segments:
        raise UserError("nothing is left to learn from: --test-every holds out every video")
    encoder = system.network
    network: Classifier | Captioner
    with seeded(torch.device("cpu"), options.seed):
        if options.task == "classify":
            network = Classifier(encoder, len(library.labels))
        else:
            network = Captioner(encoder, DecoderConfig(options.decoder_layers, encoder.config.heads))
    batch = replace(system.batch, batch=options.batch, concatenate=0.0)
    system = System(network.to(options.device), system.reader, system.vocabulary, batch, library.labels)
    config = TrainConfig(options.learning_rate, freeze=options.freeze, seed=options.seed)
    trainer = Trainer(system, learned, config)
    begin(trainer, out, options.resume)
    interrupted = _fit(trainer, options, 300.0)
    metrics = _metrics(options, trainer, interrupted)
    write_json(out / METRICS, metrics)
    if interrupted:
        return _interrupted(trainer, out)
    if trainer.history:
        loss_curves(out / "loss.png", trainer.history, f"Fine-tuning: {options.task}", "nats")
    rows, told = [], []
    for what, part in (("training clips", learned), ("held-out clips", held)):
        if part.segments:
            said = [_said(system, trainer.batches, segment, options.beams) for segment in part.segments]
            rows += [_row(part, segment, what, words) for segment, words in zip(part.segments, said, strict=True)]
            right = [_right(system, part, segment) for segment in part.segments]
            score = {"right": sum(a == b for a, b in zip(said, right, strict=True)) / len(said)}
            if options.task == "caption":
                score["bleu4"] = bleu(said, right)
            metrics[what] = score
            told.append(f"{what} " + ", ".join(f"{name} {value:.2f}" for name, value in score.items()))
    write_json(out / METRICS, metrics)
    write_json(out / "results.json", {"clips": rows})
    say(f"{trainer.step} steps in {trainer.seconds:.1f} s; {'; '.join(told)}; results in {out}")
    return 0


# --- shared with tokenize and caption -------------------------------------------------------------------------------


def above_zero(options: Any, *names: str) -> None:
    """Options that must be, if they are given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"expected --{name.replace('_', '-')} above 0, got {value:g}")


def load(path: Path, skip_broken: bool) -> Captions:
    """The captions."""
    captions = load_captions(path, skip_broken=skip_broken)
    _tell_broken(captions.broken)
    return captions


def read(reader: VideoReader, captions: Captions, skip_broken: bool) -> dict[str, torch.Tensor]:
    """The raw units of all videos."""

    def leave_out(name: str, error: Exception) -> None:
        say(f"left out {name}: {error}")

    videos = captions.videos
    with progress("reading videos", len(videos)) as advance:
        raw = read_all(
            reader,
            videos,
            on_broken=leave_out if skip_broken else None,
            on_progress=lambda n: advance(n, f"{n} videos"),
        )
    if not raw:
        raise UserError(f"{captions.path}: none of its videos can be read")
    return raw


def reader_config(options: Any, kind: Any) -> ReaderConfig:
    """From the options that say how videos are read."""
    fps, length, size = DEFAULTS[kind]
    if options.fps is not None and options.fps > _MOST_FPS:
        raise UserError(f"expected --fps of at most {_MOST_FPS}, got {options.fps:g}")
    if options.depth < 1 or options.ways < 2:
        raise UserError(f"expected --depth of at least 1 and --ways of at least 2, got {options.depth}, {options.ways}")
    return ReaderConfig(
        kind,
        options.fps or fps,
        options.clip_frames or length,
        options.frame_size or size,
        options.features,
        options.depth,
        options.ways,
    )


# --- parts ----------------------------------------------------------------------------------------------------------


def _draw_attention(path: Path, trainer: Trainer, library: Library, captions: Captions) -> None:
    system, segments = trainer.system, library.segments
    looks = []
    for segment in segments[:: -(-len(segments) // _PICTURES)]:
        video = captions.videos[library.names[segment.video]]
        start = segment.start / system.reader.config.rate
        frames = shown_frames(system, video, start, segment.end - segment.start)
        looks.append(look_for_rarest(trainer.batches, segment, video.name, frames))
    attention_over_frames(path, system, looks)


def _check_splits(options: Pretrain | Finetune) -> None:
    if not 0 <= options.hold_out < 1:
        raise UserError(f"expected --hold-out in [0, 1), got {options.hold_out:g}")
    if options.test_every < 0:
        raise UserError(f"expected --test-every of at least 0, got {options.test_every}")
    if options.seed < 0:
        raise UserError(f"expected --seed of at least 0, got {options.seed}")


def _tell_broken(broken: tuple[str, ...]) -> None:
    for reason in broken:
        say(f"left out {reason}")


def _raw(options: Pretrain, captions: Captions) -> tuple[VideoReader, dict[str, torch.Tensor]]:
    if options.tokens is None:
        reader = VideoReader(reader_config(options, options.front_end))
        return reader, read(reader, captions, options.skip_broken)
    reader, raw = load_tokens(options.tokens)
    missing = [name for name in captions.videos if name not in raw]
    if missing and not options.skip_broken:
        raise UserError(f"{options.tokens}: {missing[0]} is not in it ({len(missing)} videos are missing)")
    if options.front_end == "features":
        reader = VideoReader(replace(reader.config, kind="features"))
    return reader, raw


def _config(
    options: Pretrain, reader: VideoReader, raw: list[torch.Tensor], vocabulary: Vocabulary, bert: Bert | None
) -> VideoBertConfig:
    frames = options.clip_frames or DEFAULTS["frames"][1]
    patch = (2 if frames % 2 == 0 else 1, options.patch, options.patch)
    visual = VisualConfig(frames=frames, patch=patch, layers=options.visual_layers, attention=options.attention)
    try:
        visual = reader.visual_config(raw, visual)
    except ValueError as error:
        raise UserError(f"--frame-size, --patch: {error}") from None
    if bert is not None:
        config = bert.config(visual, vocabulary.special, len(vocabulary))
    else:
        hidden, layers, heads, inner = SIZES[options.model]
        config = VideoBertConfig(len(vocabulary), vocabulary.special, visual, hidden, layers, heads, inner)
    config = replace(config, dropout=options.dropout)
    longest = BatchConfig().max_text + 3
    longest += visual.grid[0] * visual.grid[1] * visual.grid[2] if visual.kind == "frames" else BatchConfig().max_video
    if longest > config.positions:
        if bert is not None:
            raise UserError(f"sequences have up to {longest} tokens, {bert.path} has {config.positions} positions")
        config = replace(config, positions=longest)
    return config


def _fit(trainer: Trainer, options: Pretrain | Finetune, seconds: float) -> bool:
    max_seconds = seconds if options.max_seconds is None and options.max_steps is None else options.max_seconds
    with progress("training", 1.0) as advance:
        return trainer.fit(
            max_steps=options.max_steps,
            max_seconds=max_seconds,
            checkpoint=options.out / CHECKPOINT,
            on_step=lambda trainer, done: advance(done, _status(trainer)),
            on_warning=say,
        )


def _status(trainer: Trainer) -> str:
    row = trainer.history[-1] if trainer.history else {}
    terms = "  ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in row.items() if k not in ("step", "seconds"))
    return f"step {trainer.step}  {terms}"


def _interrupted(trainer: Trainer, out: Path) -> int:
    say(f"interrupted after {trainer.step} steps; saved {out / CHECKPOINT}, go on with --resume")
    return 130


def _metrics(options: Pretrain | Finetune, trainer: Trainer, interrupted: bool) -> dict[str, Any]:
    system = trainer.system
    return {
        "steps": trainer.step,
        "train_seconds": trainer.seconds,
        "steps_per_second": trainer.step / max(trainer.seconds, 1e-9),
        "interrupted": interrupted,
        "data": str(options.data),
        "clips": len(trainer.library.segments),
        "labels": list(system.labels),
        "vocabulary": len(system.vocabulary),
        "parameters": sum(p.numel() for p in system.network.parameters()),
        "seed": options.seed,
        **about("video", options.device),
        "config": system.encoder.config.to_dict(),
        "reader": system.reader.config.to_dict(),
        "train": trainer.config.to_dict(),
        "history": trainer.history,
    }


def _labelled(library: Library, captions: Captions) -> Library:
    if len(library.labels) < 2:
        raise UserError(f"{captions.path}: expected labels of at least 2 classes, got {len(library.labels)}")
    segments = tuple(segment for segment in library.segments if segment.label >= 0)
    if left_out := len(library.segments) - len(segments):
        say(f"left out {left_out} captions without a label")
    return replace(library, segments=segments)


def _name(library: Library, segment: Segment) -> str:
    return Path(library.names[segment.video]).stem


def _said(system: System, batches: Batches, segment: Segment, beams: int) -> str:
    device = next(system.network.parameters()).device
    batch = batches.whole([segment]).to(device)
    if system.kind == "classifier":
        return system.labels[int(system.probabilities(batch)[0].argmax())]
    return system.captions(batch, beams)[0]


def _right(system: System, library: Library, segment: Segment) -> str:
    """As the system would say it: its word pieces may know no capitals."""
    if system.kind == "classifier":
        return library.labels[segment.label]
    return system.vocabulary.decode(system.vocabulary.encode(segment.text))


def _row(library: Library, segment: Segment, what: str, said: str) -> dict[str, Any]:
    label = None if segment.label < 0 else library.labels[segment.label]
    return {"video": library.names[segment.video], "of": what, "caption": segment.text, "label": label, "said": said}
