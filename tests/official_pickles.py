"""Small networks, and pickles of them in the form of NVIDIA's, by stand-ins for the two modules that theirs name."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastvfx.models import stylegan2, stylegan3
from fastvfx.models.stylegan2 import (
    DiscriminatorConfig,
    GeneratorConfig,
    MappingConfig,
    SynthesisConfig,
)

SMALL = {"channel_base": 64, "channel_max": 8}
CONFIG = GeneratorConfig(8, 0, 12, 16, 3, MappingConfig(num_layers=2), SynthesisConfig(**SMALL))
D_CONFIG = DiscriminatorConfig(0, 16, 3, **SMALL)
CONFIG3 = stylegan3.GeneratorConfig(
    8, 0, 12, 16, 3, MappingConfig(num_layers=2), stylegan3.SynthesisConfig(256, 12, num_layers=4)
)


@pytest.fixture(autouse=True)
def official_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch_utils.persistence`` and ``dnnlib.util`` for the pickler to name. Reading must not need them."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("ran the code of a pickle")

    class EasyDict(dict[str, Any]):
        pass

    for module, thing in {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}.items():
        stand_in = types.ModuleType(module)
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(stand_in, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, module, stand_in)
        package = module.partition(".")[0]
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))


class Official:
    """A module as NVIDIA's persistence pickles it."""

    def __init__(self, module: nn.Module, attributes: dict[str, dict[str, Any]], kwargs: Any = None, path: str = ""):
        self.module, self.attributes, self.kwargs, self.path = module, attributes, kwargs, path

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "training": False,
            "_parameters": OrderedDict(self.module._parameters),
            "_buffers": OrderedDict(self.module._buffers),
            "_non_persistent_buffers_set": set(),
            "_modules": OrderedDict(
                (name, Official(child, self.attributes, None, f"{self.path}.{name}".strip(".")))
                for name, child in self.module.named_children()
            ),
            "_init_kwargs": sys.modules["dnnlib.util"].EasyDict(self.kwargs or {}),
            "size": np.broadcast_to(np.asarray(3), [2]),
            "rate": np.float64(16),
            **self.attributes.get(self.path, {}),
        }
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('ran the code of a pickle')",
            "class_name": type(self.module).__name__,
            "state": state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def official(
    net: nn.Module, attributes: dict[str, dict[str, Any]] | None = None, kwargs: dict[str, Any] | None = None
) -> Official:
    return Official(net, attributes or {}, kwargs)


def dumped(path: Path, content: object, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def images(net: nn.Module) -> Tensor:
    """Some, the same for the same weights."""
    c = torch.eye(4)[:2] if net.c_dim else None
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net(z, c, truncation_psi=0.7, noise_mode="const", force_fp32=True)


def generator(**changes: Any) -> stylegan2.Generator:
    net = stylegan2.Generator(replace(CONFIG, **changes))
    with torch.no_grad():
        for name, x in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith(("bias", "noise_strength", "w_avg")):
                x.add_(0.3 * torch.randn_like(x))
    return net


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call
