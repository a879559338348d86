"""Where photographs come from: a folder, or a zip; and what is known about their classes."""

from __future__ import annotations

import json
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_LABELS = "dataset.json"
_LARGEST = 1 << 30  # bytes of one unpacked file; more is an attack or a mistake
_MOST_CLASSES = 1 << 16


class Folder:
    """Every image below a folder, by its path relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.names = sorted(p.as_posix() for p in files if not _is_hidden(p.as_posix()) and (path / p).is_file())
        self.has_labels = (path / _LABELS).is_file()

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(name)}: {error.strerror or error}") from error

    def where(self, name: str) -> str:
        """The file as a message names it."""
        return str(self.path / name)


class Zip:
    """Every image in a zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(f"{path}: damaged, or no zip file ({error})") from error
        entries = [i.filename for i in self._file.infolist() if not i.is_dir()]
        self.names = sorted(n for n in entries if PurePosixPath(n).suffix.lower() in SUFFIXES and not _is_hidden(n))
        self.has_labels = _LABELS in entries
        self._lock = threading.Lock()  # entries share one file position

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                if self._file.getinfo(name).file_size > _LARGEST:
                    raise DataError(f"{self.where(name)}: more than {_LARGEST >> 20} MiB unpacked")
                return self._file.read(name)
        # RuntimeError: it is encrypted.
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.where(name)}: can't be unpacked: {error}") from error

    def where(self, name: str) -> str:
        """The file as a message names it."""
        return f"{self.path}/{name}"


Source = Folder | Zip


def open_source(path: Path) -> Source:
    """The images at ``path``.

    Raises:
        DataError: nothing there, no zip, or no images in it.
    """
    if path.is_dir():
        source: Source = Folder(path)
    elif path.is_file():
        source = Zip(path)
    else:
        raise DataError(f"{path}: no such folder or zip file")
    if not source.names:
        raise DataError(f"{path}: no images in it, expected {', '.join(SUFFIXES)}")
    return source


class Labels(NamedTuple):
    """What is known about the class of each image.

    Attributes:
        values: (N, label_dim) float32, one-hot where the labels are classes.
        names: of the classes, if there are any.
    """

    values: np.ndarray
    names: tuple[str, ...]


def read_labels(source: Source) -> Labels:
    """Labels of ``source.names``: those of dataset.json (StyleGAN's format), else the names of the folders.

    Raises:
        DataError: neither, or labels that contradict each other.
    """
    return _from_json(source) if source.has_labels else _from_folders(source)


def _from_json(source: Source) -> Labels:
    where = source.where(_LABELS)
    try:
        entries: Any = json.loads(source.read(_LABELS))["labels"]
        if entries is None:
            raise DataError(f"{where}: its labels are null, so there is nothing to condition on")
        table = {str(name).replace("\\", "/"): label for name, label in entries}
        labels = [table.get(name) for name in source.names]
        missing = [name for name, label in zip(source.names, labels, strict=True) if label is None]
        if missing:
            raise DataError(f"{where}: no label for {missing[0]} and {len(missing) - 1} others")
        values = np.asarray(labels)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f'{where}: expected {{"labels": [["name", label], ...]}} ({error})') from error
    if values.ndim == 1 and values.dtype.kind in "iu" and values.min() >= 0 and values.max() < _MOST_CLASSES:
        return _one_hot(values, tuple(str(i) for i in range(int(values.max()) + 1)))
    if values.ndim == 2 and values.dtype.kind in "iuf" and np.isfinite(values).all():
        return Labels(values.astype(np.float32), ())
    raise DataError(f"{where}: expected labels that are all classes 0, 1, ... or all vectors of one length")


def _from_folders(source: Source) -> Labels:
    parts = [PurePosixPath(name).parts for name in source.names]
    depth = 0  # of the first folders that differ: a zip often holds everything in one folder
    while all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
        depth += 1
    if any(len(p) < depth + 2 for p in parts):
        raise DataError(f"{source.path}: no classes: expected {_LABELS}, or every image in the folder of its class")
    names = tuple(sorted({p[depth] for p in parts}))
    return _one_hot(np.array([names.index(p[depth]) for p in parts]), names)


def _one_hot(classes: np.ndarray, names: Sequence[str]) -> Labels:
    return Labels(np.eye(len(names), dtype=np.float32)[classes], tuple(names))


def _is_hidden(name: str) -> bool:
    """Thumbnails, resource forks and the like, which operating systems leave behind."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
