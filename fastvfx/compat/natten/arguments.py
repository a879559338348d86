"""NATTEN's arguments for one, two or three axes, as a pattern of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...patterns import Neighborhood


def neighborhood(n: int, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any) -> Neighborhood:
    """The pattern of the last ``n`` of time, height and width."""

    def three(name: str, value: Any, default: int | bool) -> tuple[Any, ...]:
        value = default if value is None else value
        each = tuple(value) if isinstance(value, Sequence) else (value,) * n
        if len(each) != n:
            raise ValueError(f"fastvfx.compat.natten: expected {name} to be one value or {n}, got {value!r}")
        return (default,) * (3 - n) + each

    return Neighborhood(
        three("kernel_size", kernel_size, 1),
        three("stride", stride, 1),
        three("dilation", dilation, 1),
        three("is_causal", is_causal, False),
    )
