"""Weights of BERT in Hugging Face's names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._tensors import read_tensors
from ..checkpoint import CheckpointError
from .config import SpecialIds, VideoBertConfig, VisualConfig
from .model import VideoBert

PathLike = str | os.PathLike[str]

_FILES = ("model.safetensors", "pytorch_model.bin")
_WORDS = "bert.embeddings.word_embeddings.weight"
_WHOLE = {
    "text_embeddings.words.weight": _WORDS,
    "text_embeddings.positions.weight": "bert.embeddings.position_embeddings.weight",
    "text_embeddings.types.weight": "bert.embeddings.token_type_embeddings.weight",
    "text_embeddings.norm": "bert.embeddings.LayerNorm",
    "pooler.dense": "bert.pooler.dense",
    "text_head.transform.dense": "cls.predictions.transform.dense",
    "text_head.transform.norm": "cls.predictions.transform.LayerNorm",
    "text_head.bias": "cls.predictions.bias",
    "alignment_head": "cls.seq_relationship",
}
_LAYER = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.0": "intermediate.dense",
    "feed_forward.2": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class Bert:
    """A BERT on disk: sizes, and tensors by Hugging Face's names."""

    sizes: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path

    def config(self, video: VisualConfig, special: SpecialIds, vocabulary: int) -> VideoBertConfig:
        """A VideoBERT that takes these weights.

        Raises:
            CheckpointError: the vocabulary has fewer pieces than the weights.
        """
        own = self.tensors[_WORDS].shape[0]
        if vocabulary < own:
            raise CheckpointError(
                f"{self.path}: its weights know {own} word pieces, the vocabulary has {vocabulary}: use the vocabulary "
                "that belongs to them"
            )
        return VideoBertConfig(
            vocabulary,
            special,
            video,
            hidden=self.sizes["hidden_size"],
            layers=self.sizes["num_hidden_layers"],
            heads=self.sizes["num_attention_heads"],
            inner=self.sizes["intermediate_size"],
            positions=self.sizes["max_position_embeddings"],
            dropout=self.sizes.get("hidden_dropout_prob", 0.1),
        )


def read_bert(folder: PathLike) -> Bert:
    """Read a folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin`` (nothing in it is run).

    Raises:
        CheckpointError: something is missing, damaged, or no BERT.
    """
    folder = Path(folder)
    try:
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: expected a folder with config.json: {error}") from error
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    if not isinstance(sizes, dict) or sizes.get("model_type", "bert") != "bert" or any(k not in sizes for k in needed):
        raise CheckpointError(f"{folder / 'config.json'}: not of a BERT")
    if sizes.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{folder / 'config.json'}: expected hidden_act gelu, got {sizes['hidden_act']}")
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder}: expected {' or '.join(_FILES)} in it")
    tensors = _named(read_tensors(found[0]))
    if _WORDS not in tensors:
        raise CheckpointError(f"{found[0]}: {_WORDS} is missing: not of a BERT")
    return Bert(sizes, tensors, found[0])


def load_bert(model: VideoBert, bert: Bert) -> tuple[str, ...]:
    """Fill text embeddings, cross encoder and the heads for text and alignment; the rest is left as it is.

    Word pieces that the vocabulary has beyond those of the weights (``[>]``, say) keep the vectors they have.

    Returns:
        Names of parts that the file does not have (heads, in files of models that were fitted to something else).

    Raises:
        CheckpointError: shapes differ, or embeddings or layers are missing.
    """
    state = model.state_dict()
    sources: dict[str, list[str]] = {}
    for ours, theirs in _WHOLE.items():
        for name in _with_suffixes(ours, state):
            sources[name] = [theirs + name[len(ours) :]]
    for i in range(model.config.layers):
        ours, theirs = f"cross_encoder.layers.{i}", f"bert.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            parts = [f"{theirs}.attention.self.{p}.{kind}" for p in ("query", "key", "value")]
            sources[f"{ours}.attention.qkv.{kind}"] = parts
            for a, b in _LAYER.items():
                sources[f"{ours}.{a}.{kind}"] = [f"{theirs}.{b}.{kind}"]
    missing = []
    for ours, names in sources.items():
        if any(name not in bert.tensors for name in names):
            if not ours.startswith(("pooler", "text_head", "alignment_head")):
                raise CheckpointError(f"{bert.path}: {names[0]} is missing")
            missing.append(ours)
            continue
        value = torch.cat([bert.tensors[name] for name in names])
        target = state[ours]
        grows = ours in ("text_embeddings.words.weight", "text_head.bias")
        if value.shape[1:] != target.shape[1:] or (len(value) > len(target) if grows else len(value) != len(target)):
            raise CheckpointError(
                f"{bert.path}: expected {names[0]} of shape {tuple(target.shape)}, got {tuple(value.shape)}"
            )
        target[: len(value)] = value.to(target)
    return tuple(missing)


def _with_suffixes(name: str, state: dict[str, Tensor]) -> list[str]:
    return [name] if name in state else [f"{name}.weight", f"{name}.bias"]


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the names of BertForPreTraining: old files say gamma and beta, bare BertModels leave out ``bert.``."""
    result = {}
    for name, x in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = "bert." + name
        result[name] = x
    return result
