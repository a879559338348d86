"""What ``fastvfx video tokenize`` and ``caption`` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Captions, read_clip
from ..models.videobert import Batch, System, VideoBert, VideoReader, fill, load_system
from ..models.videobert.draw import token_sheet
from ..models.videobert.draw_attention import Look, attention_over_frames, looks_for_masks, shown_frames
from ..models.videobert.tokenfile import save_tokens
from .common import checked_folder, prepare, progress, say, write_json
from .errors import UserError
from .video import above_zero, load, read, reader_config

if TYPE_CHECKING:
    from .video_commands import Caption, Tokenize

_ROWS, _COLUMNS = 8, 6  # of tokens.png


def tokenize(options: Tokenize) -> int:
    """``fastvfx video tokenize``. Returns the exit code."""
    above_zero(options, "fps", "clip_frames", "frame_size")
    if options.seed < 0:
        raise UserError(f"expected --seed of at least 0, got {options.seed}")
    prepare("video", "cpu", "auto", options.threads)
    out = checked_folder(options.out)
    captions = load(options.data, options.skip_broken)
    reader = VideoReader(reader_config(options, "tokens"))
    raw = read(reader, captions, options.skip_broken)
    reader.fit(list(raw.values()), options.seed)
    assert reader.tree is not None
    save_tokens(out / "tokens.safetensors", reader, raw)
    tokens = {name: reader.finish(x) for name, x in raw.items()}
    counts = torch.bincount(torch.cat(list(tokens.values())), minlength=reader.tree.n_tokens)
    write_json(
        out / "tokens.json",
        {
            "tokens": reader.tree.n_tokens,
            "clips": int(counts.sum()),
            "seconds_per_clip": 1 / reader.config.rate,
            "reader": reader.config.to_dict(),
            "videos": {name: x.tolist() for name, x in tokens.items()},
        },
    )
    _sheet(out / "tokens.png", reader, captions, tokens, counts)
    single = int((counts == 1).sum())
    say(
        f"{int(counts.sum())} clips of {len(raw)} videos became {reader.tree.n_tokens} different tokens, {single} of "
        f"them in one clip only; results in {out}"
    )
    return 0


def caption(options: Caption) -> int:
    """``fastvfx video caption``. Returns the exit code."""
    if not options.videos:
        raise UserError("expected at least one VIDEO")
    above_zero(options, "top", "beams")
    if not options.start >= 0:
        raise UserError(f"expected --start of at least 0, got {options.start:g}")
    if options.end is not None and not options.end > options.start:
        raise UserError(f"expected --end after {options.start:g}, got {options.end:g}")
    prepare("video", options.device, options.backend, options.threads)
    system = load_system(options.checkpoint, options.device)
    if options.fill is None and system.kind == "pretrained":
        raise UserError(
            f"{options.checkpoint}: pre-trained only: give --fill 'a sentence with [MASK]', or fit it with "
            "`fastvfx video finetune`"
        )
    if options.fill is not None and not isinstance(system.network, VideoBert):
        raise UserError(f"{options.checkpoint}: a {system.kind}; --fill is for checkpoints of `fastvfx video pretrain`")
    if options.attention is not None:
        _check_attention(options.attention, options, system)
    looks: list[Look] = []
    for path in options.videos:
        library = system.library(path, options.start, options.end)
        batch = system.batch_of(library)
        print(json.dumps({"video": str(path), **_say(system, batch, options)}), flush=True)
        if options.attention is not None and options.fill is not None:
            frames = shown_frames(system, path, options.start, len(library.units[0]))
            looks += looks_for_masks(system.vocabulary, batch.video, options.fill, path.name, frames)
    if options.attention is not None:
        attention_over_frames(options.attention, system, looks)
    return 0


def _say(system: System, batch: Batch, options: Caption) -> dict[str, Any]:
    if system.kind == "captioner":
        return {"caption": system.captions(batch, options.beams)[0]}
    if system.kind == "classifier":
        best = system.probabilities(batch)[0].topk(min(options.top, len(system.labels)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"classes": {system.labels[i]: round(p, 4) for i, p in pairs}}
    assert options.fill is not None
    try:
        guesses = fill(system.encoder, system.vocabulary, batch, options.fill, options.top)[0]
    except ValueError as error:
        raise UserError(f"--fill: {error}") from None
    return {"fill": [{g.piece: round(g.probability, 4) for g in places} for places in guesses]}


def _check_attention(path: Path, options: Caption, system: System) -> None:
    if options.fill is None or system.encoder.config.video.kind != "frames":
        raise UserError("--attention needs --fill and a checkpoint of `fastvfx video pretrain --front-end frames`")
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"expected --attention to be a .png file, got {path}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--attention: there is no folder {path.parent}")


def _sheet(path: Path, reader: VideoReader, captions: Captions, tokens: dict[str, Tensor], counts: Tensor) -> None:
    """The first frames of clips of the most frequent tokens."""
    config, videos = reader.config, captions.videos
    rows = []
    frequent = [int(t) for t in counts.argsort(descending=True)[:_ROWS] if counts[t] > 0]
    with progress("drawing tokens", len(frequent)) as advance:
        for done, token in enumerate(frequent, 1):
            places = [(name, int(i)) for name, x in tokens.items() for i in torch.nonzero(x == token)]
            # Of many clips some from all over.
            chosen = places[:: -(-len(places) // _COLUMNS)]
            frames = []
            for name, index in chosen:
                start = index / config.rate
                frame = read_clip(videos[name], start=start, length=1, size=config.size, dtype=torch.uint8)[0]
                frames.append(frame.permute(1, 2, 0))
            rows.append((f"token {token}: {int(counts[token])} clips", frames))
            advance(done, "")
    token_sheet(path, rows)
