"""Files with the tensors of one network, by their names."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .._extras import require
from .checkpoint import CheckpointError, PathLike

#: Where training scripts keep a network among other things.
_INSIDE = ("state_dict", "model_state", "model")


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one of ``torch.save``. Nothing in it is run.

    Raises:
        CheckpointError: no such file, damaged, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            safetensors = require("safetensors.torch", extra="models", purpose="safetensors files")
            return safetensors.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # safetensors' own class
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    content = next((content[name] for name in _INSIDE if isinstance(content.get(name), dict)), content)
    tensors = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it")
    return tensors
