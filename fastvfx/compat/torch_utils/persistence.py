"""``torch_utils.persistence``: networks that remember what they were made with.

NVlabs' version pickles the source code of a class along with its state, and runs it when the file is read. This one
stores no code. Official ``.pkl`` files are read by ``fastvfx.models.stylegan2`` and ``stylegan3``, which run none
either.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


class _Arguments(dict[str, Any]):
    """Keyword arguments, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def persistent_class(cls: Class) -> Class:
    """A class decorator: instances have ``init_args`` and ``init_kwargs``, copies of what made them."""
    make = cls.__init__  # type: ignore[misc]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        # Behind what a persistent base class has put there: the outermost call is the one to remember.
        self._init_args, self._init_kwargs = copy.deepcopy(args), copy.deepcopy(kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    cls.init_args = property(lambda self: copy.deepcopy(self._init_args))  # type: ignore[attr-defined]
    cls.init_kwargs = property(lambda self: _Arguments(copy.deepcopy(self._init_kwargs)))  # type: ignore[attr-defined]
    cls._is_persistent = True  # type: ignore[attr-defined]
    return cls


def is_persistent(obj: Any) -> bool:
    """Whether a class, or the class of an object, was decorated."""
    return bool(getattr(obj if isinstance(obj, type) else type(obj), "_is_persistent", False))


def import_hook(hook: Any) -> None:
    """Accepted and never called: no code comes out of a pickle here that a hook could change."""


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise ValueError(
        "this pickle was written by NVlabs' torch_utils.persistence and carries source code that reading it would run; "
        "open it with fastvfx.models.stylegan2 or stylegan3, which read the weights and run nothing"
    )
