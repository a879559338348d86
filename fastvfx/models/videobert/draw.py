"""Pictures of a training: losses, which caption fits which clip, what tokens stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..._extras import require
from ...data import atomic_path
from .zero_shot import Retrieval

PathLike = str | os.PathLike[str]

_COLORS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed", "#a16207")
GRAY = "#475569"
PURPOSE = "pictures"


def loss_curves(path: PathLike, history: Sequence[dict[str, float]], title: str, unit: str) -> None:
    """A curve for each term, over steps: means of neighbours, so that they can be read, on a faint trace of all."""
    figure = new_figure(7.6, 3.9)
    axes = figure.add_subplot()
    names = [name for name in history[-1] if name not in ("step", "seconds")]
    size = -(-len(history) // 60)
    groups = [history[i : i + size] for i in range(0, len(history), size)]
    for name, color in zip(names, _COLORS, strict=False):
        axes.plot([row["step"] for row in history], [row[name] for row in history], color=color, alpha=0.15, lw=0.8)
        x = [sum(row["step"] for row in group) / len(group) for group in groups]
        y = [sum(row[name] for row in group) / len(group) for group in groups]
        axes.plot(x, y, color=color, lw=1.8, label=name.replace("_", " "))
    last = history[-1]
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_title(f"{last['step']:.0f} steps, {last['seconds']:.0f} s", loc="right", fontsize=9, color=GRAY)
    axes.set(xlabel="step", ylabel=f"term of the loss\n({unit})", ylim=(0, None), xlim=(0, last["step"]))
    axes.grid(color="#e3e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)


def retrieval_map(path: PathLike, results: dict[str, Retrieval], names: dict[str, list[str]]) -> None:
    """How well each caption fits each clip, by rank in its row; the right ones have a frame.

    Args:
        path: of the picture.
        results: by what they were measured on.
        names: of the clips of each.
    """
    rows = max(len(r.right) for r in results.values())
    figure = new_figure(2.0 + 3.6 * len(results), 2.3 + min(8.0, 0.17 * rows + 0.6), layout="constrained")
    figure.suptitle("Which caption fits which clip", x=0.01, ha="left", fontsize=12, fontweight="bold")
    shown, named = [], None
    for i, (what, result) in enumerate(results.items()):
        axes = figure.add_subplot(1, len(results), i + 1)
        n = result.scores.shape[1]
        rank = result.scores.argsort(1, descending=True).argsort(1) + 1
        shown.append((axes, axes.imshow(rank.numpy(), cmap="Blues_r", vmin=1, vmax=n, aspect="auto")))
        y = np.arange(len(result.right))
        axes.scatter(result.right, y, marker="s", s=26, facecolors="none", edgecolors="#ea580c", linewidths=1.6)
        axes.set_title(
            f"{len(result.right)} {what}, {n} captions\n"
            f"right one first: {result.top1:.0%} (chance {result.chance1:.0%})\n"
            f"among five: {result.top5:.0%} (chance {result.chance5:.0%})",
            fontsize=9,
            loc="left",
        )
        axes.set_xlabel("captions; framed: the right one", fontsize=8)
        axes.set_xticks([])
        told = len(y) <= 40 and names[what] != named  # once, where the clips are the same
        axes.set_yticks(y if told else [], names[what] if told else [], fontsize=7)
        named = names[what]
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(shown[0][1], ax=[axes for axes, _ in shown], shrink=0.5, aspect=30, pad=0.015)
    bar.set_label("rank of the caption, 1 fits best", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    save_figure(figure, path, dpi=100)


def token_sheet(path: PathLike, tokens: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Frames that tokens stand for: a row for each token, of a title and frames (H, W, 3) uint8."""
    columns = max(len(frames) for _, frames in tokens)
    figure = new_figure(1.15 * columns, 1.35 * len(tokens))
    for row, (title, frames) in enumerate(tokens):
        for column, frame in enumerate(frames):
            axes = figure.add_subplot(len(tokens), columns, row * columns + column + 1)
            axes.imshow(frame.numpy())
            axes.set_axis_off()
            if column == 0:
                axes.set_title(title, loc="left", fontsize=7)
    figure.tight_layout(h_pad=0.3, w_pad=0.1)
    save_figure(figure, path, dpi=64)


def new_figure(width: float, height: float, layout: str | None = None) -> Any:
    """Without pyplot, which would keep it and might look for a screen."""
    figure = require("matplotlib.figure", extra="cli", purpose=PURPOSE).Figure((width, height), layout=layout)
    require("matplotlib.backends.backend_agg", extra="cli", purpose=PURPOSE).FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: PathLike, dpi: int = 90) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pil_kwargs={"optimize": True})
