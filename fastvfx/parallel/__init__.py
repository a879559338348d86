"""Attention over a video that is split along time among the processes of :mod:`torch.distributed`.

Each process holds some frames, in the order of the ranks; :func:`spatiotemporal_attention` gives each the result for
its own, equal to that of one process, gradients included.

>>> from fastvfx import parallel
>>> mine = parallel.share(n_frames)             # a slice of frames: any number of them for any number of processes
>>> q, k, v = qkv(video[:, mine])               # (batch, T of this rank, H, W, heads, dim) each
>>> out = parallel.spatiotemporal_attention(q, k, v, patterns.Neighborhood((5, 9, 9)))
"""

from .attention import spatiotemporal_attention
from .exchange import share

__all__ = ["share", "spatiotemporal_attention"]
