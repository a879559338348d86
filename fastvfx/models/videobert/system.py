"""Everything that makes words of a video file, in one place and in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...data import DataError
from .. import checkpoint as files
from .batches import Batch, BatchConfig, Batches
from .config import DecoderConfig, VideoBertConfig
from .finetune import Captioner, Classifier
from .library import Library, single
from .model import VideoBert
from .reader import ReaderConfig, VideoReader
from .text import Vocabulary

FILES = files.Format("fastvfx.videobert")

Kind = Literal["pretrained", "classifier", "captioner"]


@dataclass
class System:
    """A network with the way from files to it and the words behind it.

    Attributes:
        network: a :class:`VideoBert`, a :class:`Classifier` or a :class:`Captioner`.
        reader: of videos.
        vocabulary: of sentences.
        batch: how long texts and videos may be.
        labels: names of the classes, of a classifier.
    """

    network: VideoBert | Classifier | Captioner
    reader: VideoReader
    vocabulary: Vocabulary
    batch: BatchConfig
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the network is."""
        if isinstance(self.network, VideoBert):
            return "pretrained"
        return "classifier" if isinstance(self.network, Classifier) else "captioner"

    @property
    def encoder(self) -> VideoBert:
        """The VideoBERT in it."""
        return self.network if isinstance(self.network, VideoBert) else self.network.encoder

    def read(self, path: files.PathLike, start: float = 0.0, end: float | None = None) -> Batch:
        """A part of a video file, in seconds, as a batch of one.

        Raises:
            DataError: it can't be read.
        """
        return self.batch_of(self.library(path, start, end))

    def library(self, path: files.PathLike, start: float = 0.0, end: float | None = None) -> Library:
        """:meth:`read`, before frames are chosen: a library of one video."""
        return single(str(path), self.reader.finish(self.reader.raw(Path(path), start, end)))

    def batch_of(self, library: Library) -> Batch:
        """The segments of a library as they are, where the network is."""
        batches = Batches(library, self.vocabulary, self.encoder.config.video, self.batch)
        return batches.whole(library.segments).to(next(self.network.parameters()).device)

    @torch.no_grad()
    def captions(self, batch: Batch, beams: int = 1) -> list[str]:
        """What a captioner writes about each video."""
        if not isinstance(self.network, Captioner):
            raise TypeError(f"fastvfx.models.videobert.System.captions: expected a captioner, got a {self.kind} one")
        self.network.eval()
        written = self.network.write(batch.video, batch.video_there, beams=beams)
        return [self.vocabulary.decode(ids) for ids in written]

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """What a classifier says of each video, (B, n_classes)."""
        if not isinstance(self.network, Classifier):
            raise TypeError(
                f"fastvfx.models.videobert.System.probabilities: expected a classifier, got a {self.kind} one"
            )
        self.network.eval()
        return self.network(batch.video, batch.video_there).softmax(-1)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, with :meth:`state`."""
        parts: dict[str, nn.Module] = {"network": self.network, "reader": self.reader}
        return {f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """For JSON."""
        state: dict[str, Any] = {
            "kind": self.kind,
            "config": self.encoder.config.to_dict(),
            "reader": self.reader.config.to_dict(),
            "batch": self.batch.to_dict(),
            "vocabulary": self.vocabulary.to_json(),
            "labels": list(self.labels),
        }
        if isinstance(self.network, Captioner):
            state["decoder"] = self.network.config.to_dict()
        return state


def load_system(path: files.PathLike, device: torch.device | str = "cpu") -> System:
    """What a checkpoint holds, ready to be used.

    Raises:
        CheckpointError: no such file, damaged, or of another model.
    """
    return system_of(FILES.load(path), path, device)


def system_of(stored: files.Checkpoint, path: files.PathLike, device: torch.device | str = "cpu") -> System:
    """:func:`load_system` of a file that was read."""
    state = stored.state
    try:
        reader = VideoReader(ReaderConfig.from_dict(state["reader"]))
        encoder = VideoBert(VideoBertConfig.from_dict(state["config"]))
        network: VideoBert | Classifier | Captioner = encoder
        if state["kind"] == "classifier":
            network = Classifier(encoder, len(state["labels"]))
        elif state["kind"] == "captioner":
            network = Captioner(encoder, DecoderConfig.from_dict(state["decoder"]))
        vocabulary = Vocabulary.from_json(state["vocabulary"])
        batch, labels = BatchConfig.from_dict(state["batch"]), tuple(state["labels"])
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise files.CheckpointError(f"{path}: {error}") from error
    files.fill(network, stored.part("network"), str(path))
    files.fill(reader, stored.part("reader"), str(path))
    return System(network.to(device).eval(), reader, vocabulary, batch, labels)
