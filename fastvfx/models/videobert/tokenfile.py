"""Features, tree and names of many videos in one file, so that they are looked at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .. import checkpoint as files
from .reader import ReaderConfig, VideoReader

FILES = files.Format("fastvfx.videobert.tokens")


def save_tokens(path: files.PathLike, reader: VideoReader, raw: Mapping[str, Tensor]) -> None:
    """Write the raw units of videos, and the reader with its tree.

    Raises:
        OSError: the file can't be written; an older one is kept.
    """
    tensors = {f"reader.{name}": x for name, x in reader.state_dict().items()}
    tensors |= {f"features.{i}": x for i, x in enumerate(raw.values())}
    FILES.save(path, tensors, {"reader": reader.config.to_dict(), "names": list(raw)})


def load_tokens(path: files.PathLike) -> tuple[VideoReader, dict[str, Tensor]]:
    """The reader, and the raw units of each video by its name.

    Raises:
        CheckpointError: no such file, damaged, or of another kind.
    """
    stored = FILES.load(path)
    try:
        reader = VideoReader(ReaderConfig.from_dict(stored.state["reader"]))
        raw = {name: stored.tensors[f"features.{i}"] for i, name in enumerate(stored.state["names"])}
    except (KeyError, TypeError, ValueError) as error:
        raise files.CheckpointError(f"{path}: {error}") from error
    files.fill(reader, stored.part("reader"), str(path))
    return reader, raw
