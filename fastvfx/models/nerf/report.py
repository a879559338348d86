"""A page that compares finished trainings of one capture. One file, with pictures and films inside it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...data import DataError, atomic_write
from ..plot import Curve, line_plot

_VIEWS = 6
_NEEDED = {"backend", "data", "fastvfx", "history", "processor", "psnr_test", "samples_per_second", "steps", "threads"}
_NEEDED |= {"torch", "train_seconds", "train_views"}
_COLORS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; background: #fff; margin: 2rem auto; max-width: 1080px;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead { font-size: 1.1rem; } .quiet { color: #59636e; }
table { border-collapse: collapse; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; }
.views { display: grid; gap: .6rem; align-items: end; }
figure { margin: 0; } figure img, figure video { width: 100%; display: block; background: #eee; }
figcaption { font-size: .85rem; color: #59636e; }
.films { display: flex; flex-wrap: wrap; gap: 1rem; } .films figure { width: 340px; }
"""


@dataclass(frozen=True)
class Run:
    """One training: its folder and what metrics.json there says."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        backend = self.metrics["backend"]
        return "native kernels" if backend == "native" else "plain PyTorch" if backend == "reference" else backend


def write_report(
    path: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]], title: str | None = None
) -> None:
    """Write the page.

    Args:
        path: of the page.
        folders: what ``fastvfx nerf train`` wrote, the one to look at first.
        title: heading; the name of the capture by default.

    Raises:
        DataError: a folder that holds no finished training.
    """
    runs = [_read(Path(folder)) for folder in folders]
    if not runs:
        raise DataError("expected at least one folder of a training")
    title = title or Path(runs[0].metrics["data"]).name
    sections = [_head(title, runs), _plot(runs), _table(runs), _views(runs), _films(runs)]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{''.join(sections)}</html>\n"
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def _read(folder: Path) -> Run:
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        missing = _NEEDED - set(metrics)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if missing:
        raise DataError(f"{path}: {', '.join(sorted(missing))} is missing")
    return Run(folder, metrics)


def _head(title: str, runs: list[Run]) -> str:
    m = runs[0].metrics
    machine = f"{m['processor']}, {m['threads']} thread{'s' if m['threads'] != 1 else ''}"
    if m.get("isa"):
        machine += f", {m['isa']} kernels"
    lead = f"{m['train_views']} training views, {m['train_seconds']:.0f} s of training"
    if m["psnr_test"] is not None:
        lead += f": {m['psnr_test']:.2f} dB on views that were held out"
    if len(runs) > 1 and m["psnr_test"] is not None and runs[1].metrics["psnr_test"] is not None:
        other = runs[1].metrics
        gain, ratio = m["psnr_test"] - other["psnr_test"], m["samples_per_second"] / other["samples_per_second"]
        lead += (
            f". The same model in {escape(runs[1].name)} reaches {other['psnr_test']:.2f} dB in "
            f"{other['train_seconds']:.0f} s, {abs(gain):.2f} dB {'less' if gain >= 0 else 'more'}: the first gets "
            f"through {ratio:.1f} times as many samples per second"
        )
    return (
        f"<h1>{escape(title)}</h1><p class=quiet>{escape(machine)}; torch {escape(m['torch'])}, "
        f"fastvfx {escape(m['fastvfx'])}</p><p class=lead>{lead}.</p>"
    )


def _plot(runs: list[Run]) -> str:
    curves = [
        # A PSNR that is no number (a picture without an error) is null in the file.
        Curve(run.name, color, [(p["seconds"], p["psnr"]) for p in run.metrics["history"] if p["psnr"] is not None])
        for run, color in zip(runs, _COLORS * len(runs), strict=False)
    ]
    curves = [c for c in curves if c.points]
    if not curves:
        return ""
    note = (
        "Mean over held-out views of their PSNR, here from a sample of their pixels, in the table from all of them. "
        "Neither this nor saving counts as time of training."
    )
    if len(runs) > 1:
        note += f" {_alike(runs)}"
    plot = line_plot(curves, "seconds of training", "PSNR, held-out views, dB")
    return f"<h2>Quality against time</h2>{plot}<p class=quiet>{note}</p>"


def _alike(runs: list[Run]) -> str:
    """What the reader would otherwise have to take on trust."""
    names = {"config": "settings", "seed": "seed", "threads": "number of threads", "processor": "processor"}
    differ = [name for key, name in names.items() if any(r.metrics.get(key) != runs[0].metrics.get(key) for r in runs)]
    if differ:
        return f"<b>The trainings differ in: {', '.join(differ)}.</b>"
    return "Settings, seed, number of threads and processor are the same."


def _table(runs: list[Run]) -> str:
    rows = [
        ("PSNR, held-out views", "psnr_test", "{:.2f} dB"),
        ("SSIM, held-out views", "ssim_test", "{:.3f}"),
        ("training", "train_seconds", "{:.1f} s"),
        ("steps", "steps", "{:,}"),
        ("steps per second", "steps_per_second", "{:.2f}"),
        ("samples per second", "samples_per_second", "{:,.0f}"),
        ("rays per second, training", "rays_per_second", "{:,.0f}"),
    ]
    two = len(runs) == 2
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs) + ("<th>ratio</th>" if two else "")
    body = ""
    for label, key, form in rows:
        values: list[Any] = [run.metrics.get(key) for run in runs]
        cells = "".join(f"<td>{'–' if v is None else form.format(v)}</td>" for v in values)
        if two:
            # A ratio of decibels or of a score in [0, 1] means nothing.
            first, second = values
            has_ratio = "per_second" in key and first and second
            cells += f"<td>{first / second:.1f}×</td>" if has_ratio else "<td></td>"
        body += f"<tr><td>{label}</td>{cells}</tr>"
    note = "A sample is a point on a ray that goes through both networks, forwards and backwards."
    return f"<h2>Speed</h2><table><tr><th></th>{head}</tr>{body}</table><p class=quiet>{note}</p>"


def _views(runs: list[Run]) -> str:
    names = [view["name"] for view in runs[0].metrics.get("views", [])]
    if not names:
        return ""
    count = min(_VIEWS, len(names))
    chosen = [round(i * (len(names) - 1) / max(count - 1, 1)) for i in range(count)]
    columns = [("truth", runs[0], "truth")] + [(run.name, run, "render") for run in runs]
    columns.append((f"depth, {runs[0].name}", runs[0], "depth"))
    cells = ""
    for i in chosen:
        for label, run, kind in columns:
            views = run.metrics.get("views", [])
            score = f", {views[i]['psnr']:.2f} dB" if kind == "render" and i < len(views) else ""
            name = f"{Path(names[i]).name}: " if kind == "truth" else ""
            cells += _picture(run.folder / "test" / f"{i:03d}_{kind}.png", f"{name}{label}{score}")
    grid = f"grid-template-columns: repeat({len(columns)}, 1fr)"
    return f'<h2>Held-out views</h2><div class=views style="{grid}">{cells}</div>'


def _films(runs: list[Run]) -> str:
    films = ""
    for run in runs:
        path = run.folder / "film.mp4"
        if path.is_file():
            films += (
                f'<figure><video autoplay loop muted playsinline controls src="{_data_uri(path, "video/mp4")}"></video>'
                f"<figcaption>{escape(run.name)}</figcaption></figure>"
            )
    return f"<h2>Camera path</h2><div class=films>{films}</div>" if films else ""


def _picture(path: Path, caption: str) -> str:
    if not path.is_file():
        return f"<figure><figcaption>{escape(caption)}: no picture</figcaption></figure>"
    image = f'<img alt="{escape(caption)}" src="{_data_uri(path, "image/png")}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
