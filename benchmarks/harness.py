"""Races: our kernel beside its baselines on the same inputs, checked first, then timed in turns.

A benchmark file declares workloads and nothing else::

    def prepare(device, small, samples, direction) -> Race:
        inputs = ...
        return against_torch(ours, reference, inputs, direction=direction, grad=(0, 1), items=samples, ...)

    WORKLOADS = [Workload("composite", "4M samples", "fwd", partial(prepare, samples=1 << 22), target=20), ...]

    @pytest.mark.parametrize("workload", WORKLOADS, ids=str)
    def bench_composite(workload, versus):
        versus(workload)

Each round calls the candidates one after the other, so that whatever slows the machine slows them alike; the verdict is
the median over the rounds of (time of the baseline / time of ours), never a quotient of two separate measurements.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import measure
import torch
from measure import Call
from torch import Tensor

OURS = "fastvfx"
EAGER = "torch eager"
COMPILED = "torch.compile"

#: Relative error that rounding the output alone can cost, by dtype of the output.
ROUNDING = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class CheckFailed(AssertionError):
    """Ours and the oracle disagree: there is no figure for a wrong result."""


@dataclass
class Race:
    """One workload, ready to run."""

    ours: Call
    baselines: dict[str, Call]  #: by name; ``EAGER`` and ``COMPILED`` are those that the target is set against
    check: Callable[[], dict[str, float]]  #: raises CheckFailed, or returns the errors by candidate
    shape: str  #: of the inputs, for the record
    items: int  #: what ns per item and items per second count
    item: str = "item"
    n_bytes: int | None = None  #: fewest bytes that must move: each input read once, each output written once
    flops: int | None = None


@dataclass(frozen=True)
class Workload:
    """What is run: ``prepare(device, small)`` makes the inputs; ``small`` is a shape for tests of the benchmark."""

    op: str
    case: str
    direction: str  #: "fwd", "fwd+bwd" or another word for what is timed
    prepare: Callable[..., Race] = field(compare=False, repr=False)
    target: float | None = None  #: times the best of torch eager and torch.compile that CPU kernels should reach
    peer_targets: dict[str, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.op}-{self.case}-{self.direction}".replace(" ", "_")


def detached(x: Any, requires_grad: bool = False) -> Any:
    return x.detach().clone().requires_grad_(requires_grad) if isinstance(x, Tensor) else x


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a result, one or many, without what is missing or empty."""
    results = [result] if isinstance(result, Tensor) else result
    return [x for x in results if isinstance(x, Tensor) and x.numel()]


def fwd_bwd(function: Callable[..., Any], inputs: Sequence[Any], grad: Sequence[int], seed: int = 0) -> Call:
    """One forward, and one backward too if ``grad`` names inputs; the result is the outputs and then the gradients.

    The incoming gradients are drawn once and are the same for every candidate.
    """
    incoming: list[Tensor] = []

    def call(_: int) -> list[Tensor]:
        if not grad:
            with torch.no_grad():
                return tensors_of(function(*inputs))
        outputs = [x for x in tensors_of(function(*inputs)) if x.requires_grad]
        if not incoming:
            for i, x in enumerate(outputs):
                generator = torch.Generator(device="cpu").manual_seed(seed + i)
                incoming.append(torch.randn(x.shape, generator=generator).to(x.device, x.dtype))
        gradients = torch.autograd.grad(outputs, [inputs[i] for i in grad], incoming)
        return [*(x.detach() for x in outputs), *gradients]

    return call


def error(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """``|got - exact| / |exact|`` for each output; infinite where the shapes differ."""
    errors = []
    for a, b in zip(got, exact, strict=True):
        if a.shape != b.shape:
            errors.append(math.inf)
            continue
        difference = (a.double() - b.double()).norm() / (b.double().norm() + 1e-30)
        errors.append(difference.item())
    return errors


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for fixed shapes. The time it takes to compile is spent before the first round."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def against_torch(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    device: str,
    grad: Sequence[int] = (),
    items: int,
    item: str,
    shape: str,
    n_bytes: int | None = None,
    flops: int | None = None,
    also: dict[str, Callable[..., Any]] | None = None,
    compile: bool = True,
) -> Race:
    """A race of ``ours(*inputs)`` against ``reference(*inputs)``, eager and compiled, and against ``also``.

    Args:
        ours: the public function of fastvfx; returns a tensor or several.
        reference: the same in PyTorch, in any float dtype: its float64 result is the oracle.
        inputs: tensors and whatever else the functions take. Those in ``grad`` get gradients.
        grad: empty for a race of forwards, else indices into ``inputs`` for one of forward plus backward.
        items, item: how many of what are done, for ns per item.
        shape: for the record.
        n_bytes, flops: the least that must be moved and computed.
        also: further baselines by name, with the results of ``reference``.
        compile: whether torch.compile of the reference is a baseline.

    Ours passes if each output's and gradient's error is at most twice that of the reference run in the same dtype,
    plus the rounding of the output; every candidate must be within ten times that, or it is no baseline.
    """
    functions = {OURS: ours, EAGER: reference, **(also or {})}
    if compile:
        functions[COMPILED] = compiled(reference)
    size = sum(x.numel() * x.element_size() for x in inputs if isinstance(x, Tensor))
    sets = [
        [detached(x, i in grad) for i, x in enumerate(inputs)] for _ in range(measure.copies_past_cache(device, size))
    ]

    def rotating(function: Callable[..., Any]) -> Call:
        calls = [fwd_bwd(function, s, grad) for s in sets]
        return lambda i: calls[i % len(calls)](i)

    calls = {name: rotating(f) for name, f in functions.items()}

    def check() -> dict[str, float]:
        def wide(x: Any) -> Any:
            return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

        double = [detached(wide(x), i in grad) for i, x in enumerate(inputs)]
        exact = fwd_bwd(reference, double, grad)(0)
        results: dict[str, list[Tensor]] = {}
        for name, call in calls.items():
            results[name] = call(0)  # type: ignore[assignment]
        torch_errors = error(results[EAGER], exact)
        errors: dict[str, float] = {}
        for name, got in results.items():
            factor = 1 if name == OURS else 10
            each = error(got, exact)
            for i, (e, same) in enumerate(zip(each, torch_errors, strict=True)):
                allowed = factor * (2 * same + ROUNDING[got[i].dtype])
                if not e <= allowed:  # NaN fails too
                    raise CheckFailed(f"{name}: result {i} is off by {e:.3g}, allowed {allowed:.3g}")
            errors[name] = max(each)
        return errors

    baselines = {name: call for name, call in calls.items() if name != OURS}
    return Race(calls[OURS], baselines, check, shape, items, item, n_bytes, flops)


@dataclass
class Times:
    """Seconds per call of every round; ``None`` where a slow candidate sat out."""

    ours: list[float] = field(default_factory=list)
    baselines: dict[str, list[float | None]] = field(default_factory=dict)

    def ratios(self, name: str) -> list[float]:
        return [b / o for o, b in zip(self.ours, self.baselines[name], strict=True) if b is not None]


@dataclass
class Plan:
    """How often each candidate is called: at least ``fewest`` rounds each, then as many as the budget pays for."""

    rounds: int
    calls: dict[str, int]  #: per round
    every: dict[str, int]  #: takes part in every n-th round

    @staticmethod
    def fit(estimates: dict[str, float], budget: float, device: str = "cpu", fewest: int = 5, most: int = 60) -> Plan:
        # Short calls are repeated until the clock and the caches settle; on a GPU no more than can be queued ahead.
        burst, longest = (0.002, 10) if device == "cuda" else (0.02, 1000)
        calls = {name: max(1, min(longest, math.ceil(burst / max(t, 1e-7)))) for name, t in estimates.items()}
        cost = {name: (calls[name] + 1) * t for name, t in estimates.items()}
        rounds = max(fewest, min(most, int(budget / 2 / cost[OURS])))
        share = budget / max(1, len(estimates) - 1)
        every = {name: max(1, math.ceil(rounds / max(fewest, share / c))) for name, c in cost.items()}
        return Plan(rounds, calls, every | {OURS: 1})


def rounds_of(race: Race, plan: Plan, device: str) -> Iterator[tuple[str, int, Callable[[], float]]]:
    """The candidates in the order they are called in: ``(name, round, timed call)``, ours last in each round."""
    clock = measure.clock(device)
    candidates = {**race.baselines, OURS: race.ours}
    for r in range(plan.rounds):
        for name, call in candidates.items():
            if r % plan.every[name]:
                continue

            def timed(name: str = name, call: Call = call, r: int = r) -> float:
                n = plan.calls[name]
                if n > 1 or name == OURS:
                    call(r * n)  # not timed: the others have just emptied the caches
                return clock(call, r * n + 1, n)

            yield name, r, timed


def estimate(race: Race, device: str) -> dict[str, float]:
    """A first time of each candidate, after a call that compiles, allocates and warms up."""
    clock = measure.clock(device)
    estimates = {}
    for name, call in {**race.baselines, OURS: race.ours}.items():
        first = clock(call, 0, 1)
        estimates[name] = min(clock(call, i + 1, 1) for i in range(1 if first > 1 else 2))
    return estimates


def take_turns(race: Race, device: str, budget: float, fewest: int = 5) -> Times:
    """Times every candidate in turns for about ``budget`` seconds."""
    plan = Plan.fit(estimate(race, device), budget, device, fewest)
    times = Times(baselines={name: [] for name in race.baselines})
    gc.collect()
    gc.disable()
    try:
        for name, r, timed in rounds_of(race, plan, device):
            if name == OURS:
                times.ours.append(timed())
            else:
                series = times.baselines[name]
                series += [None] * (r - len(series))
                series.append(timed())
    finally:
        gc.enable()
    for series in times.baselines.values():
        series += [None] * (plan.rounds - len(series))
    return times


def spread(values: Sequence[float]) -> list[float]:
    """First and third quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return [quartiles[0], quartiles[2]]


def verdict(workload: Workload, race: Race, times: Times, errors: dict[str, float], device: str) -> dict[str, Any]:
    """Everything that is kept of a race, as JSON."""
    ours = statistics.median(times.ours)
    baselines = {}
    for name in race.baselines:
        ratios = times.ratios(name)
        baselines[name] = {
            "ms": statistics.median(t for t in times.baselines[name] if t is not None) * 1e3,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": spread(ratios),
            "rounds": len(ratios),
        }
    of_torch = {name: b["ratio"] for name, b in baselines.items() if name in (EAGER, COMPILED)} or {
        name: b["ratio"] for name, b in baselines.items()
    }
    best = min(of_torch, key=lambda name: of_torch[name]) if of_torch else None
    environment = measure.environment(device)
    info: dict[str, Any] = {
        "op": workload.op,
        "case": workload.case,
        "direction": workload.direction,
        "shape": race.shape,
        "ms": ours * 1e3,
        "ms_quartiles": [t * 1e3 for t in spread(times.ours)],
        "rounds": len(times.ours),
        "ns_per_item": ours / race.items * 1e9,
        "item": race.item,
        "baselines": baselines,
        "reference": best,
        "ratio": of_torch[best] if best else None,
        "target": workload.target if device == "cpu" else None,
        "peer_targets": workload.peer_targets if device == "cpu" else {},
        "errors": errors,
        **environment,
    }
    limits = environment["ceilings"]
    if race.n_bytes is not None:
        info["gb_per_s"] = race.n_bytes / ours / 1e9
        info["of_copy_bandwidth"] = info["gb_per_s"] / limits["copy_gb_per_s"]
    if race.flops is not None:
        matmul = next(v for k, v in limits.items() if k.startswith("matmul"))
        info["gflop_per_s"] = race.flops / ours / 1e9
        info["of_matmul"] = info["gflop_per_s"] / 1e3 / matmul
    return info
