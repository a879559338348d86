"""Pictures of where a hidden word looks in the frames of a clip."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._extras import require
from ...data import read_clip
from .batches import Batches, spread
from .draw import GRAY, PURPOSE, PathLike, new_figure, save_figure
from .library import Segment
from .system import System
from .text import Vocabulary

_SHOWN = 200  # pixels of a frame
_COLUMNS = 6  # frames in a row
_GUESSES = 3


@dataclass(frozen=True)
class Look:
    """A hidden word piece and the frames that it may be read from.

    Attributes:
        title: what the clip is called.
        clip: as the model takes it, (1, T, 3, H, W).
        frames: to be shown, one for each step of the patches in time, (height, width, 3) uint8.
        pieces: the sentence, with ``[MASK]`` at ``place``.
        place: of the hidden one.
        truth: what was hidden, if it is known.
    """

    title: str
    clip: Tensor
    frames: Sequence[Tensor]
    pieces: Sequence[int]
    place: int
    truth: int | None = None


def look_for_rarest(batches: Batches, segment: Segment, title: str, frames: Sequence[Tensor]) -> Look:
    """Hide the rarest word piece of a caption, as in pre-training."""
    counts = Counter(piece for pieces in batches.pieces.values() for piece in pieces)
    pieces = list(batches.vocabulary.encode(segment.text))
    place = min(range(len(pieces)), key=lambda i: (counts[pieces[i]], i))
    truth, pieces[place] = pieces[place], batches.vocabulary.special.mask
    return Look(title, batches.whole([segment]).video, frames, pieces, place, truth)


def looks_for_masks(
    vocabulary: Vocabulary, clip: Tensor, template: str, title: str, frames: Sequence[Tensor]
) -> list[Look]:
    """One for each ``[MASK]`` of a sentence."""
    pieces = vocabulary.encode(template)
    places = [i for i, piece in enumerate(pieces) if piece == vocabulary.special.mask]
    return [Look(title, clip, frames, pieces, place) for place in places]


def shown_frames(system: System, video: PathLike, start: float, n: int) -> list[Tensor]:
    """The frames of a part of a video that a model of frames sees the beginnings of patches in, for :class:`Look`.

    Args:
        system: with a model of frames.
        video: the file.
        start: of the part, in seconds.
        n: frames of the part, at the rate of the reader.
    """
    config, fps = system.encoder.config.video, system.reader.config.fps
    chosen = spread(n, config.frames)[:: config.patch[0]]
    # One by one: a part may be an hour long.
    clips = [read_clip(video, start=start + i / fps, length=1, size=_SHOWN, dtype=torch.uint8) for i in chosen.tolist()]
    return [clip[0].permute(1, 2, 0) for clip in clips]


@torch.no_grad()
def attention_over_frames(path: PathLike, system: System, looks: Sequence[Look]) -> None:
    """Where hidden words look in the frames of clips, a row for each, beside what the model takes them for.

    What is drawn is the attention of the ``[MASK]`` to the patches in the last layer, the mean of the heads, in units
    of an even spread over all tokens. Weights show where a model reads, not why.

    Args:
        path: of the picture.
        system: pre-trained on frames.
        looks: at least one.
    """
    seen, guesses = zip(*(_read(system, look) for look in looks), strict=True)
    columns = [round(i) for i in np.linspace(0, len(seen[0]) - 1, min(len(seen[0]), _COLUMNS))]
    most = max(float(x.max()) for x in seen)
    height = 0.95 + 1.9 * len(looks)  # inches
    figure = new_figure(2.6 + 1.75 * len(columns), height)
    rows = figure.add_gridspec(
        len(looks), 1 + len(columns), width_ratios=[1.2] + [1.0] * len(columns), wspace=0.04, hspace=0.12,
        left=0.01, right=0.99, top=1 - 0.4 / height, bottom=0.5 / height,
    )  # fmt: skip
    figure.text(0.01, 1 - 0.25 / height, "Where a hidden word looks", fontsize=12, fontweight="bold")
    # The roots of weights, or little but the largest would be seen.
    colors = require("matplotlib.colors", extra="cli", purpose=PURPOSE).PowerNorm(0.5, 0, most)
    for row, (look, heat, best) in enumerate(zip(looks, seen, guesses, strict=True)):
        _tell(figure.add_subplot(rows[row, 0]), system.vocabulary, look, best)
        for column, t in enumerate(columns):
            axes = figure.add_subplot(rows[row, 1 + column])
            frame = look.frames[t].numpy()
            over = {"extent": (0, frame.shape[1], frame.shape[0], 0)}
            # Paler frames, so that color is attention.
            axes.imshow((0.35 * frame + 0.65 * frame.mean(-1, keepdims=True)) / 255, **over)
            alpha = np.clip(colors(heat[t].numpy()), 0, 0.75)
            axes.imshow(heat[t].numpy(), cmap="inferno", norm=colors, alpha=alpha, interpolation="bilinear", **over)
            axes.set_axis_off()
    mappable = require("matplotlib.cm", extra="cli", purpose=PURPOSE).ScalarMappable(colors, "inferno")
    place = figure.add_axes((0.45, 0.3 / height, 0.5, 0.09 / height))
    bar = figure.colorbar(mappable, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    figure.text(0.44, 0.3 / height, "attention, in units of an even spread", fontsize=8, color=GRAY, ha="right")
    save_figure(figure, path, dpi=80)


def _read(system: System, look: Look) -> tuple[Tensor, list[tuple[int, float]]]:
    """Attention (T, H, W) of the hidden piece to the patches, and the likeliest pieces for it."""
    model = system.encoder.eval()
    device = next(model.parameters()).device
    text = torch.tensor([list(look.pieces)], device=device)
    sequence = model.arrange(model.video_vectors(look.clip.to(device)), None, text)
    weights = model.cross_encoder.attention_maps(sequence.x, sequence.there)[-1].mean(1)[0]  # (N, N)
    seen = weights[sequence.text.start + look.place, sequence.video] * len(weights)
    hidden = model.cross_encoder(sequence.x, sequence.there)[0, sequence.text.start + look.place]
    best = model.text_logits(hidden).float().softmax(-1).topk(_GUESSES)
    pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return seen.view(model.config.video.grid).cpu(), pairs


def _tell(axes: Any, vocabulary: Vocabulary, look: Look, best: Sequence[tuple[int, float]]) -> None:
    """The sentence, and a bar for each guess; the right one in green."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()
    axes.text(0, 0.98, look.title, fontsize=9.5, fontweight="bold", va="top")
    words = " ".join(vocabulary.piece(piece) for piece in look.pieces).replace(" ##", "")
    axes.text(0, 0.84, textwrap.fill(words, 27, max_lines=3), fontsize=8, va="top", color=GRAY, linespacing=1.25)
    for i, (piece, probability) in enumerate(best):
        y = 0.36 - 0.15 * i
        color = "#15803d" if piece == look.truth else "#94a3b8"
        axes.barh(y, 0.36 * probability, height=0.1, left=0.4, color=color)
        axes.text(0.37, y, vocabulary.piece(piece), fontsize=8, va="center", ha="right")
        axes.text(0.42 + 0.36 * probability, y, f"{probability:.0%}", fontsize=7.5, va="center", color=GRAY)
