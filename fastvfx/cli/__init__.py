"""The command line. ``fastvfx info`` runs with the base dependencies; everything else asks for the extra ``cli``."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from .errors import UserError

__all__ = ["UserError", "run"]

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def run(arguments: Sequence[str]) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 the work failed (a full disk, a training that diverged), 2 a mistake in the command or
        its input, 130 interrupted. Failures and mistakes are one line on stderr.
    """
    from ..data import DataError
    from ..models.nerf import CheckpointError, Diverged

    try:
        return _dispatch(list(arguments))
    except (UserError, DataError, CheckpointError, ImportError) as error:
        return _fail(str(error), 2)
    except Diverged as error:
        return _fail(str(error), 1)
    except OSError as error:
        if error.errno in _FULL:
            return _fail(str(error.strerror or error), 1)
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["info"]:  # to be had without tyro: it says what is missing
        from .info import info

        print(info())
        return 0
    try:
        import tyro  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "the command line needs tyro: pip install 'fastvfx[cli]' (only `fastvfx info` works without)"
        ) from None
    from .app import parse

    return parse(arguments)()


def _fail(message: str, code: int) -> int:
    prefix = "" if message.startswith("fastvfx") else "fastvfx: "
    print(f"{prefix}{' '.join(message.split())}", file=sys.stderr)
    return code
