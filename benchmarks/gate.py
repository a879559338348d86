"""The instruction gate: counts what each CPU kernel executes on a fixed workload and compares it with budgets.json.

python benchmarks/gate.py                  # build the driver, count, compare
python benchmarks/gate.py composite_fwd    # these workloads only
python benchmarks/gate.py --update         # make the counts of now the budgets

Counts do not depend on what else the machine does: they repeat exactly, where wall time varies by a third. They do
depend on the compiler, so that the gate is skipped, and says so, under another one than the budgets were made with.
valgrind knows no AVX-512; what is counted is x86-64-v3. The workloads are in csrc/bench, one file an operator.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
BUDGETS = HERE / "budgets.json"
TOLERANCE = 0.03


def tool(name: str) -> str:
    """The one of this virtual environment, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def build(folder: Path) -> Path:
    """Configures and builds the core with the driver; returns the executable."""
    options = ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DFASTVFX_PYTHON=OFF", "-DFASTVFX_CUDA=off"]
    cmake, quiet = tool("cmake"), {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([cmake, "-S", REPOSITORY, "-B", folder, *options, "-DFASTVFX_BENCH_DRIVER=ON"], **quiet)
    subprocess.run([cmake, "--build", folder, "--target", "fastvfx_driver"], **quiet)
    return folder / "csrc" / "bench" / "fastvfx_driver"


def count(driver: Path, name: str) -> int:
    """Instructions inside the one call that the driver marks, of x86-64-v3 kernels since valgrind hides AVX-512."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--toggle-collect=fastvfx_counted"]
        done = subprocess.run([*command, driver, name, "v3"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"gate: {name} under valgrind: exit {done.returncode}\n{done.stderr}")
        total = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    if not total or not int(total[1]):
        raise RuntimeError(f"gate: valgrind counted nothing for {name}")
    return int(total[1])


def compare(counts: dict[str, int], budgets: dict[str, int]) -> tuple[list[str], bool]:
    """A line for each workload, and whether all are within their budgets."""
    lines, passed = [], True
    for name, n in counts.items():
        budget = budgets.get(name)
        if budget is None:
            verdict, passed = "NO BUDGET: run benchmarks/gate.py --update", False
        else:
            change = n / budget - 1
            verdict = f"{change:+.1%}"
            if change > TOLERANCE:
                verdict, passed = verdict + f"  OVER the {TOLERANCE:.0%} that are allowed", False
            elif change < -TOLERANCE:
                verdict += "  less: --update keeps it so"
        lines.append(f"{name:32} {n:>14,} {verdict}")
    return lines, passed


def without_workload(names: list[str]) -> list[str]:
    """Kernels of kernels.def that no workload is named after; those that only free memory need none."""
    listed = re.findall(r"^FVX_KERNEL\((\w+),", (REPOSITORY / "csrc/cpu/kernels.def").read_text(), re.MULTILINE)
    return [k for k in listed if not k.endswith("_release") and not any(n == k or n.startswith(f"{k}_") for n in names)]


def skipped(why: str) -> int:
    print(f"instruction gate: SKIPPED, {why}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workloads; all if none is named")
    parser.add_argument("--update", action="store_true", help="write the counts to budgets.json")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "core", help="CMake's build folder")
    args = parser.parse_args(arguments)

    if platform.machine() not in ("x86_64", "AMD64"):
        return skipped(f"the budgets are for x86-64, this is {platform.machine()}")
    if not shutil.which("valgrind"):
        return skipped("valgrind is not installed")
    driver = build(args.build)
    compiler, *names = subprocess.run([driver], capture_output=True, text=True, check=True).stdout.splitlines()
    kept: dict[str, Any] = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {"compiler": "", "budgets": {}}
    if compiler != kept["compiler"] and not args.update:
        return skipped(f"the budgets are for {kept['compiler']}, this is {compiler}")
    if unknown := set(args.names) - set(names):
        raise SystemExit(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    wanted = args.names or names
    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(wanted, pool.map(lambda name: count(driver, name), wanted), strict=True))
    lines, passed = compare(counts, kept["budgets"])
    print(f"instructions, x86-64-v3, {compiler}")
    print("\n".join(lines))
    if missing := without_workload(names):
        print(f"NO WORKLOAD in csrc/bench: {', '.join(missing)}")
        passed = False
    if args.update:
        before = kept["budgets"] if compiler == kept["compiler"] else {}
        budgets = {n: c for n, c in sorted({**before, **counts}.items()) if n in names}
        BUDGETS.write_text(json.dumps({"compiler": compiler, "budgets": budgets}, indent=2) + "\n")
        print(f"written: {BUDGETS.relative_to(REPOSITORY)}")
        return 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
