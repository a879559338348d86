"""Sampling of images: values and first derivatives of PyTorch's own operator, and derivatives behind it."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx.functional import grid_sample

OPTIONS = [
    pytest.param(mode, padding, align, id=f"{mode}-{padding}-{'corners' if align else 'edges'}")
    for mode in ("bilinear", "nearest")
    for padding in ("zeros", "border", "reflection")
    for align in (False, True)
]


def images_and_grid(dtype=torch.float64, size=(5, 7), spread=1.5):
    """A grid that leads outside too, and no place within 1e-3 of where the derivative jumps."""
    images = torch.randn(2, 3, *size, dtype=dtype)
    grid = (torch.rand(2, 4, 6, 2, dtype=dtype) * 2 - 1) * spread
    return images, grid


@pytest.fixture(params=["auto", "reference"])
def backend(request):
    with fastvfx.backend(request.param):
        yield request.param


@pytest.mark.parametrize(("mode", "padding", "align"), OPTIONS)
def test_values_and_gradients_are_those_of_torch(backend, mode, padding, align):
    images, grid = (x.requires_grad_() for x in images_and_grid())
    ours = grid_sample(images, grid, mode, padding, align)
    theirs = F.grid_sample(images, grid, mode, padding, align)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(ours)
    ours_g = torch.autograd.grad(ours, (images, grid), g, allow_unused=True, materialize_grads=True)
    theirs_g = torch.autograd.grad(theirs, (images, grid), g)
    for a, b in zip(ours_g, theirs_g, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True], ids=["edges", "corners"])
def test_derivatives(padding, align):
    images, grid = (x.requires_grad_() for x in images_and_grid(size=(3, 4)))

    def function(images, grid):
        return grid_sample(images, grid, "bilinear", padding, align)

    assert gradcheck(function, (images, grid))
    assert gradgradcheck(function, (images, grid))


def test_third_derivative():
    images, grid = (x.requires_grad_() for x in images_and_grid(size=(3, 4)))

    def gradient(images, grid):
        y = grid_sample(images.tanh(), grid)
        return torch.autograd.grad(y.pow(3).sum(), (images, grid), create_graph=True)

    assert gradgradcheck(gradient, (images, grid))


def test_images_alone_stay_on_the_kernels(monkeypatch):
    """R1 of an augmented image: the grid has no gradient, and no formula runs."""
    monkeypatch.setattr(sys.modules["fastvfx.functional.grid_sample"], "reference", None)
    images, grid = images_and_grid()
    images.requires_grad_()
    y = grid_sample(images, grid)
    (g,) = torch.autograd.grad(y.square().sum(), images, create_graph=True)
    (gg,) = torch.autograd.grad(g.square().sum(), images)
    # y = A x: g = 2 A'A x, and the gradient of |g|^2 is 8 (A'A)^2 x
    sample = lambda x: F.grid_sample(x, grid, align_corners=False)  # noqa: E731
    ata = lambda x: torch.func.vjp(sample, x)[1](sample(x))[0]  # noqa: E731
    torch.testing.assert_close(gg, 8 * ata(ata(images.detach())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_images_are_sampled_in_float32(dtype):
    images, grid = images_and_grid(torch.float32, size=(64, 64))
    ours = grid_sample(images.to(dtype), grid)
    assert ours.dtype == dtype
    exact = F.grid_sample(images.to(dtype).float(), grid, align_corners=False)
    torch.testing.assert_close(ours, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "padding", "align"), OPTIONS)
def test_nan_in_the_grid_stays_where_it_is(backend, mode, padding, align):
    images, grid = images_and_grid(torch.float32, spread=0.8)
    broken = grid.clone()
    broken[0, 1, 2, 1] = float("nan")
    ours = grid_sample(images, broken, mode, padding, align)
    assert ours[0, :, 1, 2].isnan().all()
    ours[0, :, 1, 2] = exact = grid_sample(images, grid, mode, padding, align)[0, :, 1, 2]
    assert exact.isfinite().all()
    torch.testing.assert_close(ours, grid_sample(images, grid, mode, padding, align))


def test_one_graph():
    images, grid = images_and_grid(torch.float32)
    compiled = torch.compile(grid_sample, fullgraph=True)
    torch.testing.assert_close(compiled(images, grid), grid_sample(images, grid))


def test_empty(backend):
    assert grid_sample(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2, 2, 2)).shape == (0, 3, 2, 2)
    assert grid_sample(torch.zeros(2, 3, 4, 4), torch.zeros(2, 0, 5, 2)).shape == (2, 3, 0, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(2, 3, 4)}, ValueError, r"expected input of shape \(N, C, H, W\)"),
        ({"input": torch.zeros(2, 3, 0, 4)}, ValueError, "with pixels"),
        ({"grid": torch.zeros(1, 4, 4, 2)}, ValueError, "N=2"),
        ({"grid": torch.zeros(2, 4, 4, 3)}, ValueError, "expected grid of shape"),
        ({"grid": [0.0]}, TypeError, "expected grid to be a torch.Tensor"),
        ({"mode": "bicubic"}, ValueError, "expected mode"),
        ({"padding_mode": "wrap"}, ValueError, "expected padding_mode"),
        ({"input": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, TypeError, "expected input of dtype"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"input": torch.zeros(2, 3, 4, 4), "grid": torch.zeros(2, 5, 5, 2)} | change
    with pytest.raises(error, match=message):
        grid_sample(**arguments)
