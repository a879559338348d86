"""``natten.context``: settings of NATTEN's kernels. They are remembered and asked for; ours need none of them."""

from __future__ import annotations

from enum import Enum


class MemoryUsagePreference(Enum):
    Default = 0
    Strict = 1
    Unrestricted = 2


_memory = MemoryUsagePreference.Default
_on = {"deterministic": False, "kv_parallelism": True, "flex_compile": False, "flex_compile_backprop": False}


def set_memory_usage_preference(pref: str = "default") -> None:
    """``pref``: ``"default"``, ``"strict"`` or ``"unrestricted"``."""
    global _memory
    if pref not in ("default", "strict", "unrestricted"):
        raise ValueError(
            f"fastvfx.compat.natten: expected pref to be 'default', 'strict' or 'unrestricted', got {pref!r}"
        )
    _memory = MemoryUsagePreference[pref.capitalize()]


def get_memory_usage_preference() -> MemoryUsagePreference:
    return _memory


def is_memory_usage_default() -> bool:
    return _memory is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    return _memory is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    return _memory is MemoryUsagePreference.Unrestricted


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Only remembered: our backward follows ``torch.use_deterministic_algorithms``."""
    _on["deterministic"] = mode


def are_deterministic_algorithms_enabled() -> bool:
    return _on["deterministic"]


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    _on["kv_parallelism"] = mode


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    return _on["kv_parallelism"]


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    _on["flex_compile"] = mode
    _on["flex_compile_backprop"] = mode and backprop


def allow_flex_compile_backprop(mode: bool = True) -> None:
    _on["flex_compile_backprop"] = mode


def disable_flex_compile() -> None:
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    allow_flex_compile_backprop(False)


def is_flex_compile_allowed() -> bool:
    return _on["flex_compile"]


def is_flex_compile_backprop_allowed() -> bool:
    return _on["flex_compile_backprop"]
