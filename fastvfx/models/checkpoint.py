"""Checkpoints: one safetensors file with everything that training goes on from, replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..data import atomic_write

PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A file that can't be used as a checkpoint of this model. The message names the file and what is wrong."""


@dataclass
class Checkpoint:
    """What a file holds: named tensors, and everything else as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: x for name, x in self.tensors.items() if name.startswith(prefix + ".")}


@dataclass(frozen=True)
class Format:
    """The files of one kind of model.

    Attributes:
        model: its name in the file (``"fastvfx.nerf"``); files of other models are refused.
        version: of what is in them; raised when older files can no longer be read.
    """

    model: str
    version: int = 1

    def save(self, path: PathLike, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the file can't be written (a full disk, say); an older file at ``path`` is kept.
        """
        safetensors = require("safetensors.torch", extra="models", purpose="checkpoints")
        # Shared storage is refused, and a buffer may be a view: every tensor goes in as its own, on the CPU.
        own = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        metadata = {"model": self.model, "version": str(self.version), "state": json.dumps(state)}
        content = safetensors.save(own, metadata=metadata)
        with atomic_write(path) as file:
            file.write(content)

    def load(self, path: PathLike) -> Checkpoint:
        """Read a checkpoint, on the CPU.

        Raises:
            CheckpointError: no such file, damaged, or of another model or version.
        """
        safetensors = require("safetensors", extra="models", purpose="checkpoints")
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("model") != self.model:
                    raise CheckpointError(
                        f"{path}: a checkpoint of {metadata.get('model', 'an unknown program')}, not of {self.model}"
                    )
                if metadata.get("version") != str(self.version):
                    raise CheckpointError(
                        f"{path}: version {metadata.get('version')} of the format, this fastvfx reads version "
                        f"{self.version}"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Checkpoint(tensors, json.loads(metadata["state"]))
        except (safetensors.SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
            raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """``load_state_dict`` with an error of one line."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"{where}: its tensors do not fit the model: {' '.join(lines[1:3])}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, Tensor]:
    """What an optimiser remembers of the parameters of ``module``, as ``parameter.key``."""
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def fill_optimizer(optimizer: torch.optim.Optimizer, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    memory: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        memory.setdefault(owner, {})[key] = value
    for name, parameter in module.named_parameters():
        if name in memory:
            # Adam keeps its step count, for the fused kernel, on the device of the parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in memory[name].items()}
