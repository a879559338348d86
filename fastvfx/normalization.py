"""Normalisation of features and statistics of batches, as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    r"""Divide each pixel's (or each vector's) features by their root mean square.

    .. math:: y_c = x_c / \sqrt{\tfrac{1}{C} \sum_j x_j^2 + \epsilon}

    (Karras et al. 2018, section 4.2), over dimension 1.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same; 16-bit types are squared and summed in float32."""
        wide = x if x.dtype is torch.float64 else x.float()
        return (wide * (wide.square().mean(1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStddev(nn.Module):
    """Append the standard deviation over groups of the batch as extra channels, so that a discriminator sees variety.

    (Karras et al. 2018, section 3). Images that are N / G apart in a batch of N form a group of G.

    Args:
        group_size: images that are compared; ``None`` for the whole batch. A smaller batch is one group.
        num_channels: channels to append; each is the mean over its share of the input's channels.
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + num_channels, H, W).

        Raises:
            ValueError: the batch is no multiple of the group size, or the channels no multiple of ``num_channels``.
        """
        n, channels, height, width = x.shape
        group = max(n if self.group_size is None else min(self.group_size, n), 1)
        if n % group or channels % self.num_channels:
            raise ValueError(
                f"fastvfx.MinibatchStddev: expected a batch that is a multiple of group_size={group} and channels that "
                f"are a multiple of num_channels={self.num_channels}, got x of shape {tuple(x.shape)}"
            )
        wide = x if x.dtype is torch.float64 else x.float()
        shape = (group, n // group, self.num_channels, channels // self.num_channels, height, width)
        groups = wide.reshape(shape)
        variance = (groups - groups.mean(0)).square().mean(0)  # (N/G, F, C/F, H, W)
        stddev = (variance + 1e-8).sqrt().mean([2, 3, 4])  # (N/G, F)
        stddev = stddev.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat([x, stddev.to(x.dtype)], 1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
