"""Rotary position embeddings of a video's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotary_3d(
    grid: Sequence[int],
    dim: int,
    *,
    split: Sequence[int] | None = None,
    base: float = 10000.0,
    start: Sequence[float] = (0, 0, 0),
    spacing: Sequence[float] = (1, 1, 1),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Angles by which :func:`fastvfx.spatiotemporal_attention` turns queries and keys, as cosines and sines.

    A head's ``dim`` channels are pairs. Each pair belongs to one axis, and is turned by
    :math:`x \, \theta^{-2 i / d}` with x the token's position on it, d the channels of that axis and i the number of
    the pair there (Su et al., "RoFormer", 2021, on three axes), so that scores depend on distances in time, height and
    width.

    Args:
        grid: frames, height and width of the tokens.
        dim: channels of a head, even.
        split: channels of time, height and width, even, at most ``dim`` in sum; channels that remain are not turned. By
            default height and width take a third each, rounded down to an even number, and time the rest.
        base: theta.
        start: position of the first token on each axis. A chunk of frames that continues a video starts at the number
            of frames before it.
        spacing: distance of neighbouring tokens on each axis.
        dtype: float32, or float64 for queries in float64. The angles are computed in float64 either way.
        device: where the result lies.

    Returns:
        ``(T * H * W, dim / 2, 2)``: cosine and sine for each token and pair.

    Raises:
        ValueError: ``dim`` or a part of the split is odd or negative, or the split does not fit into ``dim``.

    >>> table = fastvfx.rotary_3d((8, 14, 14), 64)
    >>> out = fastvfx.spatiotemporal_attention(q, k, v, grid=(8, 14, 14), rotary=table)
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"fastvfx.rotary_3d: expected dim to be even and at least 2, got {dim}")
    third = dim // 6 * 2
    split = (dim - 2 * third, third, third) if split is None else tuple(split)
    for name, three in (("grid", grid), ("split", split), ("start", start), ("spacing", spacing)):
        if len(three) != 3:
            raise ValueError(f"fastvfx.rotary_3d: expected three numbers as {name}, got {tuple(three)}")
    if any(s < 0 or s % 2 for s in split) or sum(split) > dim:
        raise ValueError(f"fastvfx.rotary_3d: expected split into even parts of at most dim={dim} in sum, got {split}")
    angles = []
    for axis, (n, channels) in enumerate(zip(grid, split, strict=True)):
        at = torch.arange(n, dtype=torch.float64, device=device) * spacing[axis] + start[axis]
        pair = torch.arange(channels // 2, dtype=torch.float64, device=device)
        turned = at[:, None] * base ** (-2 * pair / max(channels, 1))  # (n, channels / 2)
        shape = [1, 1, 1]
        shape[axis] = n
        angles.append(turned.view(*shape, -1).expand(*grid, -1))
    angles.append(torch.zeros((*grid, (dim - sum(split)) // 2), dtype=torch.float64, device=device))
    angle = torch.cat(angles, -1).flatten(0, 2)  # (N, dim / 2)
    return torch.stack([angle.cos(), angle.sin()], -1).to(dtype)
