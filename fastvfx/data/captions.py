"""Captions of videos: which words belong to which seconds of which file."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from .errors import DataError

__all__ = ["Caption", "Captions", "load_captions"]

PathLike = str | os.PathLike[str]

FILES = ("captions.json", "captions.jsonl", "captions.csv")
_FIELDS = "video, caption, start, end, label"
_SHOWN = 3  # broken lines that a message tells about


@dataclass(frozen=True)
class Caption:
    """What a part of a video shows.

    Attributes:
        video: the file.
        name: of the video, as the captions call it.
        text: the words.
        start, end: of the part, in seconds; an ``end`` of ``None`` is that of the video.
        label: its class, where the file has one.
        where: the place in the file of captions, for messages.
    """

    video: Path
    name: str
    text: str
    start: float = 0.0
    end: float | None = None
    label: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Captions:
    """What :func:`load_captions` read.

    Attributes:
        entries: video after video, in order of their first mention, within a video in order of ``start``.
        path: of the file.
        broken: what was wrong with entries that were left out.
    """

    entries: tuple[Caption, ...]
    path: Path
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def videos(self) -> dict[str, Path]:
        """The files by their names, in order."""
        return {entry.name: entry.video for entry in self.entries}

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted({entry.label for entry in self.entries if entry.label is not None}))


def load_captions(path: PathLike, *, skip_broken: bool = False) -> Captions:
    """Read captions from JSON, lines of JSON, or CSV. Videos are named relative to the file's folder.

    - ``.json``: ``{"cut.mp4": "a person cuts an onion"}``; a value may also be an object with ``caption`` and, as
      needed, ``start``, ``end`` (seconds) and ``label``, or a list of such objects. Or a list of objects that name
      their ``video``.
    - ``.jsonl``: such an object a line.
    - ``.csv``: a head line with ``video`` and ``caption`` and, as needed, ``start``, ``end``, ``label``.

    Args:
        path: the file, or a folder that holds ``captions.json``, ``captions.jsonl`` or ``captions.csv``.
        skip_broken: leave out entries that can't be used, and keep in ``broken`` what is wrong with them.

    Raises:
        DataError: no such file, broken lines (named by their numbers), a video that is not there, no captions.
    """
    path = _find(Path(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file: {error}") from error
    readers = {".json": _read_json, ".jsonl": _read_lines, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected captions in a .json, .jsonl or .csv file")
    entries: list[Caption] = []
    broken: list[str] = []
    for where, value in readers[path.suffix.lower()](path, text):
        try:
            entries.append(_entry(path, where, value))
        except DataError as error:  # noqa: PERF203 (each entry has its own)
            broken.append(f"{where}: {error}")
    if broken and not skip_broken:
        more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(broken[:_SHOWN])}{more}")
    if not entries:
        raise DataError(f"{path}: no captions{f', all {len(broken)} entries are broken' if broken else ' in it'}")
    order = {name: i for i, name in enumerate(dict.fromkeys(entry.name for entry in entries))}
    entries.sort(key=lambda entry: (order[entry.name], entry.start))
    return Captions(tuple(entries), path, tuple(broken))


def _find(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path}: expected {', '.join(FILES[:-1])} or {FILES[-1]} in this folder")


# --- the three formats: pairs of a place and what stands there ------------------------------------------------------

_Placed = Iterator[tuple[str, Any]]


class _Broken(str):
    """In place of a value: why there is none."""


def _read_json(path: Path, text: str) -> _Placed:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}: {line}invalid or truncated JSON: {error}") from error
    if isinstance(content, list):
        for i, value in enumerate(content):
            yield f"entry {i}", value
        return
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object or a list, got {type(content).__name__}")
    for name, value in content.items():
        parts = value if isinstance(value, list) else [value]
        for i, part in enumerate(parts):
            where = f"entry {name!r}" + (f"[{i}]" if isinstance(value, list) else "")
            if isinstance(part, str):
                part = {"caption": part}
            yield where, {"video": name, **part} if isinstance(part, dict) else part


def _read_lines(path: Path, text: str) -> _Placed:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield f"line {number}", _Broken(f"invalid or truncated JSON ({reason})")


def _read_csv(path: Path, text: str) -> _Placed:
    rows = csv.reader(StringIO(text, newline=""), strict=True)
    head: list[str] | None = None
    while True:
        line = rows.line_num + 1  # where the next row begins
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {line}", _Broken(f"not CSV ({error})")
            continue
        if not row:
            continue
        if head is None:
            head = [name.strip() for name in row]
            if missing := {"video", "caption"} - set(head):
                raise DataError(
                    f"{path}: line {line}: expected a head line with columns among {_FIELDS}, "
                    f"{' and '.join(sorted(missing))} missing"
                )
        elif len(row) != len(head):
            yield f"line {line}", _Broken(f"expected {len(head)} columns, got {len(row)}")
        else:
            yield f"line {line}", {name: value for name, value in zip(head, row, strict=True) if value != ""}


# --- one entry ------------------------------------------------------------------------------------------------------


def _entry(path: Path, where: str, value: Any) -> Caption:
    if isinstance(value, _Broken):
        raise DataError(str(value))
    if not isinstance(value, dict):
        raise DataError(f"expected an object with {_FIELDS}, got {type(value).__name__}")
    name, text = value.get("video"), value.get("caption")
    if not isinstance(name, str) or not name:
        raise DataError("no video")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"no caption for {name}")
    video = path.parent / name.replace("\\", "/")
    if not video.is_file():
        raise DataError(f"no such video: {video}")
    start, end = _seconds(value, "start"), _seconds(value, "end")
    if end is not None and end <= (start or 0.0):
        raise DataError(f"expected an end after the start {start or 0.0:g}, got {end:g}")
    label = value.get("label")
    return Caption(
        video=video,
        name=name,
        text=" ".join(text.split()),
        start=start or 0.0,
        end=end,
        label=None if label is None else str(label),
        where=f"{path}: {where}",
    )


def _seconds(value: dict[str, Any], key: str) -> float | None:
    given = value.get(key)
    if given is None:
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(given, bool) or not math.isfinite(number) or number < 0:
        raise DataError(f"expected {key} in seconds, a number of at least 0, got {given!r}")
    return number
