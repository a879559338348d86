"""Draws docs/images/nerf.png from what `make demo` left: `python docs/draw_nerf.py demo-out`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VIEWS = ("002", "004", "007")
TRAININGS = {"native": ("native kernels", "#0b6bcb"), "reference": ("plain PyTorch", "#b5400b")}


def draw(trainings: Path, picture: Path) -> None:
    """PSNR against time, and held-out views: the truth, both trainings, and the depth that the first has learned."""
    figure = plt.figure(figsize=(11, 4.3), dpi=90)
    curve, pictures = figure.subfigures(1, 2, width_ratios=(0.42, 0.58))
    axes = curve.subplots()
    curve.subplots_adjust(0.15, 0.14, 0.93, 0.92)
    for name, (label, color) in TRAININGS.items():
        metrics = json.loads((trainings / name / "metrics.json").read_text())
        rows = metrics["history"]
        axes.plot([row["seconds"] for row in rows], [row["psnr"] for row in rows], color=color, label=label)
    axes.set(xlabel="seconds of training", ylabel="PSNR of held-out views, dB", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")

    panels = pictures.subplots(len(VIEWS), 4)
    pictures.subplots_adjust(0, 0.01, 1, 0.93, wspace=0.02, hspace=0.02)
    for row, view in zip(panels, VIEWS, strict=True):
        files = (f"native/test/{view}_truth.png", f"native/test/{view}_render.png", f"reference/test/{view}_render.png")
        for panel, file in zip(row, (*files, f"native/test/{view}_depth.png"), strict=True):
            panel.imshow(plt.imread(trainings / file), cmap="gray")
            panel.axis("off")
    for panel, title in zip(panels[0], ("truth", "native kernels", "plain PyTorch", "depth, native"), strict=True):
        panel.set_title(title, fontsize=10)
    figure.savefig(picture)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parent / "images" / "nerf.png")
