"""Means of what a training looks at, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Meter:
    """Sums of named scalars.

    Args:
        state: of :meth:`state`.
    """

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        for name, (total, count) in (state or {}).items():
            self._sums[name], self._counts[name] = total, count

    def add(self, **values: Tensor) -> None:
        """One more value of each."""
        for name, value in values.items():
            # float64, so that a sum that was saved and read again goes on in the same way
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means; waits for the device once."""
        names = [name for name, total in self._sums.items() if isinstance(total, Tensor)]
        if names:
            values = torch.stack([torch.as_tensor(self._sums[name]) for name in names]).tolist()
            self._sums.update(zip(names, values, strict=True))
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        """The means, and begin anew."""
        means = self.read()
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """For JSON."""
        self.read()
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
