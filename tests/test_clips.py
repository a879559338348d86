"""Clips of videos: which frames, at which size, and what is said of files that can't be read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import gray, write_clip

from fastvfx.data import DataError, in_background, probe_video, read_clip, stream_clips
from fastvfx.data.clips import _picture


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame i, of 25 at 10 frames per second, is grey 10 i."""
    return write_clip(tmp_path_factory.mktemp("clips") / "gray.mp4", gray, n=25)


def numbers(frames: torch.Tensor) -> list[int]:
    """Which frames these are."""
    assert frames.dtype == torch.uint8
    return (frames.double().mean((1, 2, 3)) / 10).round().int().tolist()


def test_probe(video: Path) -> None:
    info = probe_video(video)
    assert (info.width, info.height, info.fps, info.seconds) == (48, 32, 10, 2.5)


def test_all_frames_at_their_own_rate(video: Path) -> None:
    frames = read_clip(video, dtype=torch.uint8)
    assert frames.shape == (25, 3, 32, 48) and numbers(frames) == list(range(25))
    floats = read_clip(video)
    assert floats.dtype == torch.float32 and torch.equal(floats, frames.float() / 255)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 5}, list(range(0, 25, 2))),
        ({"fps": 20, "end": 0.5}, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),  # half-way the later one is shown
        ({"fps": 4, "length": 3}, [0, 3, 5]),
        ({"start": 1.2, "end": 1.5}, [12, 13, 14]),
        ({"start": 1.24, "length": 1}, [12]),
        ({"start": 2.2}, [22, 23, 24]),  # sought
        ({"start": 2.3, "end": 9.0}, [23, 24]),
    ],
    ids=str,
)
def test_frames_nearest_in_time(video: Path, options: dict[str, Any], expected: list[int]) -> None:
    assert numbers(read_clip(video, dtype=torch.uint8, **options)) == expected


@pytest.mark.parametrize(("size", "shape"), [(16, (16, 16)), ((16, 20), (16, 20)), ((64, 64), (64, 64)), (7, (7, 7))])
def test_sizes(video: Path, size: Any, shape: tuple[int, int]) -> None:
    assert read_clip(video, length=2, size=size).shape == (2, 3, *shape)


def test_the_middle_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 255  # the square in the middle is white
    path = write_clip(tmp_path / "a.mkv", lambda i: pixels, n=2)
    assert float(read_clip(path, size=16)[:, :, :, 1:-1].min()) > 0.95


def test_telephones_hold_frames_sideways() -> None:
    class Frame:
        rotation, height, width = -90, 32, 48

        def to_ndarray(self, format: str) -> np.ndarray:
            return np.arange(32 * 48 * 3, dtype=np.uint32).reshape(32, 48, 3)

    upright = _picture(Frame(), None)
    assert upright.shape == (48, 32, 3)
    # A quarter turn with the clock: what was left at the bottom is at the top left.
    assert (upright[0, 0] == Frame().to_ndarray("")[31, 0]).all()


def test_stream_cuts_without_overlap(video: Path) -> None:
    clips = list(stream_clips(video, length=10, dtype=torch.uint8))
    assert [numbers(clip.frames) for clip in clips[:2]] == [list(range(10)), list(range(10, 20))]
    assert numbers(clips[2].frames) == [20, 21, 22, 23, 24, 24, 24, 24, 24, 24]  # half of it is there: filled up
    assert [round(clip.start, 6) for clip in clips] == [0, 1, 2]


def test_stream_leaves_out_a_short_rest_but_not_all(video: Path) -> None:
    assert len(list(stream_clips(video, length=11, fps=10))) == 2
    (only,) = stream_clips(video, length=100, dtype=torch.uint8)
    assert numbers(only.frames)[:25] == list(range(25)) and only.frames.shape[0] == 100
    late = list(stream_clips(video, length=5, fps=5, start=0.5, dtype=torch.uint8))
    assert [round(clip.start, 6) for clip in late] == [0.5, 1.5] and numbers(late[1].frames) == [15, 17, 19, 21, 23]


# --- what can't be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_truncated(tmp_path: Path, suffix: str, part: float) -> None:
    random = np.random.default_rng(0)
    path = write_clip(tmp_path / f"a{suffix}", lambda i: random.integers(0, 256, (32, 32, 3), dtype=np.uint8), n=30)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=rf"a{suffix}: (cut short, it ends after|damaged)"):
        read_clip(path)
    with pytest.raises(DataError, match=rf"a{suffix}: (cut short|damaged)"):
        list(stream_clips(path, length=4))


def test_truncated_before_its_index(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a.mp4: (damaged, cut short or not a video|no pictures in this file)"):
        read_clip(path)


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"a.mp4: damaged, cut short or not a video"):
        probe_video(path)
    with pytest.raises(DataError, match=r"b.mp4: no such video"):
        read_clip(tmp_path / "b.mp4")


def test_nothing_there(video: Path) -> None:
    with pytest.raises(DataError, match=r"no frames from 5 s to 6 s, it is 2.50 s long"):
        read_clip(video, start=5, end=6)
    with pytest.raises(DataError, match=r"no frames from 5 s, it is 2.50 s long"):
        list(stream_clips(video, length=4, start=5))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 0}, "fps above 0, got 0"),
        ({"length": 0}, "length of at least 1, got 0"),
        ({"size": (0, 4)}, r"size of at least 1, got \(0, 4\)"),
        ({"start": -1}, "start of at least 0, got -1"),
        ({"start": 2, "end": 2}, "end after start=2, got 2"),
        ({"dtype": torch.float16}, "dtype torch.float32 or torch.uint8, got torch.float16"),
    ],
    ids=str,
)
def test_bad_arguments(video: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"fastvfx.data.read_clip: expected {expected}"):
        read_clip(video, **options)


# --- in the background ----------------------------------------------------------------------------------------------


def test_background_keeps_the_order_and_runs_ahead() -> None:
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    results = in_background(items(), ahead=3)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(made) <= 5  # one taken, three waiting, one in its hand
    assert list(results) == list(range(1, 20))


def test_background_raises_here_what_happens_there() -> None:
    def items():
        yield 1
        raise DataError("broken")

    results = in_background(items())
    assert next(results) == 1
    with pytest.raises(DataError, match="broken"):
        next(results)


def test_background_ends_when_it_is_left() -> None:
    before = threading.active_count()
    results = in_background(iter(range(1000)), ahead=1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="ahead of at least 1, got 0"):
        next(in_background([1], ahead=0))


def test_real_clips(shared_data: Path) -> None:
    path = shared_data / "video" / "asl_gestures" / "eat.mkv"
    frames = read_clip(path, fps=10, size=64)
    assert frames.shape == (16, 3, 64, 64) and 0.2 < float(frames.mean()) < 0.8
    starts = [clip.start for clip in stream_clips(shared_data / "video" / "flower.mp4", fps=20, length=30, size=32)]
    assert starts == [0.0, 1.5, 3.0]
