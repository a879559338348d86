"""Fixtures of every test: poisoned memory, real data, each instruction-set level of this processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastvfx import _ext

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` comes filled with NaN, so that an output a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real captures: ``FASTVFX_DATA``, or ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("FASTVFX_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real captures at {folder}; set FASTVFX_DATA")
    return folder


def isa_levels() -> list[str]:
    if _ext._C is None:
        return []
    best = _ext._C.detected_isa()
    levels = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    return levels[: levels.index(best) + 1] if best in levels else [best]


@pytest.fixture(params=isa_levels())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once at each instruction-set level, through the dispatcher."""
    assert _ext._C is not None
    before = _ext._C.active_isa()
    _ext._C.set_isa(request.param)
    yield request.param
    _ext._C.set_isa(before)


@pytest.fixture
def one_thread_and_many() -> Iterator[list[int]]:
    """Thread counts to compare; torch's own is put back."""
    before = torch.get_num_threads()
    yield [1, 2, 5]
    torch.set_num_threads(before)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and "cuda" in _ext.native_devices else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_report_header() -> str:
    native = "no native module" if _ext._C is None else f"{_ext._C.active_isa()}, CUDA for [{_ext._C.cuda_archs}]"
    return f"fastvfx: {native}; torch {torch.__version__}, {torch.get_num_threads()} threads"
