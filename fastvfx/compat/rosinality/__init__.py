"""The ``op`` package of rosinality's stylegan2-pytorch, without a plugin to build.

>>> import fastvfx.compat.rosinality
>>> fastvfx.compat.rosinality.install("op")
>>> from model import Generator  # theirs, unmodified
"""

from __future__ import annotations

from types import ModuleType

from . import conv2d_gradfix
from .fused_act import FusedLeakyReLU, fused_leaky_relu
from .upfirdn2d import upfirdn2d

__all__ = ["FusedLeakyReLU", "conv2d_gradfix", "fused_leaky_relu", "install", "upfirdn2d"]


def install(name: str = "op") -> ModuleType:
    """Serve ``import name`` and its modules from here. Call it before anything imports them.

    Args:
        name: where the project looks for the package.

    Returns:
        The module that was installed.
    """
    import fastvfx.compat.rosinality as package

    from .._install import install_as

    return install_as(name, package)
