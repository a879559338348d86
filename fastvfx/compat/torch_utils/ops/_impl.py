"""What ``impl=`` means here."""

from __future__ import annotations

import contextlib
from typing import Any

from ...._backend import backend


def chosen(op: str, impl: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which ``impl="ref"`` runs PyTorch and ``impl="cuda"`` whatever is fastest."""
    if impl not in ("cuda", "ref"):
        raise ValueError(f"fastvfx.compat.torch_utils.ops.{op}: expected impl to be 'cuda' or 'ref', got {impl!r}")
    return backend("reference") if impl == "ref" else contextlib.nullcontext()
