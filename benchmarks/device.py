"""Builds, tests and benchmarks everything on a machine with a GPU, in one command and without a network.

python benchmarks/device.py                                    # all stages
python benchmarks/device.py --stages build,bench-gpu --budget 2
python benchmarks/device.py --limits build=300,test-gpu=200 --out /tmp/results

Uses the interpreter that it runs under and what is installed there: torch, numpy, pybind11, cmake, ninja, pytest,
pytest-benchmark; pytest-xdist and matplotlib if they are there. The extension is built in place, for this GPU only.
Every stage has a time limit; a stage that fails or runs out of time does not keep the next from running. After each
stage device.json and device.md are written to benchmarks/results/DEVICE (or --out), beside what the benchmarks write.
Without a GPU it says so and runs the stages of the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
NEEDED = ("torch", "numpy", "pybind11", "ninja", "setuptools", "pytest", "pytest_benchmark")


@dataclass
class Stage:
    name: str
    limit: int  #: seconds
    on_gpu: bool = False


#: In this order: what needs the GPU first, should the time be short.
STAGES = [
    Stage("build", 400),
    Stage("test-gpu", 240, on_gpu=True),
    Stage("bench-gpu", 400, on_gpu=True),
    Stage("test-cpu", 400),
    Stage("bench-cpu", 900),
]


def gpu() -> tuple[str, str] | None:
    """Name and compute capability as nvcc spells it, or nothing."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return torch.cuda.get_device_name(0), f"{major}{minor}{'a' if major == 9 else ''}"


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(arch: str | None) -> dict[str, str]:
    settings = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    nvcc = Path("/usr/local/cuda/bin/nvcc")  # where NVIDIA's packages put it, which PATH often leaves out
    if not shutil.which("nvcc") and nvcc.exists():
        settings["PATH"] = f"{nvcc.parent}{os.pathsep}{settings['PATH']}"
    if arch:
        settings |= {"FASTVFX_CUDA": "on", "FASTVFX_CUDA_ARCHS": arch}
    return settings


def command(stage: str, folder: Path, budget: float, words: str) -> list[str]:
    python = [sys.executable]
    if stage == "build":
        return [*python, "setup.py", "build_ext", "--inplace"]
    if stage.startswith("test"):
        # Compiling for other architectures is for machines without a GPU; this one has just built for its own.
        tests = [
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            f"--junitxml={folder / stage}.xml",
            "--ignore=tests/test_cuda_build.py",
        ]
        selected = "cuda" if stage == "test-gpu" else "not cuda"
        workers = min(8, processors()) if importlib.util.find_spec("xdist") else 0
        return [*python, *tests, "-k", selected, *(["-n", str(workers)] if workers > 1 else [])]
    device = "cuda" if stage == "bench-gpu" else "cpu"
    run = ["benchmarks/run.py", "--device", device, "--budget", str(budget), "--out", str(folder / device)]
    return [*python, *run, "-k", words]


def tally(path: Path) -> dict[str, Any] | None:
    """What a junit file says: counts, and the first line of each failure."""
    if not path.exists():
        return None
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        kind = "failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        if bad is not None:
            failures[f"{case.get('classname')}::{case.get('name')}"] = (bad.get("message") or "").split("\n")[0][:300]
    return {**counts, "failures": failures}


def run(stage: Stage, arguments: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Runs a stage for at most its limit; shows its output and keeps the end of it."""
    print(f"\n=== {stage.name}, at most {stage.limit} s: {' '.join(arguments[1:])}", flush=True)
    start, output = time.monotonic(), []
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, env=settings, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def stop(*_: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(stage.limit)
    try:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            output.append(line)
        code = process.wait()
    except BaseException:
        stop()
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = time.monotonic() - start
    timed_out = seconds >= stage.limit
    return {
        "status": "out of time" if timed_out else "passed" if code == 0 else f"failed ({code})",
        "seconds": round(seconds, 1),
        "output": "".join(output)[-3000:] if code else "",
    }


def summary(result: dict[str, Any]) -> str:
    """device.md."""
    lines = [f"# {result['device']}", "", *(f"- {k}: {v}" for k, v in result["software"].items()), ""]
    lines += ["| stage | result | seconds | tests |", "| --- | --- | --- | --- |"]
    for name, stage in result["stages"].items():
        tests = stage.get("tests")
        counts = ", ".join(f"{tests[k]} {k}" for k in ("passed", "failed", "skipped")) if tests else ""
        lines.append(f"| {name} | {stage['status']} | {stage.get('seconds', '')} | {counts} |")
    for name, stage in result["stages"].items():
        for test, message in (stage.get("tests") or {"failures": {}})["failures"].items():
            lines.append(f"- {name}: `{test}`: {message}")
    for name, text in result["tables"].items():
        lines += ["", f"## {name}", "", text.strip()]
    return "\n".join(lines) + "\n"


def software(name: str | None) -> dict[str, str]:
    import torch

    facts = {"python": sys.version.split()[0], "torch": torch.__version__, "processors": str(processors())}
    facts["gpu"] = name or "none: the stages of the GPU are left out"
    facts["triton"] = "present" if importlib.util.find_spec("triton") else "missing"
    settings = environment(None)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        nvcc = shutil.which("nvcc", path=settings["PATH"]) or "nvcc"
        out = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True, env=settings).stdout
        facts["nvcc"] = (re.search(r"release ([\d.]+)", out) or ["", "?"])[1]
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [s.name for s in STAGES]
    parser.add_argument("--stages", default=",".join(names), help="comma-separated; default %(default)s")
    parser.add_argument("--limits", default="", help="seconds for a stage, as in build=300,bench-gpu=200")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of timing per benchmark")
    parser.add_argument("-k", default="", help="which benchmarks, as pytest's -k")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()

    limits = dict(item.split("=") for item in arguments.limits.split(",") if item)
    wanted = arguments.stages.split(",")
    if unknown := (set(wanted) | set(limits)) - set(names):
        raise SystemExit(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    missing = [m for m in NEEDED if not importlib.util.find_spec(m)]
    missing += [] if shutil.which("cmake") else ["cmake"]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}")

    card = gpu()
    name = card[0] if card else f"CPU only, {processors()} processors"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder: Path = (arguments.out or HERE / "results" / slug).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"device": name, "software": software(card and card[0]), "stages": {}, "tables": {}}
    print(f"{name}; {result['software']}")
    if not card:
        print("No GPU: only the stages of the CPU are run.")
    settings = environment(card and card[1])

    for stage in STAGES:
        if stage.name not in wanted:
            continue
        stage.limit = int(limits.get(stage.name, stage.limit))
        if stage.on_gpu and not card:
            result["stages"][stage.name] = {"status": "left out: no GPU"}
        else:
            outcome = run(stage, command(stage.name, folder, arguments.budget, arguments.k), settings)
            junit = folder / f"{stage.name}.xml"
            if stage.name.startswith("test"):
                outcome["tests"] = tally(junit)
                junit.unlink(missing_ok=True)
            elif stage.name.startswith("bench"):
                flatten(folder, "cuda" if stage.on_gpu else "cpu", result)
            result["stages"][stage.name] = outcome
        (folder / "device.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "device.md").write_text(summary(result))
    print("\n" + summary(result))
    print(f"written: {folder}")
    passed = all(s["status"] == "passed" or s["status"].startswith("left out") for s in result["stages"].values())
    return 0 if passed else 1


def flatten(folder: Path, device: str, result: dict[str, Any]) -> None:
    """Brings cuda/latest.json up to cuda.json, and keeps its table."""
    for file in sorted((folder / device).glob("latest.*")):
        file.replace(folder / f"{device}{file.suffix}")
    shutil.rmtree(folder / device, ignore_errors=True)
    table = folder / f"{device}.md"
    if table.exists():
        result["tables"][device] = table.read_text()


if __name__ == "__main__":
    sys.exit(main())
