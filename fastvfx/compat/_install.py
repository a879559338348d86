"""Putting our modules where another library's are looked for."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType


def install_as(name: str, package: ModuleType) -> ModuleType:
    """Make ``import name`` and every ``import name.sub`` give ``package`` and its modules, from now on.

    Modules that were imported from another ``name`` before keep what they have; so install first, import then.
    """
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"fastvfx.compat: expected the dotted name of a module to install as, got {name!r}")
    for stale in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[stale]
    sys.modules[name] = package
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        sys.modules[name + module.name[len(package.__name__) :]] = importlib.import_module(module.name)
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, package)
    return package
