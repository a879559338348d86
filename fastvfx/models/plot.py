"""A line plot as SVG: small enough to need no plotting library, sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 860, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 15, 50


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y)."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


def line_plot(curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """The curves over common axes, each named at its end."""
    points = [p for c in curves for p in c.points if math.isfinite(p[1])]
    x_ticks = _ticks(0.0, max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        u = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + u * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - v * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in y_ticks:
        (x0, v), (x1, _) = at(x_ticks[0], y), at(x_ticks[-1], y)
        parts.append(f'<path d="M{x0:.1f} {v:.1f}H{x1:.1f}" stroke="#e3e7eb"/>')
        parts.append(_text(x0 - 8, v + 4, f"{y:g}", "end"))
    for x in x_ticks:
        u, v = at(x, y_ticks[0])
        parts.append(f'<path d="M{u:.1f} {v:.1f}v5" stroke="#59636e"/>')
        parts.append(_text(u, v + 20, f"{x:g}", "middle"))
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle"))
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, y_label, "middle")}</g>')
    label_ys: list[float] = []
    for curve in curves:
        ends = [at(x, y) for x, y in curve.points if math.isfinite(y)]
        if not ends:
            continue
        line = " ".join(f"{u:.1f},{v:.1f}" for u, v in ends)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{curve.color}" stroke-width="2.5"/>')
        u, v = ends[-1]
        parts.append(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3.5" fill="{curve.color}"/>')
        while any(abs(v - other) < 16 for other in label_ys):
            v += 4
        label_ys.append(v)
        parts.append(_text(u + 9, v + 4, curve.name, "start", curve.color))
    return (
        # The name of the language: in a page it is known, in a file of its own it is not.
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        'style="max-width: 100%" '
        f'font-family="system-ui, sans-serif" font-size="13">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, color: str = "#59636e") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about six, from at or below ``low`` to at or above ``high``."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
