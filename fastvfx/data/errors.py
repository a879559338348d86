"""The one exception of the data package."""

from __future__ import annotations


class DataError(ValueError):
    """A capture on disk is missing, damaged or contradicts itself. The message names the file and what is wrong."""
