"""Kinds of options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

Number = Annotated[float | None, arg(metavar="NUMBER")]
Count = Annotated[int | None, arg(metavar="INT")]
Device = Literal["cpu", "cuda"]
Backend = Literal["auto", "native", "reference"]
