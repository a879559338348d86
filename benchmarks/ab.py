"""A/B: two revisions of fastvfx on the same workloads, called in alternation; the median of paired ratios.

python benchmarks/ab.py main composite                       # the working tree against main
python benchmarks/ab.py v0.1.0 main composite -k "4M and fwd"
python benchmarks/ab.py HEAD~1 mlp hashgrid --rounds 60

Both are built side by side under build/ab and loaded in a process each. The workloads are those of this checkout, so
that both sides do the same; they call the public functions only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=True).stdout


def is_revision(name: str) -> bool:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def build(tree: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree} does not build:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def tree_of(revision: str | None) -> Path:
    """A built tree of the revision, kept for the next time; ``None`` is the working tree."""
    if revision is None:
        build(REPOSITORY)
        return REPOSITORY
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    tree = REPOSITORY / "build" / "ab" / commit[:12]
    if not (tree / "built").exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.Popen(["git", "-C", REPOSITORY, "archive", commit], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", tree], stdin=archive.stdout, check=True)
        if archive.wait():
            raise SystemExit(f"git archive {revision} failed")
        build(tree)
        (tree / "built").touch()
    return tree


class Worker:
    """A process with one revision loaded; answers one line of JSON per line."""

    def __init__(self, tree: Path, arguments: argparse.Namespace) -> None:
        command = [sys.executable, str(HERE / "ab.py"), "--worker", arguments.base, *arguments.names]
        command += ["--device", arguments.device, "-k", arguments.k]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        if arguments.threads:
            environment["OMP_NUM_THREADS"] = str(arguments.threads)
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, *question: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit code {self.process.wait()}; its message is above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def workloads(names: list[str], words: str) -> list[Any]:
    """Those of the named files whose name holds every word; ``a and b`` is read as ``a b``."""
    found = []
    for name in names:
        found += importlib.import_module(f"bench_{name}").WORKLOADS
    wanted = [w for w in words.split() if w != "and"]
    return [w for w in found if all(word in str(w) for word in wanted)]


def work(arguments: argparse.Namespace) -> None:
    """The worker: prepares workloads and times ours."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what others print does not get between the answers
    sys.path.insert(0, str(HERE))

    import harness
    import measure
    import torch

    def answer(value: Any) -> None:
        os.write(answers, (json.dumps(value) + "\n").encode())

    clock = measure.clock(arguments.device)
    listed = {str(w): w for w in workloads(arguments.names, arguments.k)}
    race: harness.Race | None = None
    for line in sys.stdin:
        verb, value = json.loads(line)
        if verb == "list":
            answer(list(listed))
        elif verb == "prepare":
            torch.manual_seed(0)
            race = listed[value].prepare(device=arguments.device, small=False)
            result = race.ours(0)
            norms = [x.double().norm().item() for x in harness.tensors_of(result)] if result is not None else []
            answer({"norms": norms, "seconds": min(clock(race.ours, i, 1) for i in range(3))})
        else:
            assert race is not None
            race.ours(0)
            answer(clock(race.ours, 1, value))


def race_revisions(name: str, base: Worker, head: Worker, rounds: int) -> str:
    """Times one workload in alternation; returns a row of the table."""
    first, second = base.ask("prepare", name), head.ask("prepare", name)
    differ = max((abs(a / b - 1) for a, b in zip(first["norms"], second["norms"], strict=True) if b), default=0.0)
    if not differ < 1e-2:  # NaN as well
        return f"| {name} | results differ by {differ:.2g}: not timed | | | |"
    calls = max(1, min(1000, round(0.02 / second["seconds"])))
    times: dict[Worker, list[float]] = {base: [], head: []}
    for r in range(rounds):
        for worker in (base, head) if r % 2 else (head, base):
            times[worker].append(worker.ask("time", calls))
            time.sleep(0.002)  # its threads go to sleep before the other's wake
    ratios = sorted(b / h for b, h in zip(times[base], times[head], strict=True))
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else [ratios[0]] * 3
    ms = [statistics.median(times[w]) * 1e3 for w in (base, head)]
    return (
        f"| {name} | {ms[0]:.4g} ms | {ms[1]:.4g} ms "
        f"| **{statistics.median(ratios):.3f}** ({quartiles[0]:.3f} to {quartiles[2]:.3f}) | {rounds} × {calls} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="revision to compare with")
    parser.add_argument("names", nargs="*", help="[HEAD] BENCHMARK...; HEAD is the working tree if it is not given")
    parser.add_argument("-k", default="", help="words that the workload's name must hold")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, help="of each worker; torch's default if not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)

    head = None
    if arguments.names and not (HERE / f"bench_{arguments.names[0]}.py").exists():
        head = arguments.names.pop(0)
    for revision in filter(None, (arguments.base, head)):
        if not is_revision(revision):
            raise SystemExit(f"{revision} is neither a revision nor a benchmark")
    if not arguments.names:
        arguments.names = sorted(f.stem.removeprefix("bench_") for f in HERE.glob("bench_*.py"))
    workers = [Worker(tree_of(revision), arguments) for revision in (arguments.base, head)]
    try:
        names = workers[0].ask("list", "")
        workers[1].ask("list", "")
        print(f"| workload | {arguments.base} | {head or 'working tree'} | ratio (quartiles) | rounds × calls |")
        print("| --- | --- | --- | --- | --- |")
        for name in names:
            print(race_revisions(name, *workers, arguments.rounds), flush=True)
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    main()
