"""Clips of videos: frames at a chosen rate and size, decoded as they are needed."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .errors import DataError

__all__ = ["Clip", "VideoInfo", "in_background", "probe_video", "read_clip", "stream_clips"]

PathLike = str | os.PathLike[str]
Size = int | tuple[int, int]
T = TypeVar("T")

_SEEK_FROM = 2.0  # seconds; what lies before is decoded sooner than sought
_MISSING = (0.15, 0.02)  # seconds, and part of the length, that headers may promise too much


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        width, height: of the frames in pixels, the way they are to be shown.
        fps: frames per second, on average.
        seconds: length; ``None`` where the file does not tell.
    """

    width: int
    height: int
    fps: float
    seconds: float | None


class Clip(NamedTuple):
    """Some frames in a row."""

    frames: Tensor  #: (T, 3, H, W), uint8, or float32 in [0, 1]
    start: float  #: seconds, of the first frame


def probe_video(path: PathLike) -> VideoInfo:
    """Look at a file without decoding more than a frame.

    Raises:
        DataError: no such file, or not a video.
    """
    with closing(_Decoder(path)) as decoder:
        for _, frame in decoder.frames(0.0):
            turned = _turns(frame) % 2 == 1
            width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
            return VideoInfo(width, height, decoder.fps, decoder.seconds)
    raise DataError(f"{path}: no frames in this video")


def read_clip(
    path: PathLike,
    *,
    start: float = 0.0,
    end: float | None = None,
    length: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Read frames of a video.

    Args:
        path: the file: anything FFmpeg reads.
        start, end: seconds; to the end of the video by default.
        length: stop after so many frames.
        fps: frames per second of the result, each the nearest in time of the file's; the file's own by default.
        size: side of the largest square in the middle, or (height, width): frames are resized to cover that and
            cropped in the middle. Their own size by default.
        dtype: ``torch.float32`` for values in [0, 1], ``torch.uint8`` for 0 to 255.

    Returns:
        (T, 3, H, W).

    Raises:
        DataError: no such file, not a video, damaged or shorter than its head says, or nothing between ``start`` and
            ``end``. The message names the file.
        ImportError: av is missing.
    """
    _check("read_clip", fps, length, size, start, end, dtype)
    frames = []
    with closing(_sampled(path, fps, start, end, size)) as pictures:
        for picture in pictures:
            frames.append(picture)
            if len(frames) == length:
                break
    if not frames:
        raise _nothing(path, start, end)
    return _as_tensor(frames, dtype)


def stream_clips(
    path: PathLike,
    *,
    length: int,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Clip]:
    """Cut a video into clips of ``length`` frames without overlap, as it is decoded.

    No more than a clip is in memory. A rest of at least half a clip, or one that is all there is, is filled up with
    its last frame; a shorter one is left out. Arguments and errors are those of :func:`read_clip`.
    """
    _check("stream_clips", fps, length, size, start, end, dtype)
    step = 1 / (probe_video(path).fps if fps is None else fps)
    frames: list[np.ndarray] = []
    count = 0
    for picture in _sampled(path, fps, start, end, size):
        frames.append(picture)
        if len(frames) == length:
            yield Clip(_as_tensor(frames, dtype), start + count * length * step)
            frames, count = [], count + 1
    if frames and (count == 0 or 2 * len(frames) >= length):
        frames += [frames[-1]] * (length - len(frames))
        yield Clip(_as_tensor(frames, dtype), start + count * length * step)
    elif count == 0:
        raise _nothing(path, start, end)


def in_background(items: Iterable[T], ahead: int = 4) -> Iterator[T]:
    """The same items, made by a thread that is up to ``ahead`` of them in front.

    Decoding does not hold the interpreter's lock, so it goes on while the caller computes. What the thread raises is
    raised here; leaving the loop early ends it.
    """
    if ahead < 1:
        raise ValueError(f"fastvfx.data.in_background: expected ahead of at least 1, got {ahead}")
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not stop.is_set():
            try:
                made.put(entry, timeout=0.1)
                return True
            except queue.Full:  # noqa: PERF203 (that is how it waits)
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # the other thread raises it
            put((False, error))

    thread = threading.Thread(target=work, name="fastvfx-decode", daemon=True)
    thread.start()
    try:
        while True:
            more, value = made.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join()


# --- decoding -------------------------------------------------------------------------------------------------------


class _Decoder:
    """A file and its first video stream."""

    def __init__(self, path: PathLike) -> None:
        self.av = require("av", extra="data", purpose="reading videos")
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such video")
        self.container, self.stream = self._open()
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        self.fps = float(rate)
        self.seconds = self._length()

    def close(self) -> None:
        self.container.close()

    def _open(self) -> tuple[Any, Any]:
        try:
            container = self.av.open(str(self.path))
        except (self.av.FFmpegError, ValueError) as error:
            raise DataError(f"{self.path}: damaged, cut short or not a video: {_reason(error)}") from error
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path}: no pictures in this file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return container, stream

    def _length(self) -> float | None:
        """Of the pictures: the container's own length counts the sound too."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        if tag := self.stream.metadata.get("DURATION"):  # Matroska: 00:00:02.600000000
            try:
                hours, minutes, seconds = (float(part) for part in tag.split(":"))
                return 3600 * hours + 60 * minutes + seconds
            except ValueError:
                pass
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / 1e6
        return None

    def frames(self, start: float) -> Iterator[tuple[float, Any]]:
        """Pairs of seconds and a frame, from a key frame before ``start`` on to the end of the file."""
        stream, first = self.stream, 0.0
        if stream.start_time and stream.time_base:
            first = float(stream.start_time * stream.time_base)
        if start > _SEEK_FROM:
            self._seek(start + first)
        last, end, count = 0.0, 0.0, 0
        try:
            for frame in self.container.decode(self.stream):
                last = count / self.fps if frame.time is None else frame.time - first
                if frame.is_corrupt and last >= start:
                    raise DataError(f"{self.path}: the picture at {last:.2f} s is damaged")
                shown = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
                end = last + max(shown, 1 / self.fps)
                yield last, frame
                count += 1
        except (self.av.FFmpegError, ValueError) as error:
            raise DataError(f"{self.path}: damaged after {last:.2f} s: {_reason(error)}") from error
        if self.seconds is not None and self.seconds - end > max(_MISSING[0], _MISSING[1] * self.seconds):
            raise DataError(f"{self.path}: cut short, it ends after {end:.2f} of {self.seconds:.2f} s")

    def _seek(self, seconds: float) -> None:
        try:
            self.container.seek(int(seconds / self.stream.time_base), stream=self.stream, backward=True)
        except self.av.FFmpegError:  # no index: from the beginning
            self.container.close()
            self.container, self.stream = self._open()


def _sampled(
    path: PathLike, fps: float | None, start: float, end: float | None, size: Size | None
) -> Generator[np.ndarray, None, None]:
    """Pictures (H, W, 3) for the times ``start``, ``start + 1 / fps``, ... before ``end``."""
    end = math.inf if end is None else end
    with closing(_Decoder(path)) as decoder:
        step = 1 / (decoder.fps if fps is None else fps)
        wanted, count = start, 0
        held: tuple[float, Any] | None = None
        picture: np.ndarray | None = None  # of the held frame, once it was asked for

        def until(limit: float) -> Iterator[np.ndarray]:
            nonlocal wanted, count, picture
            while held is not None and wanted < min(limit, end) - 1e-6:
                if picture is None:
                    picture = _picture(held[1], size)
                yield picture
                count += 1
                wanted = start + count * step

        for time, frame in decoder.frames(start):
            if held is not None:
                yield from until(0.5 * (held[0] + time))
            if wanted >= end - 1e-6:
                return
            held, picture = (time, frame), None
        if held is not None:
            yield from until(held[0] + 1 / decoder.fps)


def _turns(frame: Any) -> int:
    """Quarter turns against the clock that bring a frame upright; telephones write videos sideways."""
    return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def _picture(frame: Any, size: Size | None) -> np.ndarray:
    turns = _turns(frame)
    if size is None:
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    height, width = (size, size) if isinstance(size, int) else size
    if turns % 2:
        height, width = width, height  # as the file has it
    scale = max(height / frame.height, width / frame.width)
    # Covered, and no pixel more than that needs.
    h, w = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    method = "AREA" if scale < 1 else "BICUBIC"
    pixels = frame.reformat(width=w, height=h, format="rgb24", interpolation=method).to_ndarray()
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(np.rot90(pixels[top : top + height, left : left + width], turns))


def _as_tensor(pictures: list[np.ndarray], dtype: torch.dtype) -> Tensor:
    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # (T, 3, H, W)
    return frames if dtype == torch.uint8 else frames.to(dtype) / 255


def _nothing(path: PathLike, start: float, end: float | None) -> DataError:
    seconds = probe_video(path).seconds
    length = "" if seconds is None else f", it is {seconds:.2f} s long"
    return DataError(f"{path}: no frames from {start:g} s{'' if end is None else f' to {end:g} s'}{length}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check(
    op: str,
    fps: float | None,
    length: int | None,
    size: Size | None,
    start: float,
    end: float | None,
    dtype: torch.dtype,
) -> None:
    where = f"fastvfx.data.{op}"
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"{where}: expected fps above 0, got {fps:g}")
    if length is not None and length < 1:
        raise ValueError(f"{where}: expected length of at least 1, got {length}")
    if size is not None and min((size,) if isinstance(size, int) else size) < 1:
        raise ValueError(f"{where}: expected size of at least 1, got {size}")
    if not (start >= 0 and math.isfinite(start)):
        raise ValueError(f"{where}: expected start of at least 0, got {start:g}")
    if end is not None and not end > start:
        raise ValueError(f"{where}: expected end after start={start:g}, got {end:g}")
    if dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"{where}: expected dtype torch.float32 or torch.uint8, got {dtype}")
