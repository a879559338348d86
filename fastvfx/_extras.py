"""Optional dependencies: imported when they are used, named with the command that brings them when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

# Import names that differ from the name on the package index.
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image"}


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import ``module`` and return it.

    Args:
        module: import name, dotted or not (``"PIL.Image"``).
        extra: the extra of fastvfx that installs it (``"data"``).
        purpose: what it is needed for, in the words of the caller ("reading images").

    Raises:
        ImportError: the module is not installed; the message holds the pip command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        # A broken install (a missing shared library, a missing dependency of its own) is not "not installed".
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] != top:
            raise ImportError(f"fastvfx needs {top} for {purpose}, and importing it failed: {error}") from error
        name = _DISTRIBUTIONS.get(top, top)
        raise ImportError(f"fastvfx needs {name} for {purpose}: pip install 'fastvfx[{extra}]'") from None
