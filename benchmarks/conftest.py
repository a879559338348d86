"""``versus``: races a workload and files the result with pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import measure
import pytest
import torch
from harness import Workload


class Replay:
    """A clock that stands still but for what ``advance`` adds.

    pytest-benchmark times one function at a time, a race times several in turns and GPU work by events. So the race
    is run first, and pytest-benchmark then sees its rounds pass on this clock.
    """

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastvfx")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the races are run")
    group.addoption("--budget", type=float, default=10.0, help="seconds of timing per race, after its check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture
def versus(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Workload], dict[str, Any]]:
    """Runs a workload: the check first, and only if it passes the race."""
    device: str = request.config.getoption("--device")
    budget: float = request.config.getoption("--budget")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")

    def run(workload: Workload) -> dict[str, Any]:
        torch.manual_seed(0)
        race = workload.prepare(device=device, small=False)
        errors = race.check()
        times = harness.take_turns(race, device, budget)
        info = harness.verdict(workload, race, times, errors, device)
        benchmark.group = workload.op
        benchmark.extra_info.update(info)
        rounds = iter(times.ours)
        benchmark.pedantic(lambda: CLOCK.advance(next(rounds)), rounds=len(times.ours))
        return info

    return run


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """The file is committed: it names the kind of machine, not the machine."""
    device = config.getoption("--device")
    output_json["machine_info"] = {"machine": measure.device_name(device), "python": measure.platform.python_version()}
    output_json["commit_info"] = {"id": measure.revision()}
    for result in output_json["benchmarks"]:
        result.pop("params", None)  # the workload again, which extra_info tells better
