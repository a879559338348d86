"""Draws the pictures of docs/attention.md: `python docs/draw_patterns.py` writes docs/images/attention_*.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastvfx.patterns import CausalTime, Divided, Full, Neighborhood, Pattern, ShiftedWindows, SlidingTile

FOLDER = Path(__file__).parent / "images"
GRID, QUERY = (6, 8, 8), (3, 2, 5)
PATTERNS: dict[str, Pattern] = {
    "Full()": Full(),
    'Divided("time")': Divided("time"),
    'Divided("space")': Divided("space"),
    "Neighborhood((3, 5, 5))": Neighborhood((3, 5, 5)),
    "Neighborhood((3, 3, 3),\ndilation=(1, 2, 2))": Neighborhood((3, 3, 3), dilation=(1, 2, 2)),
    "Neighborhood((3, 5, 5),\nstride=(1, 4, 4))": Neighborhood((3, 5, 5), stride=(1, 4, 4)),
    "ShiftedWindows((2, 4, 4),\n(1, 2, 2))": ShiftedWindows((2, 4, 4), (1, 2, 2)),
    "SlidingTile((2, 4, 4),\n(3, 1, 1))": SlidingTile((2, 4, 4), (3, 1, 1)),
    "CausalTime()": CausalTime(),
    "CausalTime(chunk=2, local=2,\nsink=1)": CausalTime(chunk=2, local=2, sink=1),
    "Neighborhood((3, 5, 5))\n& CausalTime()": Neighborhood((3, 5, 5)) & CausalTime(),
}


def frames() -> None:
    """A row of frames for each pattern: the keys of one query, which is the dot."""
    figure, rows = plt.subplots(len(PATTERNS), GRID[0], figsize=(8.2, 0.98 * len(PATTERNS)), dpi=80)
    for row, (name, pattern) in zip(rows, PATTERNS.items(), strict=True):
        pattern.plot(GRID, query=QUERY, axes=row)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, family="monospace")
        for panel in row:
            panel.set_title("")
    for frame, panel in enumerate(rows[0]):
        panel.set_title(f"frame {frame}", fontsize=9)
    figure.subplots_adjust(left=0.31, right=0.995, top=0.975, bottom=0.005, wspace=0.06, hspace=0.06)
    figure.savefig(FOLDER / "attention_frames.png")


def masks() -> None:
    """The whole mask of each pattern on a smaller grid."""
    grid = (4, 4, 4)
    figure, panels = plt.subplots(2, 4, figsize=(8.2, 4.6), dpi=80)
    shown = {
        'Divided("time")': Divided("time"),
        'Divided("space")': Divided("space"),
        "Neighborhood(3)": Neighborhood(3),
        "ShiftedWindows(2, 1)": ShiftedWindows(2, 1),
        "SlidingTile(2, (1, 2, 1))": SlidingTile(2, (1, 2, 1)),
        "CausalTime()": CausalTime(),
        "CausalTime(1, 2, 1)": CausalTime(1, 2, 1),
        "Neighborhood(3)\n& CausalTime()": Neighborhood(3) & CausalTime(),
    }
    for panel, (name, pattern) in zip(panels.flat, shown.items(), strict=True):
        pattern.plot(grid, axes=panel)
        panel.set(xlabel="", ylabel="")
        panel.set_title(f"{name}\n{100 * pattern.density(grid):.0f} %", fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.01, wspace=0.05, hspace=0.4)
    figure.savefig(FOLDER / "attention_masks.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    frames()
    masks()
