"""Files with weights of generators and discriminators, of whatever kind: what networks are in them."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from . import _unpickle
from .checkpoint import CheckpointError, PathLike, fill

#: How files call the averaged generator, the generator and the discriminator.
_NAMES = {
    "G_ema": ("G_ema", "g_ema", "ema", "Gs"),
    "G": ("G", "g", "generator"),
    "D": ("D", "d", "discriminator"),
}
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save began with before it wrote zips


@dataclass
class Stored:
    """A network in a file.

    Attributes:
        tensors: its state, by the names in the file.
        attributes: plain values of it and of its submodules by dotted names, where the file has them.
        init_kwargs: what it was constructed with, where the file has that.
    """

    tensors: dict[str, Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    init_kwargs: dict[str, Any] = field(default_factory=dict)


def read(path: PathLike) -> dict[str, Stored]:
    """All networks in a file, called ``"G_ema"``, ``"G"`` and ``"D"``; one without a name is called ``""``.

    Pickles of NVIDIA's networks (of TensorFlow's time, too), files of ``torch.save`` with dictionaries of tensors
    (rosinality's among them), and safetensors, told apart by what is in them. Nothing in a file is executed.

    Raises:
        CheckpointError: no such file, damaged, of another kind, or a pickle that asks for more than a network needs.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_TORCH))
            if zipfile.is_zipfile(path) or start == _LEGACY_TORCH:
                content = _load_torch(path)
            elif start[8:9] == b"{":
                content = _load_safetensors(path)
            else:
                file.seek(0)
                content = _unpickle.load(file)
    except (pickle.UnpicklingError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not a file of networks that can be read: {reason}") from error
    networks = _networks(content)
    if not networks:
        raise CheckpointError(f"{path}: no networks in it")
    return networks


def choose(networks: dict[str, Stored], wanted: str, path: PathLike) -> Stored:
    """One of :func:`read`'s.

    Raises:
        CheckpointError: it is not there.
    """
    for name in (wanted, ""):
        if name in networks:
            return networks[name]
    raise CheckpointError(f"{path}: expected a network called {wanted} in it, got {', '.join(sorted(networks))}")


def filled(network: nn.Module, tensors: dict[str, Tensor], path: PathLike) -> None:
    """Load a state, strictly, and switch to evaluation.

    Raises:
        CheckpointError: it does not fit.
    """
    fill(network, tensors, str(path))
    network.eval()


def _load_torch(path: Path) -> Any:
    # Training scripts store their options as a Namespace, which runs nothing when it is made.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Tensors, those whose names start with a network's in a dictionary for each."""
    safetensors = require("safetensors.torch", extra="models", purpose="safetensors files")
    try:
        flat = safetensors.load_file(path)
    except Exception as error:  # the exception's class is safetensors'
        raise OSError(str(error)) from error
    known = {alias for aliases in _NAMES.values() for alias in aliases}
    result: dict[str, Any] = {}
    for name, x in flat.items():
        first, _, rest = name.partition(".")
        if first in known and rest:
            result.setdefault(first, {})[rest] = x
        else:
            result[name] = x
    return result


def _networks(content: Any) -> dict[str, Stored]:
    if isinstance(content, _unpickle.PickledModule):
        return {"": _stored(content)}
    if isinstance(content, tuple) and len(content) == 3:  # the TensorFlow releases have no names
        content = dict(zip(("G", "D", "G_ema"), content, strict=True))
    if not isinstance(content, dict):
        return {}
    found = {}
    for name, aliases in _NAMES.items():
        for alias in aliases:
            network = content.get(alias)
            if isinstance(network, _unpickle.PickledModule | _unpickle.TfNetwork | dict):
                found[name] = _stored(network)
                break
    average = content.get("latent_avg")  # rosinality keeps it beside the networks
    for name in ("G_ema", "G"):
        if isinstance(average, Tensor) and name in found:
            found[name].tensors["latent_avg"] = average
    if not found:
        state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
        unnamed = _stored(state)
        found = {"": unnamed} if unnamed.tensors else {}
    return found


def _stored(network: _unpickle.PickledModule | _unpickle.TfNetwork | dict[str, Any]) -> Stored:
    if isinstance(network, dict):
        return Stored({name: x for name, x in network.items() if isinstance(x, Tensor)})
    if isinstance(network, _unpickle.TfNetwork):
        return Stored(network.tensors, init_kwargs=network.options)
    return Stored(network.tensors(), network.attributes(), network.init_kwargs)
