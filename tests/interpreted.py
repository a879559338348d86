"""Triton kernels without a GPU: a test file that runs as a script, in a process whose Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor


def results_of(file: str, folder: Path) -> dict[str, list[Tensor]]:
    """What ``file``, run as a script, saves at the path that it is given.

    The interpreter has to be chosen before Triton is imported, hence the process.
    """
    releases = [tuple(int(n) for n in version(name).split(".")[:2]) for name in ("triton", "numpy")]
    if releases[0] < (3, 6) and releases[1] >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.6 fails with NumPy from 2.4 on; kernels on a GPU do not")
    path = folder / "results.pt"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    child = subprocess.run([sys.executable, file, str(path)], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return torch.load(path)
