"""What every pattern can do: resolve for a grid, compose, say its mask and density, draw itself."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .axis import Axis, intersect
from .spans import Grid, Spans, stack

if TYPE_CHECKING:
    from .kinds import Blocks


class Pattern:
    """Base of all patterns. They are immutable and compare by value (:class:`Blocks`: by identity)."""

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        """The keys allowed on each of the axes time, height and width."""
        raise NotImplementedError

    def heads(self, n_heads: int | None) -> tuple[tuple[Pattern, ...], tuple[int, ...]]:
        """The different patterns among the heads, and which of them each head takes."""
        return (self,), (0,) * (n_heads or 1)

    def split(self) -> tuple[Pattern, Blocks | None]:
        """The part that depends on nothing but the grid, and the part that is data."""
        return self, None

    def spans(
        self,
        grid: Grid,
        kv_grid: Grid | None = None,
        n_heads: int | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Spans, ...]:
        """The pattern for queries on ``grid`` and keys on ``kv_grid`` (default: the same).

        One :class:`Spans`, or one for each combination of dilations and sinks among the heads. What is data in the
        pattern (:class:`Blocks`) is not in it. Computed once for every grid and device, except while torch.compile
        traces: then sizes may be symbolic, and the arithmetic becomes a part of the graph.

        Raises:
            ValueError: the pattern does not fit the grid, or has another number of heads.
        """
        static, _ = self.split()
        arguments = (static, grid, grid if kv_grid is None else kv_grid, n_heads, torch.device(device))
        # Inside a dispatch mode (FakeTensorMode) new tensors are the mode's, and of no use outside of it.
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return _resolve(*arguments)
        return _cached(*arguments)

    def mask(self, grid: Grid, kv_grid: Grid | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Which keys each query may attend, ``(N_q, N_k)`` bool, tokens in the order of the grid.

        Patterns that differ among heads give ``(heads, N_q, N_k)``, and :class:`Blocks` whose indices have a batch or
        heads give ``(batch, heads, N_q, N_k)``. The number of tokens squared: for looking at, and for small grids.
        """
        from .draw import mask  # imports the kinds, which import this

        return mask(self, grid, kv_grid, torch.device(device))

    def density(self, grid: Grid, kv_grid: Grid | None = None) -> float:
        """The share of all pairs of query and key that is allowed, the mean over heads (and batch). Builds no mask."""
        from .draw import density

        return density(self, grid, kv_grid)

    def plot(self, grid: Grid, query: Grid | None = None, head: int = 0, axes: Any = None) -> Any:
        """Draw the pattern with matplotlib and return the figure.

        Args:
            grid: frames, height and width.
            query: draw the keys of this one token, frame by frame; without it, the whole mask.
            head: of patterns that differ among heads, the head to draw.
            axes: matplotlib axes to draw on, as many as frames for a query, else one; by default a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the pattern does not fit the grid, or ``query`` or ``head`` is outside.
        """
        from .draw import plot

        return plot(self, grid, query, head, axes)

    def __and__(self, other: Pattern) -> Pattern:
        from .kinds import both

        return both(self, other) if isinstance(other, Pattern) else NotImplemented


def _resolve(pattern: Pattern, grid: Grid, kv_grid: Grid, n_heads: int | None, device: torch.device) -> tuple:
    different, of_head = pattern.heads(n_heads)
    return tuple(stack([p.axes(grid, kv_grid, device) for p in different], of_head, grid, kv_grid))


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept may be used in a later call that has gradients
def _cached(*arguments: Any) -> tuple[Spans, ...]:
    with temporarily_clear_interpreter_stack():  # inside torch.func new tensors are the transform's
        return _resolve(*arguments)


def met(a: tuple[Axis, Axis, Axis], b: tuple[Axis, Axis, Axis], what: str) -> tuple[Axis, Axis, Axis]:
    """Both patterns' axes intersected."""
    result = [intersect(x, y) for x, y in zip(a, b, strict=True)]
    for name, axis in zip(("time", "height", "width"), result, strict=True):
        if axis is None:
            raise ValueError(
                f"fastvfx.patterns: expected patterns whose {name} axes meet in one interval with a step, got {what}: "
                "at most one of them may be dilated differently or have a sink there"
            )
    t, h, w = (axis for axis in result if axis is not None)
    return t, h, w
