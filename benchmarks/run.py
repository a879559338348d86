"""Runs the benchmarks, writes benchmarks/results/MACHINE/latest.{json,md,png} and prints the table.

python benchmarks/run.py                      # all of them
python benchmarks/run.py composite hashgrid   # bench_composite.py and bench_hashgrid.py
python benchmarks/run.py -k "4M and fwd"      # what pytest's -k selects
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import report

HERE = Path(__file__).parent


def files(names: list[str]) -> list[Path]:
    found = sorted(HERE.glob("bench_*.py"))
    if not names:
        return found
    for name in names:
        if HERE / f"bench_{name}.py" not in found:
            raise SystemExit(f"no benchmark {name!r}; there are {', '.join(f.stem[6:] for f in found)}")
    return [HERE / f"bench_{name}.py" for name in names]


def merged(result: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The new results, and of what was kept for the machine what was not run again."""
    benchmarks = list(result["benchmarks"])
    if before:
        again = {b["fullname"] for b in benchmarks}
        benchmarks += [b for b in before["benchmarks"] if b["fullname"] not in again]
    benchmarks.sort(key=lambda b: b["fullname"].partition("::")[0])  # stable: the order within a file stays
    return result | {"benchmarks": benchmarks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="operators; all if none is named")
    parser.add_argument("-k", default="", help="as pytest's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timing per race")
    parser.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results/MACHINE)")
    args = parser.parse_args()

    out: Path = args.out or HERE / "results" / measure.slug(args.device)
    out.mkdir(parents=True, exist_ok=True)
    latest = out / "latest.json"
    table, failed = "", []
    for file in files(args.names):
        # A process each: what torch.compile, the allocator or a peer leave behind does not reach the next.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [sys.executable, "-m", "pytest", str(file), "-k", args.k, f"--device={args.device}"]
            command += [f"--budget={args.budget}", f"--benchmark-json={path}", "--benchmark-quiet"]
            command += ["-W", "ignore::DeprecationWarning"]
            code = subprocess.run(command, cwd=HERE.parent).returncode
            if code not in (0, 5):  # 5: -k selected nothing here
                failed.append(file.stem)
            if path.exists() and path.stat().st_size:
                before = json.loads(latest.read_text()) if latest.exists() else None
                latest.write_text(json.dumps(merged(json.loads(path.read_text()), before), indent=1) + "\n")
                table = report.report(latest)
    if table:
        print(table)
        print(f"written: {latest}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or not table else 0


if __name__ == "__main__":
    sys.exit(main())
