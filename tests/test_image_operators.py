"""What holds for every operator on images: parameters of another dtype than the images, and more than 2^31 numbers."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastvfx.functional import (
    bias_act,
    conv2d_resample,
    filtered_lrelu,
    modulated_conv2d,
    setup_filter,
    upfirdn2d,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# The operator, of images and parameters; the shapes of the parameters.
OPERATORS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "bias_act": (lambda x, b: bias_act(x, b, act="lrelu", clamp=1), [(4,)]),
    "upfirdn2d": (lambda x, f: upfirdn2d(x, f, up=2, padding=2), [(4, 4)]),
    "filtered_lrelu": (
        lambda x, b, fu, fd: filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=11),
        [(4,), (12,), (12,)],
    ),
    "conv2d_resample": (lambda x, w, f: conv2d_resample(x, w, f, up=2, padding=1), [(3, 4, 3, 3), (4, 4)]),
    "modulated_conv2d": (
        lambda x, w, s, b: modulated_conv2d(x, w, s, bias=b, padding=1, act="lrelu"),
        [(3, 4, 3, 3), (2, 4), (3,)],
    ),
}


@pytest.mark.parametrize("of_parameters", DTYPES, ids=str)
@pytest.mark.parametrize("of_images", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_parameters_may_have_another_dtype(name: str, of_images: torch.dtype, of_parameters: torch.dtype) -> None:
    """To the bit what they give once converted to what sums are taken in; gradients have the dtype of their tensor."""
    operator, shapes = OPERATORS[name]
    wide = torch.float64 if of_images is torch.float64 else torch.float32
    x = torch.randn(2, 4, 9, 8).to(of_images).requires_grad_()
    parameters = [(0.3 * torch.randn(shape)).to(of_parameters).requires_grad_() for shape in shapes]
    y = operator(x, *parameters)
    assert y.dtype is of_images
    assert torch.equal(y, operator(x, *(p.to(wide) for p in parameters)))
    gradients = torch.autograd.grad(y.float().square().mean(), [x, *parameters])
    assert [g.dtype for g in gradients] == [of_images, *[of_parameters] * len(parameters)]
    assert all(g.isfinite().all() and g.any() for g in gradients)


def free_gib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 0.0


@pytest.mark.skipif(free_gib() < 10, reason="takes 10 GiB of memory")
def test_more_than_2_31_numbers() -> None:
    """The last rows of an image whose numbers a 32-bit index can't count are those of a small one that ends alike."""
    x = torch.zeros(1, 1, 2**15 + 2, 2**16, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[0, 0, -16:, -16:] = torch.randn(16, 16)
    end = x[:, :, -32:, -32:].clone()
    f = setup_filter([1, 3, 3, 1])
    for operator in (
        lambda x: bias_act(x, torch.ones(1), act="lrelu"),
        lambda x: upfirdn2d(x, f, down=2, padding=1),
        lambda x: filtered_lrelu(x, None, f, torch.ones(1), down=2, padding=1),
    ):
        got, expected = operator(x)[..., -8:, -8:].clone(), operator(end)[..., -8:, -8:]
        assert torch.equal(got, expected) and got.any()
