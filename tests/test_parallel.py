"""Attention over two processes: equal to one, gradients included; whatever does not fit raises in both, soon."""

from __future__ import annotations

import contextlib
import datetime
import socket
import time
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from oracle import assert_as_good_as_torch

import fastvfx
from fastvfx import parallel
from fastvfx.parallel.part import Part, needed
from fastvfx.patterns import Blocks, CausalTime, Divided, Full, Neighborhood, PerHead, ShiftedWindows, SlidingTile

WORLD = 2
T, H, W, HEADS, KV_HEADS, DIM, DIM_V = 7, 2, 3, 4, 2, 4, 6
SPLITS = [(4, 3), (1, 6)]

PATTERNS = {
    "full": Full(),
    "neighborhood": Neighborhood((3, 1, 3)),
    "strided, dilated": Neighborhood((2, 2, 1), (2, 1, 1), (3, 1, 1)),
    "causal neighborhood": Neighborhood((3, 2, 2), 1, (2, 1, 1), (True, False, False)),
    "windows": ShiftedWindows((3, 2, 2), (1, 0, 1)),
    "tiles": SlidingTile((2, 2, 3), (3, 1, 1)),
    "causal": CausalTime(chunk=2),
    "causal with a sink": CausalTime(local=2, sink=1),
    "divided": Divided("time"),
    "space": Divided("space"),
    "per head": PerHead([Divided("space"), Neighborhood((3, 1, 1), 1, (2, 1, 1)), CausalTime(), Full()]),
    "both": Neighborhood((5, 2, 2)) & CausalTime(),
}

DILATED = ("strided, dilated", "causal neighborhood", "per head")  # in time


def tensors(pattern, everything):
    """Inputs of one process with the whole video; the same in every process."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    n = T * H * W
    inputs = {
        "q": normal(2, T, H, W, HEADS, DIM),
        "k": normal(2, T, H, W, KV_HEADS, DIM),
        "v": normal(2, T, H, W, KV_HEADS, DIM_V),
    }
    if everything:
        reach = [max(r) for r in zip(*(s.reach for s in pattern.spans((T, H, W), n_heads=HEADS)), strict=True)]
        inputs |= {
            "bias": normal(1, HEADS, n, n),
            "relative_bias": normal(HEADS, *(2 * r + 1 for r in reach)),
            "extra_k": normal(2, 3, KV_HEADS, DIM),
            "extra_v": normal(2, 3, KV_HEADS, DIM_V),
            "kv_mask": torch.rand(2, n, generator=random) > 0.2,
            "extra_mask": torch.rand(2, 3, generator=random) > 0.2,
            "rotary": torch.nn.functional.normalize(normal(n, DIM // 2, 2), dim=-1),
        }
    return inputs


def mine(inputs, frames):
    """This process' part of the inputs."""
    tokens = slice(frames.start * H * W, frames.stop * H * W)
    cut = {"q": (1, frames), "k": (1, frames), "v": (1, frames), "bias": (2, tokens), "kv_mask": (1, tokens)}
    return {
        name: x[(slice(None),) * cut[name][0] + (cut[name][1],)] if name in cut else x for name, x in inputs.items()
    }


def results(function, pattern, inputs, weight, weight_lse, **options):
    """Output, log-sum-exp and gradients by name."""
    inputs = {n: x.clone().requires_grad_(x.is_floating_point() and n != "rotary") for n, x in inputs.items()}
    q, k, v = (inputs.pop(n) for n in "qkv")
    out, lse = function(q, k, v, pattern, return_lse=True, softcap=3.0, scale=0.4, **inputs, **options)
    named = {"q": q, "k": k, "v": v} | {n: x for n, x in inputs.items() if x.requires_grad}
    seen = torch.where(lse.isneginf(), 0, lse)
    grads = torch.autograd.grad(
        (out * weight).sum() + (seen * weight_lse).sum(), list(named.values()), allow_unused=True
    )
    return out.detach(), lse.detach(), dict(zip(named, grads, strict=True))


def equals_one_process(pattern, everything, split, method):
    rank = dist.get_rank()
    frames = slice(0, split[0]) if rank == 0 else slice(split[0], T)
    tokens = slice(frames.start * H * W, frames.stop * H * W)
    inputs = tensors(pattern, everything)
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(2, T, H, W, HEADS, DIM_V, dtype=torch.float64, generator=random)
    weight_lse = torch.randn(2, HEADS, T * H * W, dtype=torch.float64, generator=random)
    whole = results(fastvfx.spatiotemporal_attention, pattern, inputs, weight, weight_lse)
    part = results(
        parallel.spatiotemporal_attention, pattern, mine(inputs, frames), weight[:, frames], weight_lse[..., tokens],
        method=method,
    )  # fmt: skip
    torch.testing.assert_close(part[0], whole[0][:, frames])
    torch.testing.assert_close(part[1], whole[1][..., tokens])
    expected = mine(whole[2], frames)
    for name, grad in part[2].items():
        if name in ("relative_bias", "extra_k", "extra_v"):  # each has its share of what all have
            dist.all_reduce(grad)
        torch.testing.assert_close(grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def refused(message, error=ValueError, **change):
    """Both processes raise, soon; ``change`` is what rank 1 does differently."""
    generous = {"pattern": Full(), "kwargs": {}, "q": torch.ones(1, 2, 1, 1, 4, 4), "k": None, "both": False}
    generous |= change if dist.get_rank() == 1 or change.get("both") else {}
    q = generous["q"]
    k = q if generous["k"] is None else generous["k"]
    begin = time.monotonic()
    with pytest.raises(error if dist.get_rank() == 1 or change.get("both") else ValueError, match=message):
        parallel.spatiotemporal_attention(q, k, k, generous["pattern"], **generous["kwargs"])
    assert time.monotonic() - begin < 60  # the timeout of the group is longer


def heads_are_differentiated_twice():
    rank = dist.get_rank()
    q, k, v = (torch.randn(1, 2, 1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for x in (q, k, v):
        dist.broadcast(x.detach(), 0)
    whole = fastvfx.spatiotemporal_attention(q, k, v)
    expected = torch.autograd.grad(whole.square().sum(), q, create_graph=True)[0].square().sum()
    expected = torch.autograd.grad(expected, (q, k, v))
    part = [x[:, rank : rank + 1] for x in (q, k, v)]
    out = parallel.spatiotemporal_attention(*part, method="heads")
    (g,) = torch.autograd.grad(out.square().sum(), part[0], create_graph=True)
    for got, want in zip(torch.autograd.grad(g.square().sum(), part), expected, strict=True):
        torch.testing.assert_close(got, want[:, rank : rank + 1])


def lower_precision():
    inputs = {n: x.bfloat16() for n, x in tensors(Full(), False).items()}
    part = mine(inputs, parallel.share(T))
    exact, same = (
        fastvfx.spatiotemporal_attention(*(x.to(d) for x in inputs.values()))[:, parallel.share(T)]
        for d in (torch.float64, torch.bfloat16)
    )
    for method in ("ring", "heads"):
        out = parallel.spatiotemporal_attention(*part.values(), method=method)
        assert out.dtype is torch.bfloat16
        assert_as_good_as_torch(out, same, exact, method)


def dropout_of_each_process():
    """Other weights are dropped than in one process, as many, and the kept ones grow as they do there."""
    q = torch.zeros(1, 8, 4, 4, 2, 4)
    v = torch.ones(1, 8, 4, 4, 2, 4)
    for method in ("ring", "heads"):
        a, b, c = (parallel.spatiotemporal_attention(q, q, v, dropout=0.5, seed=s, method=method) for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert abs(a.mean() - 1) < 0.05


def shares():
    assert [parallel.share(T), parallel.share(2)][dist.get_rank() == 0].stop > 0
    assert (parallel.share(T).start, parallel.share(T).stop) == ((0, 3), (3, 7))[dist.get_rank()]
    with pytest.raises(ValueError, match="a frame for each of 2 processes, got 1"):
        parallel.share(1)


def halves():
    """A group that is smaller than all processes."""
    alone = [dist.new_group([rank]) for rank in range(WORLD)]
    own, other = alone[dist.get_rank()], alone[1 - dist.get_rank()]
    x = torch.randn(1, 3, 2, 2, 2, 4)
    torch.testing.assert_close(
        parallel.spatiotemporal_attention(x, x, x, CausalTime(), group=own),
        fastvfx.spatiotemporal_attention(x, x, x, CausalTime()),
    )
    with pytest.raises(ValueError, match="got a group without it"):
        parallel.spatiotemporal_attention(x, x, x, group=other)


def no_frame_too_many():
    """What travels is what the pattern needs."""
    from fastvfx.parallel.exchange import Ranks

    sent = []
    post = Ranks.post

    def spy(self, sends, receives):
        sends = list(sends)
        sent.extend(x.shape[1] for _, x in sends)
        return post(self, sends, receives)

    x = torch.randn(1, 5, 2, 2, 2, 4)
    Ranks.post = spy
    try:
        parallel.spatiotemporal_attention(x, x, x, Neighborhood((5, 1, 1)))
        near = sent.copy()
        sent.clear()
        parallel.spatiotemporal_attention(x, x, x, CausalTime())
    finally:
        Ranks.post = post
    assert near == [2, 2]  # two frames of keys and of values
    assert sent == [[5, 5], []][dist.get_rank()]  # the first process needs nothing of the second


X = torch.ones(1, 2, 1, 1, 4, 4)
CASES = {
    f"{method}, {name}, {'everything' if everything else 'plain'}, {split}": (
        equals_one_process, pattern, everything, split, method,
    )
    for method in ("ring", "heads")
    for index, (name, pattern) in enumerate(PATTERNS.items())
    for everything, split in [(False, SPLITS[index % 2]), (True, SPLITS[1 - index % 2])]
    if not (method == "ring" and everything and name in DILATED)  # see "relative bias, dilated"
}  # fmt: skip
CASES |= {
    "blocks": (
        equals_one_process,
        Blocks((2, 2, 2), torch.tensor([[0, 3], [1, 2], [2, -1], [5, 0], [4, 1], [7, 5], [6, 0], [3, 7]])[None, None]),
        False,
        (4, 3),
        "heads",
    ),
    "second derivative": (heads_are_differentiated_twice,),
    "bfloat16": (lower_precision,),
    "dropout": (dropout_of_each_process,),
    "share": (shares,),
    "groups": (halves,),
    "halo": (no_frame_too_many,),
}


def refusal(message, error=ValueError, **change):
    def call():
        refused(message, error, **change)

    return (call,)


CASES |= {
    "head dims differ": refusal(r"expected the same in every process", q=torch.ones(1, 2, 1, 1, 4, 8)),
    "space differs": refusal(r"expected the same in every process", q=torch.ones(1, 2, 1, 2, 4, 4)),
    "dtypes differ": refusal(r"got q float", q=X.double()),
    "patterns differ": refusal(r"got pattern (Full|CausalTime)", pattern=CausalTime()),
    "methods differ": refusal(r"got method (ring|heads)", kwargs={"method": "heads"}),
    "gradients differ": refusal(r"got q float32 .*gradient", q=X.clone().requires_grad_()),
    "one lacks frames": refusal(r"expected q of shape|process 1 refused", q=X[:, :0], both=False),
    "one has no tensor": refusal(r"torch.Tensor|process 1 refused", TypeError, q=X, k=[1.0]),
    "flat": refusal(r"expected q of shape", q=X.flatten(1, 3), both=True),
    "heads that do not divide": refusal(
        r"multiple of the 2 processes", q=torch.ones(1, 2, 1, 1, 3, 4), kwargs={"method": "heads"}, both=True
    ),
    "method": refusal(r"'ring' or 'heads', got 'rings'", kwargs={"method": "rings"}, both=True),
    "pattern": refusal(r"one of fastvfx.patterns", TypeError, pattern="full", both=True),
    "pattern does not fit": refusal(r"kernel", pattern=Neighborhood((5, 1, 1)), both=True),
    "blocks in a ring": refusal(
        r"expected method='heads'", pattern=Blocks(1, torch.zeros(1, 1, 4, 1, dtype=torch.int32)), both=True
    ),
    "rotary of some": refusal(
        r"axis 0 of rotary to be the 4 tokens", kwargs={"rotary": torch.ones(2, 2, 2)}, both=True
    ),
    "bias of some": refusal(r"axis 3 of bias to be the 4 tokens", kwargs={"bias": torch.ones(1, 4, 2, 2)}, both=True),
    "bias of the wrong queries": refusal(r"bias of shape", kwargs={"bias": torch.ones(1, 4, 4, 4)}, both=True),
    "kv_mask": refusal(r"kv_mask of shape", kwargs={"kv_mask": torch.ones(1, 4).bool()}, both=True),
    "relative bias, dilated": refusal(
        r"dilated in time, got 'ring' and dilations \[1, 2\]",
        pattern=PerHead([Neighborhood((2, 1, 1), 1, (d, 1, 1)) for d in (1, 2, 1, 2)]),
        kwargs={"relative_bias": torch.ones(4, 3, 1, 1)},
        both=True,
    ),
}


def process(rank, port, queue):
    """All cases up to the first that fails: then the other process hears that this one has gone."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(minutes=5),
    )
    for name, (function, *arguments) in CASES.items():
        torch.manual_seed(0)
        failure = None
        try:
            function(*arguments)
        except Exception:
            failure = traceback.format_exc()
        queue.put((rank, name, failure))
        if failure:
            return
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def failures():
    """What went wrong in which case, from two processes that are started once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    children = mp.start_processes(process, (port, queue), WORLD, join=False, start_method="spawn")
    found: dict[str, list[str]] = {}
    running = True
    while running:
        with contextlib.suppress(mp.ProcessRaisedException):  # what was wrong is in the queue
            running = not children.join(timeout=0.05)
        while not queue.empty():
            rank, name, failure = queue.get()
            found.setdefault(name, []).extend([f"in process {rank}:\n{failure}"] if failure else [])
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes(failures, case):
    assert case in failures, "the processes did not get there"
    assert not failures[case], "\n".join(failures[case])


def test_without_processes():
    with pytest.raises(RuntimeError, match=r"expected torch.distributed to be initialised"):
        parallel.spatiotemporal_attention(X, X, X)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_parts_are_cuts_of_the_whole_mask(pattern):
    """Also for more processes than were started: every cut of frames of queries and keys."""
    size = H * W
    whole = pattern.mask((T, H, W)).reshape(-1, T * size, T * size)
    cuts = [(0, 2), (2, 3), (3, 7)]
    for queries in cuts:
        for keys in cuts:
            rows, columns = (slice(a * size, b * size) for a, b in (queries, keys))
            expected = whole[:, rows, columns]
            grids = (queries[1] - queries[0], H, W), (keys[1] - keys[0], H, W)
            part = (
                Part(pattern, T, queries, keys).mask(*grids).reshape(-1, *(size * (b - a) for a, b in (queries, keys)))
            )
            assert torch.equal(*torch.broadcast_tensors(part, expected))
            used = expected.any(0).any(0).unflatten(0, (-1, size)).any(1).nonzero()[:, 0] + keys[0]
            first, behind = needed(pattern, T, (H, W), HEADS, queries, keys)
            assert (first, behind) == ((int(used[0]), int(used[-1]) + 1) if len(used) else (keys[0], keys[0]))
