"""Which keys a token of a video may attend: small immutable objects for :func:`fastvfx.spatiotemporal_attention`.

Tokens lie on a grid (T, H, W). Every pattern but :class:`Blocks` allows, on each axis, one interval of keys for a query
(with a step, if it is dilated), so that a kernel never sees a mask. ``a & b`` allows what both allow.

>>> pattern = patterns.Neighborhood((3, 7, 7)) & patterns.CausalTime()
>>> pattern.density((8, 16, 16))   # share of the keys that a query attends, in the mean
>>> pattern.plot((8, 16, 16))
"""

from .base import Pattern
from .kinds import (
    Blocks,
    Both,
    CausalTime,
    Divided,
    Full,
    Neighborhood,
    PerHead,
    ShiftedWindows,
    SlidingTile,
)
from .spans import Spans

__all__ = [
    "Blocks",
    "Both",
    "CausalTime",
    "Divided",
    "Full",
    "Neighborhood",
    "Pattern",
    "PerHead",
    "ShiftedWindows",
    "SlidingTile",
    "Spans",
]
