"""Pictures of a training: losses, which caption fits which clip, where words look, what tokens stand for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._extras import require
from ...data import atomic_path
from .batches import Batches
from .library import Segment
from .system import System
from .zero_shot import Retrieval

PathLike = str | os.PathLike[str]

_COLORS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed", "#a16207")
_PURPOSE = "pictures"


def loss_curves(path: PathLike, history: Sequence[dict[str, float]]) -> None:
    """A curve for each term, over steps; means of neighbours, so that they can be read."""
    figure = _figure(7.2, 3.6)
    axes = figure.add_subplot()
    names = [name for name in history[-1] if name not in ("step", "seconds")]
    size = -(-len(history) // 100)
    groups = [history[i : i + size] for i in range(0, len(history), size)]
    for name, color in zip(names, _COLORS, strict=False):
        x = [group[-1]["step"] for group in groups]
        y = [sum(row[name] for row in group) / len(group) for group in groups]
        axes.plot(x, y, color=color, label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="terms of the loss", ylim=(0, None))
    axes.grid(color="#e3e7eb")
    axes.legend(frameon=False)
    _save(figure, path)


def retrieval_map(path: PathLike, results: dict[str, Retrieval], names: dict[str, list[str]]) -> None:
    """How well each caption fits each clip, by rank in its row; the right ones have a frame.

    Args:
        path: of the picture.
        results: by what they were measured on.
        names: of the clips of each.
    """
    rows = max(len(r.right) for r in results.values())
    figure = _figure(1.5 + 4.2 * len(results), 1.6 + min(8.0, 0.17 * rows + 1.0))
    for i, (what, result) in enumerate(results.items()):
        axes = figure.add_subplot(1, len(results), i + 1)
        n = result.scores.shape[1]
        rank = result.scores.argsort(1, descending=True).argsort(1)  # 0 is the best
        axes.imshow((n - rank).numpy(), cmap="Blues", aspect="auto")
        axes.scatter(result.right, np.arange(len(result.right)), marker="s", s=14, facecolors="none", edgecolors="red")
        axes.set_title(
            f"{what}\nfirst {result.top1:.0%} (chance {result.chance1:.0%}), "
            f"among five {result.top5:.0%} ({result.chance5:.0%})",
            fontsize=9,
        )
        axes.set_xlabel("captions, dark: fits best; red: the right one", fontsize=8)
        axes.set_xticks([])
        few = len(result.right) <= 40
        axes.set_yticks(np.arange(len(result.right)) if few else [], names[what] if few else [], fontsize=6)
    figure.tight_layout()
    _save(figure, path)


def attention_over_frames(path: PathLike, system: System, batches: Batches, segments: Sequence[Segment]) -> None:
    """Where a hidden word looks in the frames of a clip, a row for each segment.

    The rarest word piece of each caption is hidden, as in pre-training; what is drawn is its attention to the patches
    in the last layer, the mean of the heads, over the first frame of each. Weights show where a model reads, not why.

    Args:
        path: of the picture.
        system: pre-trained on frames.
        batches: of the library.
        segments: at least one.
    """
    counts = Counter(piece for pieces in batches.pieces.values() for piece in pieces)
    sentences = []
    for segment in segments:
        pieces = batches.vocabulary.encode(segment.text)
        place = min(range(len(pieces)), key=lambda i: (counts[pieces[i]], i))
        pieces[place] = batches.vocabulary.special.mask
        sentences.append((pieces, place))
    clips = [batches.whole([segment]).video for segment in segments]
    _attention_rows(path, system, clips, sentences)


def attention_of(path: PathLike, system: System, video: Tensor, template: str) -> None:
    """Where each ``[MASK]`` of a sentence looks in the frames (1, T, 3, H, W) of a clip, a row for each."""
    pieces = system.vocabulary.encode(template)
    places = [i for i, piece in enumerate(pieces) if piece == system.vocabulary.special.mask]
    _attention_rows(path, system, [video] * len(places), [(pieces, place) for place in places])


@torch.no_grad()
def _attention_rows(
    path: PathLike, system: System, clips: Sequence[Tensor], sentences: Sequence[tuple[list[int], int]]
) -> None:
    model, vocabulary = system.encoder, system.vocabulary
    model.eval()
    device, config = next(model.parameters()).device, model.config.video
    times, height, width = config.grid
    step, edge = config.patch[0], config.size[0]
    figure = _figure(1.8 * times, 2.05 * len(clips))
    # Titles are longer than a frame is wide: a tight layout would make room for them.
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.03, hspace=0.16)
    for row, (clip, (pieces, place)) in enumerate(zip(clips, sentences, strict=True)):
        text = torch.tensor([pieces], device=device)
        video = clip.to(device)
        seq = model.arrange(model.video_vectors(video), None, text)
        weights = model.cross_encoder.attention_maps(seq.x, seq.there)[-1].mean(1)  # (1, N, N)
        seen = weights[0, seq.text.start + place, seq.video].view(times, height, width).cpu()
        hidden = model.cross_encoder(seq.x, seq.there)[:, seq.text]
        best = model.text_logits(hidden[0, place]).softmax(0).max(0)
        told = f"{_sentence(system, pieces)}: {vocabulary.piece(int(best.indices))} {float(best.values):.0%}"
        for t in range(times):
            axes = figure.add_subplot(len(clips), times, row * times + t + 1)
            axes.imshow(clip[0, t * step].permute(1, 2, 0).cpu().numpy())
            heat = seen[t].numpy()
            axes.imshow(
                heat, cmap="inferno", alpha=0.55, vmin=float(seen.min()), vmax=float(seen.max()),
                extent=(0, edge, edge, 0), interpolation="bilinear",
            )  # fmt: skip
            axes.set_axis_off()
            if t == 0:
                axes.set_title(told, loc="left", fontsize=9)
    _save(figure, path)


def _sentence(system: System, pieces: Sequence[int]) -> str:
    words = [system.vocabulary.piece(piece) for piece in pieces]
    return " ".join(words).replace(" ##", "")


def token_sheet(path: PathLike, tokens: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Frames that tokens stand for: a row for each token, of a title and frames (H, W, 3) uint8."""
    columns = max(len(frames) for _, frames in tokens)
    figure = _figure(1.15 * columns, 1.35 * len(tokens))
    for row, (title, frames) in enumerate(tokens):
        for column, frame in enumerate(frames):
            axes = figure.add_subplot(len(tokens), columns, row * columns + column + 1)
            axes.imshow(frame.numpy())
            axes.set_axis_off()
            if column == 0:
                axes.set_title(title, loc="left", fontsize=7)
    figure.tight_layout(h_pad=0.3, w_pad=0.1)
    _save(figure, path, dpi=64)


def _figure(width: float, height: float) -> Any:
    """Without pyplot, which would keep it and might look for a screen."""
    figure = require("matplotlib.figure", extra="cli", purpose=_PURPOSE).Figure(figsize=(width, height))
    require("matplotlib.backends.backend_agg", extra="cli", purpose=_PURPOSE).FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: PathLike, dpi: int = 90) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pil_kwargs={"optimize": True})
