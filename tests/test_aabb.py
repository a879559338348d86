"""ray_aabb_intersect: a scalar slab test in float64 as oracle, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import assert_as_good_as_torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx.reference import ray_aabb_intersect as reference

INF = math.inf


def rays_and_boxes(n=200, m=5, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(1)
    o = torch.randn(n, 3, generator=g, dtype=torch.float64) * 2
    d = torch.randn(n, 3, generator=g, dtype=torch.float64)
    d[::7, 0] = 0
    d[::11, 1:] = 0
    o[::13] = 0
    lower = torch.randn(m, 3, generator=g, dtype=torch.float64) - 1
    upper = lower + torch.rand(m, 3, generator=g, dtype=torch.float64) * 3
    return [x.to(device, dtype) for x in (o, d, torch.cat([lower, upper], 1))]


def scalar(o, d, box, near, far, miss):
    """One ray, one box, no vectors: the three intervals cut with each other."""
    lo, hi = -INF, INF
    for i in range(3):
        if d[i] == 0:
            if not box[i] <= o[i] <= box[i + 3]:
                return miss, miss, False
            continue
        a, b = sorted(((box[i] - o[i]) / d[i], (box[i + 3] - o[i]) / d[i]))
        lo, hi = max(lo, a), min(hi, b)
    if not (lo < hi and hi > 0) or d == [0, 0, 0]:
        return miss, miss, False
    return min(max(lo, near), far), min(max(hi, near), far), True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("near", "far", "miss"), [(-INF, INF, INF), (0.5, 2.0, -1.0)], ids=["open", "clamped"])
def test_intersections(device, isa, near, far, miss, dtype):
    """Oracle: the scalar test in float64."""
    o, d, boxes = rays_and_boxes(dtype=dtype, device=device)
    t_mins, t_maxs, hits = fastvfx.ray_aabb_intersect(o, d, boxes, near, far, miss)
    rows = [
        [scalar(a, b, c, near, far, miss) for c in boxes.double().tolist()]
        for a, b in zip(o.double().tolist(), d.double().tolist(), strict=True)
    ]
    exact = torch.tensor(rows, dtype=torch.float64, device=device)
    assert torch.equal(hits, exact[..., 2] == 1) and 30 < hits.sum() < 900
    assert (t_mins[~hits] == miss).all() and (t_maxs[~hits] == miss).all()
    torch_same = reference(o, d, boxes, near, far, miss)
    for i, (got, same) in enumerate(zip((t_mins, t_maxs), torch_same, strict=False)):
        finite = hits & torch.isfinite(exact[..., i])
        assert_as_good_as_torch(got[finite], same[finite], exact[..., i][finite], ("t_mins", "t_maxs")[i])


def test_near_and_far_of_each_ray(device, isa):
    """Oracle: the reference."""
    o, d, boxes = rays_and_boxes(device=device)
    near, far = torch.rand(200, device=device), 1 + torch.rand(200, device=device)
    for got, want in zip(
        fastvfx.ray_aabb_intersect(o, d, boxes, near, far), reference(o, d, boxes, near, far, INF), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("where", ["origin", "direction"])
def test_broken_rays_hit_nothing(device, isa, where, value):
    o, d, boxes = rays_and_boxes(device=device)
    clean = fastvfx.ray_aabb_intersect(o, d, boxes)
    (o if where == "origin" else d)[5, 1] = value
    t_mins, t_maxs, hits = fastvfx.ray_aabb_intersect(o, d, boxes, miss_value=9.0)
    assert not hits[5].any() and (t_mins[5] == 9).all() and (t_maxs[5] == 9).all()
    others = torch.arange(200, device=device) != 5
    assert torch.equal(hits[others], clean[2][others])


def test_no_direction_and_behind(device, isa):
    box = torch.tensor([[-1.0, -1, -1, 1, 1, 1]], device=device)
    o = torch.tensor([[0.0, 0, 0], [3.0, 0, 0], [0.0, 0, 0], [3.0, 0, 0], [0.0, 1, 0]], device=device)
    d = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 2], [-1.0, 0, 0], [0.0, 0, 1]], device=device)
    t_mins, t_maxs, hits = fastvfx.ray_aabb_intersect(o, d, box)
    assert hits[:, 0].tolist() == [False, False, True, True, True]
    assert t_mins[2:, 0].tolist() == [-0.5, 2, -1] and t_maxs[2:, 0].tolist() == [0.5, 4, 1]


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)], ids=["no_rays", "no_boxes", "nothing"])
def test_nothing_to_do(device, n, m):
    o, d, boxes = rays_and_boxes(n, m, device=device)
    for x in fastvfx.ray_aabb_intersect(o, d, boxes):
        assert x.shape == (n, m)


def test_strides_and_gradients(device):
    o, d, boxes = rays_and_boxes(device=device)
    strided = torch.stack([o, o], -1)[..., 1].requires_grad_()
    for got, want in zip(
        fastvfx.ray_aabb_intersect(strided, d, boxes), fastvfx.ray_aabb_intersect(o, d, boxes), strict=True
    ):
        assert torch.equal(got, want) and not got.requires_grad


def test_opcheck_compile_and_fake(device):
    o, d, boxes = rays_and_boxes(9, device=device)
    torch.library.opcheck(torch.ops.fastvfx.aabb_fwd.default, (o, d, boxes, None, None, 0.0, INF, INF))
    compiled = torch.compile(fastvfx.ray_aabb_intersect, fullgraph=True)
    for got, want in zip(compiled(o, d, boxes), fastvfx.ray_aabb_intersect(o, d, boxes), strict=True):
        assert torch.equal(got, want)
    with FakeTensorMode():
        hits = fastvfx.ray_aabb_intersect(torch.empty(4, 3), torch.empty(4, 3), torch.empty(2, 6))[2]
    assert hits.shape == (4, 2) and hits.dtype == torch.bool


MISTAKES = {
    "boxes": ((torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(6)), ValueError, r"aabbs of shape \(n_boxes, 6\)"),
    "rank": ((torch.zeros(3), torch.zeros(3), torch.zeros(1, 6)), ValueError, r"rays_o of shape \(n_rays, 3\)"),
    "count": ((torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(1, 6)), ValueError, "n_rays=4, got"),
    "int": ((torch.zeros(4, 3).int(), torch.zeros(4, 3), torch.zeros(1, 6)), TypeError, "got torch.int32"),
    "dtype": ((torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(1, 6).double()), TypeError, "like rays_o"),
    "tuple": ((torch.zeros(4, 3), torch.zeros(4, 3), (0, 0, 0, 1, 1, 1)), TypeError, "to be a torch.Tensor, got tuple"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fastvfx.ray_aabb_intersect(*arguments)
