"""``minibatch_stddev`` against its formula, image by image."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastvfx.functional import minibatch_stddev


def spelled_out(x: Tensor, group: int, num_channels: int) -> Tensor:
    n, channels, height, width = x.shape
    share = channels // num_channels
    out = torch.empty(n, channels + num_channels, height, width, dtype=x.dtype)
    for image in range(n):
        members = x[image % (n // group) :: n // group]
        assert len(members) == group
        deviation = (members.var(0, correction=0) + 1e-8).sqrt()
        out[image, :channels] = x[image]
        for k in range(num_channels):
            out[image, channels + k] = deviation[k * share : (k + 1) * share].mean()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("group_size, group", [(4, 4), (2, 2), (1, 1), (None, 8), (16, 8)])
def test_every_group_gets_its_own_deviation(group_size: int | None, group: int, dtype: torch.dtype) -> None:
    x = torch.randn(8, 6, 3, 2).to(dtype)
    y = minibatch_stddev(x, group_size, 2)
    assert y.dtype is dtype and torch.equal(y[:, :6], x)
    assert_as_good_as_torch(y, spelled_out(x, group, 2), spelled_out(x.double(), group, 2), "stddev")


def test_gradcheck() -> None:
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(minibatch_stddev, (x, 2, 2))
    assert gradgradcheck(minibatch_stddev, (x, 2, 2))


def test_equal_images_have_finite_gradients() -> None:
    x = torch.ones(4, 2, 3, 3, requires_grad=True)
    minibatch_stddev(x)[:, 2].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_an_empty_batch_stays_empty() -> None:
    assert minibatch_stddev(torch.randn(0, 4, 3, 3)).shape == (0, 5, 3, 3)


def test_compiles_to_one_graph() -> None:
    x = torch.randn(4, 4, 3, 3)
    compiled = torch.compile(minibatch_stddev, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), minibatch_stddev(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "expected x to be a torch.Tensor, got list"),
        ((torch.randn(4, 3),), ValueError, r"expected x of shape \(N, C, H, W\), got \(4, 3\)"),
        ((torch.randn(6, 2, 3, 3),), ValueError, "expected a batch that is a multiple of group_size=4, got N=6"),
        (
            (torch.randn(4, 4, 3, 3), 4, 3),
            ValueError,
            "expected channels that are a multiple of num_channels=3",
        ),
        ((torch.randn(4, 4, 3, 3), 0), ValueError, "expected group_size of at least 1, got 0"),
        ((torch.randn(4, 4, 3, 3), 4, 0), ValueError, "expected num_channels of at least 1, got 0"),
    ],
    ids=["list", "2-D", "batch", "channels", "group 0", "no channel"],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"fastvfx.minibatch_stddev: {message}"):
        minibatch_stddev(*arguments)
