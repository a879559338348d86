"""The benchmarks still run, each workload at a small shape with its check and a few rounds; and they judge right."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
from harness import OURS, CheckFailed, Plan, Race, Times, Workload  # noqa: E402

FILES = sorted(BENCHMARKS.glob("bench_*.py"))


def workloads() -> list[Workload]:
    return [w for file in FILES for w in importlib.import_module(file.stem).WORKLOADS]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes seconds a function: here the eager function stands in for it."""
    monkeypatch.setattr(harness, "compiled", lambda function: function)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing is measured here, and threads that wait for each other on a busy machine are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ceilings", lambda device: {"copy_gb_per_s": 10.0, "matmul_fp32_tflop_per_s": 0.1})


@pytest.mark.parametrize("workload", workloads(), ids=str)
def test_workload_runs_small(workload: Workload) -> None:
    race = workload.prepare(device="cpu", small=True)
    errors = race.check()
    times = harness.take_turns(race, "cpu", budget=0.01, fewest=2)
    info = harness.verdict(workload, race, times, errors, "cpu")
    json.dumps(info)
    assert info["ms"] > 0 and info["ratio"] > 0
    assert report.table([info]).count("\n") == 2


def test_names_of_workloads_differ() -> None:
    names = [str(w) for w in workloads()]
    assert len(set(names)) == len(names)


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def race_of(ours, reference, grad=()) -> Race:
    inputs = [torch.randn(100)]
    return harness.against_torch(
        ours, reference, inputs, device="cpu", grad=grad, items=100, item="number", shape="100"
    )


def test_wrong_result_has_no_figure() -> None:
    with pytest.raises(CheckFailed, match="fastvfx: result 0 is off by"):
        race_of(lambda x: x * x * 1.001, square).check()


def test_wrong_gradient_has_no_figure() -> None:
    """Outputs agree, gradients do not."""
    with pytest.raises(CheckFailed, match="fastvfx: result 1"):
        race_of(lambda x: x * x.detach(), square, grad=(0,)).check()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_never_passes(wrong: float) -> None:
    with pytest.raises(CheckFailed, match="fastvfx"):
        race_of(lambda x: x * x + wrong, square).check()


def test_ratio_is_the_median_of_pairs() -> None:
    """The machine slows to a third halfway: the paired ratio does not see it, a ratio of means would."""
    times = Times([1.0, 1.0, 3.0, 3.0, 3.0], {"a": [5.0, None, 15.0, None, 15.0]})
    assert times.ratios("a") == [5.0, 5.0, 5.0]


def test_slow_candidates_sit_out() -> None:
    plan = Plan.fit({OURS: 0.02, "quick": 0.05, "slow": 2.0}, budget=10)
    assert plan.rounds == 60
    assert plan.every[OURS] == 1
    assert plan.every["slow"] >= 10
    assert plan.rounds / plan.every["slow"] >= 5


def test_short_calls_are_repeated() -> None:
    assert Plan.fit({OURS: 1e-5, "other": 1e-3}, budget=1).calls == {OURS: 1000, "other": 20}


def test_later_runs_replace_their_own_results() -> None:
    def result(*names: str, mark: int) -> dict:
        return {"benchmarks": [{"fullname": n, "mark": mark} for n in names]}

    merged = run.merged(result("a.py::x", "b.py::y", mark=2), result("b.py::y", "c.py::z", mark=1))
    assert [(b["fullname"], b["mark"]) for b in merged["benchmarks"]] == [
        ("a.py::x", 2),
        ("b.py::y", 2),
        ("c.py::z", 1),
    ]
