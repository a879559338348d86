"""Table and plot from the JSON that a run of the benchmarks wrote.

python benchmarks/report.py benchmarks/results/MACHINE/latest.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def load(path: Path) -> list[dict[str, Any]]:
    """The races of a pytest-benchmark file, one dict each."""
    return [b["extra_info"] for b in json.loads(path.read_text())["benchmarks"] if "op" in b["extra_info"]]


def duration(ms: float) -> str:
    return f"{ms * 1e3:.3g} µs" if ms < 1 else f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def against(race: dict[str, Any], name: str) -> str:
    """``2.1 s (23×)``, or a dash."""
    b = race["baselines"].get(name)
    return f"{duration(b['ms'])} ({b['ratio']:.3g}×)" if b else "–"


def verdict(race: dict[str, Any]) -> str:
    if race["ratio"] is None:
        return "–"
    quartiles = race["baselines"][race["reference"]]["ratio_quartiles"]
    return f"**{race['ratio']:.3g}×** ({quartiles[0]:.3g}–{quartiles[1]:.3g})"


def target(race: dict[str, Any]) -> str:
    """What should be reached, and whether it was."""
    wanted = []
    if race["target"]:
        wanted.append((race["target"], race["ratio"], ""))
    wanted += [
        (t, race["baselines"][p]["ratio"], f" {p}") for p, t in race["peer_targets"].items() if p in race["baselines"]
    ]
    return ", ".join(f"{t:g}×{p} {'reached' if got >= t else 'missed'}" for t, got, p in wanted) or "–"


def rate(race: dict[str, Any]) -> str:
    parts = [f"{race['ns_per_item']:.3g} ns/{race['item']}"]
    if "gb_per_s" in race:
        parts.append(f"{race['gb_per_s']:.3g} GB/s ({race['of_copy_bandwidth']:.0%} of copy)")
    if "gflop_per_s" in race:
        parts.append(f"{race['gflop_per_s']:.3g} GFLOP/s ({race['of_matmul']:.0%} of matmul)")
    return ", ".join(parts)


def table(races: list[dict[str, Any]]) -> str:
    """Markdown: a row for each race, a column for each baseline."""
    names = list(dict.fromkeys(name for race in races for name in race["baselines"]))
    heads = ["op", "case", "", "fastvfx", *names, "ratio to the best of torch (quartiles)", "target", "rate"]
    rows = [
        [
            race["op"],
            race["case"],
            race["direction"],
            duration(race["ms"]),
            *(against(race, name) for name in names),
            verdict(race),
            target(race),
            rate(race),
        ]
        for race in races
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(races: list[dict[str, Any]]) -> str:
    """What the figures depend on; races of several runs may differ in it."""

    def all_of(key: str) -> str:
        return " and ".join(dict.fromkeys(race[key] for race in races))

    limits = ", ".join(
        f"{name.replace('_', ' ').replace('gb per s', 'GB/s').replace('tflop per s', 'TFLOP/s')} {value:.3g}"
        for name, value in races[-1]["ceilings"].items()
    )
    return (
        f"{all_of('machine')}; torch {all_of('torch')}, {all_of('compiler')}, allocator: {all_of('allocator')}, "
        f"revision {all_of('revision')}. Measured ceilings: {limits}."
    )


def plot(races: list[dict[str, Any]], path: Path) -> None:
    """Horizontal bars, one per baseline: how many times faster ours is; ticks mark the targets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for race in races for name in race["baselines"]))
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    height = 0.8 / max(len(names), 1)
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.55 * len(races)), layout="constrained")
    for y, race in enumerate(races):
        mine = [n for n in names if n in race["baselines"]]
        for k, name in enumerate(mine):
            b = race["baselines"][name]
            at = y + (k - (len(mine) - 1) / 2) * height
            low, high = b["ratio_quartiles"]
            reach = [[max(0.0, b["ratio"] - low)], [max(0.0, high - b["ratio"])]]
            axes.barh(at, b["ratio"], height * 0.9, color=colours[name], xerr=reach, ecolor="0.3", capsize=2)
        if race["target"]:
            axes.plot([race["target"]] * 2, [y - 0.45, y + 0.45], color="black", lw=1.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[n]) for n in names]
    handles.append(plt.Line2D([], [], color="black", lw=1.5))
    axes.legend(handles, [*names, "target (best of torch)"], loc="lower right", bbox_to_anchor=(1, 1.0), ncols=4)
    axes.set_yticks(range(len(races)), [f"{r['op']}, {r['case']}, {r['direction']}" for r in races])
    axes.set_ylim(len(races) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="0.6", lw=1)
    axes.set_xlabel("times faster than the baseline (median of paired ratios, quartiles)")
    axes.grid(axis="x", which="both", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report(path: Path) -> str:
    """Writes ``.md`` and ``.png`` beside the JSON and returns the table."""
    races = load(path)
    if not races:
        return f"{path}: no race was finished"
    text = f"{table(races)}\n\n{caption(races)}\n"
    path.with_suffix(".md").write_text(text)
    try:
        plot(races, path.with_suffix(".png"))
    except ImportError as missing:
        text += f"\nNo plot: {missing}; pip install matplotlib\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    print(report(parser.parse_args().json))


if __name__ == "__main__":
    main()
