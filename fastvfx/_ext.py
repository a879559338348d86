"""The compiled extension, if there is one. torch is imported first: its OpenMP runtime is the one that `_C` uses."""

from __future__ import annotations

from types import ModuleType

import torch  # noqa: F401  (before _C, see above)

_C: ModuleType | None
why_missing: str | None

try:
    from . import _C  # type: ignore[attr-defined, no-redef]

    why_missing = None
except ImportError as error:
    _C = None
    why_missing = (
        f"fastvfx._C could not be imported ({error}); build it with `pip install .` from a checkout of fastvfx. "
        "Until then everything runs on the PyTorch reference."
    )

#: Device types that `_C` has kernels for.
native_devices: frozenset[str] = frozenset(() if _C is None else ("cpu", "cuda") if _C.cuda_archs else ("cpu",))
