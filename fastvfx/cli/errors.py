"""What the user can put right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the command or its input; printed as one line."""
