"""Small videos for tests, made with PyAV."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

#: Four scenes that even a network that was never trained can tell apart.
SCENES = ("red", "green", "stripes", "moving")


def write_clip(
    path: Path, frame: Callable[[int], np.ndarray], n: int = 20, fps: int = 10, codec: str = "libx264"
) -> Path:
    """``n`` frames (H, W, 3) uint8 in the container that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frame(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "1", "preset": "ultrafast", "g": "5"}
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def gray(i: int, step: int = 10, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """A grey that tells the number of the frame."""
    return np.full((*size, 3), i * step, np.uint8)


def scene(name: str) -> Callable[[int], np.ndarray]:
    """Frames of one of :data:`SCENES`."""

    def frame(i: int) -> np.ndarray:
        x = np.zeros((32, 32, 3), np.uint8)
        if name == "red":
            x[..., 0] = 220
        elif name == "green":
            x[..., 1] = 200
        elif name == "stripes":
            x[:, ::4] = 255
            x[:, 1::4] = 255
        else:
            x[(2 * i) % 32 : (2 * i) % 32 + 8] = 180
        return x

    return frame


def captioned(folder: Path, n: int = 20) -> Path:
    """A folder with a clip of each scene, and captions with labels."""
    entries = {}
    for name in SCENES:
        write_clip(folder / f"{name}.mp4", scene(name), n)
        entries[f"{name}.mp4"] = {"caption": f"a picture of {name} things", "label": name}
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder
