"""CUDA kernels compile for every architecture that is shipped, with nvcc and without a GPU, and keep their registers.

A register spill is a slow-down that no numeric test sees. What ptxas said is kept in build/ptxas under a hash of all
that it depends on, so that only changed files are compiled again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted((REPOSITORY / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "90a", "120")
# Bytes. At the edge of an occupancy step ptxas parks a few loop invariants rather than take another register.
ALLOWED = 16
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "--threads", "2"]

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on PATH: CUDA kernels are not compiled")


class Kernel(NamedTuple):
    name: str  #: demangled where c++filt is there, as it is with gcc
    arch: str
    spilled: int  #: bytes stored by each thread


def digest(source: Path, version: str) -> str:
    """Of the source, every header that it may include, the compiler and its flags."""
    h = hashlib.sha256(repr((version, FLAGS, ARCHS)).encode())
    headers = [*(REPOSITORY / "csrc").rglob("*.h"), *(REPOSITORY / "csrc").rglob("*.cuh")]
    for file in [source, *sorted(headers)]:
        h.update(file.read_bytes())
    return h.hexdigest()[:20]


def demangle(text: str) -> str:
    if not shutil.which("c++filt"):
        return text
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


@cache
def ptxas(source: Path) -> str:
    """What ptxas says of each kernel of the file, for all architectures."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    kept = REPOSITORY / "build" / "ptxas" / f"{source.stem}-{digest(source, version)}.txt"
    if kept.exists():
        return kept.read_text()
    kept.parent.mkdir(parents=True, exist_ok=True)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
    out = kept.with_suffix(".o")
    command = ["nvcc", *FLAGS, *targets, "-I", str(REPOSITORY / "csrc" / "include"), "-c", str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{source.name} does not compile:\n{done.stdout}{done.stderr}"
    out.unlink()
    kept.write_text(demangle(done.stdout + done.stderr))
    return kept.read_text()


def kernels(source: Path) -> list[Kernel]:
    found = re.findall(
        r"Compiling entry function '([^']*)' for 'sm_(\w+)'.*?(\d+) bytes spill stores",
        ptxas(source),
        re.DOTALL,
    )
    return [Kernel(name, arch, int(stores)) for name, arch, stores in found]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_compiles_for_every_architecture(source: Path) -> None:
    by_arch = {arch: {k.name for k in kernels(source) if k.arch == arch} for arch in ARCHS}
    assert by_arch["80"], f"{source.name} holds no kernel"
    assert by_arch["80"] == by_arch["90a"] == by_arch["120"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_does_not_spill(source: Path, arch: str) -> None:
    """float64 kernels may: they are there for gradcheck, not for speed."""
    spilling = [k for k in kernels(source) if k.arch == arch and k.spilled > ALLOWED and not is_double(k.name)]
    assert not spilling, "\n".join(f"sm_{k.arch} spills {k.spilled} bytes: {k.name}" for k in spilling)


def is_double(kernel: str) -> bool:
    """``foo_kernel<double, ...>``, or mangled ``foo_kernelId...``."""
    return re.search(r"<double\b|kernelId", kernel) is not None
