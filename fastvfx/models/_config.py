"""What the configurations of the networks share: a way into JSON and back that notices strangers."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, TypeVar, get_type_hints

C = TypeVar("C", bound="Config")


class Config:
    """Base of the frozen dataclasses that describe a network."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The inverse of :meth:`to_dict`, after a trip through JSON too. What is left out takes its default.

        Raises:
            ValueError: no mapping, or names that this version does not know.
        """
        if not isinstance(values, dict):
            raise ValueError(f"fastvfx.{cls.__name__}: expected a mapping of its fields, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        if strangers := sorted(set(values) - set(known)):
            raise ValueError(f"fastvfx.{cls.__name__}: expected fields among {', '.join(known)}, got {strangers}")
        kinds = get_type_hints(cls)
        return cls(**{name: _value(kinds[name], value) for name, value in values.items()})


def _value(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Config):
        return kind.from_dict(value)
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples
