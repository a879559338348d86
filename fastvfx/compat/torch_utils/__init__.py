"""The ``torch_utils`` package of NVlabs' StyleGAN2-ADA and StyleGAN3, without a plugin to build.

Their networks, losses and augmentations run unmodified on it, on CPU and GPU, with every derivative they take:

>>> import fastvfx.compat.torch_utils
>>> fastvfx.compat.torch_utils.install("torch_utils.ops")  # the operators; the rest stays theirs
>>> from training.networks_stylegan3 import Generator

``install("torch_utils")`` replaces ``misc`` and ``persistence`` as well, for network files that were taken out of their
repository.
"""

from __future__ import annotations

from types import ModuleType

from . import misc, ops, persistence

__all__ = ["install", "misc", "ops", "persistence"]


def install(name: str = "torch_utils.ops") -> ModuleType:
    """Serve ``import name`` from here: the operators if ``name`` ends with ``ops``, else all of ``torch_utils``.

    Call it before anything imports the modules it replaces.

    Args:
        name: ``"torch_utils.ops"``, ``"torch_utils"``, or where a project keeps its copy of either, e.g.
            ``"models.stylegan.torch_utils.ops"``.

    Returns:
        The module that was installed.
    """
    import fastvfx.compat.torch_utils as package

    from .._install import install_as

    return install_as(name, ops if name.rpartition(".")[2] == "ops" else package)
