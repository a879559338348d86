"""Clocks, ceilings and the description of the machine."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvfx import _ext

#: Runs once with the number of the round: on a GPU it picks the set of inputs, so that none is still in the cache.
Call = Callable[[int], object]

REPOSITORY = Path(__file__).resolve().parents[1]


def seconds_cpu(call: Call, first: int, calls: int) -> float:
    """Wall time of one call, the mean of ``calls`` in a row."""
    start = time.perf_counter()
    for i in range(calls):
        call(first + i)
    return (time.perf_counter() - start) / calls


def seconds_cuda(call: Call, first: int, calls: int) -> float:
    """Device time of one call. The GPU first sleeps while the host queues the work, so launches do not show."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)  # clock cycles, about 10 ms
    start.record()
    for i in range(calls):
        call(first + i)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def clock(device: str) -> Callable[[Call, int, int], float]:
    return seconds_cuda if device == "cuda" else seconds_cpu


def best_of(device: str, call: Call, rounds: int) -> float:
    call(0)
    return min(clock(device)(call, i, 1) for i in range(rounds))


@functools.cache
def ceilings(device: str) -> dict[str, float]:
    """What the machine can do at most, measured: bytes read and written by a large copy, and a large matrix product.

    Random numbers throughout: zeros make both look faster than real data are.
    """
    n = (1 << 28) if device == "cuda" else (1 << 25)
    source = torch.rand(n, device=device)  # 1 GiB or 128 MiB, past every cache
    target = torch.rand_like(source)
    copy = best_of(device, lambda _: target.copy_(source), 10)
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = best_of(device, lambda _: a @ b, 5)
    return {
        "copy_gb_per_s": 8 * n / copy / 1e9,
        f"matmul_{'bf16' if device == 'cuda' else 'fp32'}_tflop_per_s": 2 * size**3 / product / 1e12,
    }


def copies_past_cache(device: str, n_bytes: int) -> int:
    """How many sets of inputs to rotate through so that none is still in the GPU's L2 when its turn comes."""
    if device != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(16, -(-3 * l2 // max(n_bytes, 1))))


def processor() -> str:
    try:
        name = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    return name[1] if name else platform.processor() or platform.machine()


def allocator() -> str:
    """What serves large tensors: it decides whether a fresh output costs page faults."""
    settings = {k: v for k, v in os.environ.items() if re.match(r"LD_PRELOAD|MALLOC_|GLIBC_TUNABLES|PYTORCH.*ALLOC", k)}
    libraries = re.search(r"(jemalloc|tcmalloc|mimalloc)", settings.get("LD_PRELOAD", ""))
    others = [f"{k}={v}" for k, v in sorted(settings.items()) if k != "LD_PRELOAD"]
    return " ".join([libraries[1] if libraries else "system", *others])


def revision() -> str:
    """The commit of the checkout, ``+`` behind it if files differ from it."""
    try:
        git = ["git", "-C", str(REPOSITORY)]
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def isa() -> str:
    return "none" if _ext._C is None else _ext._C.active_isa()


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{processor()}, {torch.get_num_threads()} threads, {isa()}"


def slug(device: str) -> str:
    """``device_name`` as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def environment(device: str) -> dict[str, Any]:
    """What a figure depends on besides the code that made it."""
    facts: dict[str, Any] = {
        "device": device,
        "machine": device_name(device),
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiler": "none" if _ext._C is None else _ext._C.compiler,
        "allocator": allocator(),
        "revision": revision(),
        "ceilings": ceilings(device),
    }
    if device == "cuda" and _ext._C is not None:
        facts["cuda"] = f"torch's {torch.version.cuda}, kernels by {_ext._C.cuda_compiler} for {_ext._C.cuda_archs}"
    return facts
