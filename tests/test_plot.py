"""Plots as SVG: what a browser makes of them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from fastvfx.models.plot import Curve, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def test_a_plot_is_a_file_of_its_own() -> None:
    """Browsers show a file as a picture only if its elements are in SVG's namespace."""
    curves = [
        Curve("a < b & c", "#0b6bcb", [(0, 1.0), (5, math.nan), (10, 3.0)]),
        Curve("none", "red", [(0, math.nan)]),
    ]
    root = ElementTree.fromstring(line_plot(curves, "steps", "loss"))
    assert root.tag == f"{SVG}svg"
    (line,) = root.iter(f"{SVG}polyline")
    assert len(line.attrib["points"].split()) == 2  # without what is no number
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a < b & c", "steps", "loss", "0", "10", "1", "3"} <= set(texts) and "none" not in texts
