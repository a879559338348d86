"""What was built, what will run, and why something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import fastvfx

from .. import _ext
from .._backend import get_backend

# What is needed only for some things: module, extra that brings it, and what for.
_OPTIONAL = [
    ("PIL", "data", "images"),
    ("av", "data", "films, EXR"),
    ("safetensors", "models", "checkpoints"),
    ("rich", "cli", "progress bars"),
    ("tyro", "cli", "the command line"),
]
_DISTRIBUTION = {"PIL": "pillow"}


def info() -> str:
    """The text of ``fastvfx info``."""
    rows = [
        ("fastvfx", f"{fastvfx.__version__} in {os.path.dirname(fastvfx.__file__)}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("backend", f"{get_backend()}: CPU tensors run {_runs('cpu')}, CUDA tensors {_runs('cuda')}"),
        ("CPU kernels", _cpu()),
        ("CUDA kernels", _cuda_kernels()),
        ("CUDA device", _cuda_device()),
        ("Triton", _triton()),
        *((f"{_DISTRIBUTION.get(module, module)}", _optional(module, extra, use)) for module, extra, use in _OPTIONAL),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _runs(device: str) -> str:
    if get_backend() == "reference":
        return "the PyTorch reference, as asked for"
    if device in _ext.native_devices:
        return "natively"
    return "the PyTorch reference" if get_backend() == "auto" else "not at all"


def _cpu() -> str:
    if _ext._C is None:
        return f"none: {_ext.why_missing}"
    active, best = _ext._C.active_isa(), _ext._C.detected_isa()
    forced = os.environ.get("FASTVFX_CPU_ISA")
    if active != best:
        return f"running {active} (FASTVFX_CPU_ISA={forced}); this processor could run {best}"
    tiles = ""
    if _ext._C.detected_amx():
        tiles = "; bfloat16 products in AMX tiles" if _ext._C.active_amx() else "; AMX tiles off (FASTVFX_CPU_AMX=off)"
    return f"running {active}, the best of those built that this processor has{tiles}"


def _cuda_kernels() -> str:
    if _ext._C is None:
        return "none: the native module is missing"
    if not _ext._C.cuda_archs:
        return "not built: no nvcc was found, or FASTVFX_CUDA=off; put nvcc on PATH and `pip install .` again"
    return f"built for {_ext._C.cuda_archs}"


def _cuda_device() -> str:
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "none: torch finds no GPU or no driver"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{name}, compute capability {major}.{minor}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed; it comes with torch for CUDA"
    try:
        return f"{version('triton')}" + ("" if torch.cuda.is_available() else ", without a GPU to run on")
    except PackageNotFoundError:
        return "installed"


def _optional(module: str, extra: str, use: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"missing, for {use}: pip install 'fastvfx[{extra}]'"
    try:
        return version(_DISTRIBUTION.get(module, module))
    except PackageNotFoundError:
        return "installed"
