"""Reading pickles of networks without running what is in them.

NVIDIA's network files are pickles of live objects, each with the source code of its module, which the original
``torch_utils.persistence`` executes. Here nothing is executed or imported: every global that such a file may name
stands for a class or function of this module that only keeps what it is given, and any other global is an error. What
can be taken out are tensors, numbers, names, and the arguments that networks were made with.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor


class Forbidden(pickle.UnpicklingError):
    """A pickle names something that no network file needs."""


class _Sealed(type):
    """Classes whose attributes stay: a pickle can try to set them."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name} of a class")


class _Function:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: object) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name} of a function")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


class Inert(metaclass=_Sealed):
    """Stands for an object of a class that is not wanted; keeps its state."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class InertDict(dict[Any, Any], metaclass=_Sealed):
    """Stands for ``OrderedDict`` and ``EasyDict``; what was set on it other than items is dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class PickledModule(metaclass=_Sealed):
    """A network or layer as it was pickled.

    Attributes:
        class_name: its class in the module that it came from.
        fields: what its ``__dict__`` was.
    """

    def __init__(self, meta: object = None) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise pickle.UnpicklingError("a persistent object without a state")
        self.class_name = str(meta.get("class_name"))
        self.fields: dict[str, Any] = meta["state"]

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a persistent object with two states")

    def children(self) -> dict[str, PickledModule]:
        """Its submodules."""
        return {name: x for name, x in self._group("_modules").items() if isinstance(x, PickledModule)}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """What ``state_dict`` would have returned."""
        transient = self.fields.get("_non_persistent_buffers_set", ())
        own = self._group("_parameters") | {k: x for k, x in self._group("_buffers").items() if k not in transient}
        result = {prefix + name: x for name, x in own.items() if isinstance(x, Tensor)}
        for name, child in self.children().items():
            result |= child.tensors(f"{prefix}{name}.")
        return result

    def attributes(self, prefix: str = "") -> dict[str, Any]:
        """Plain values of it and of all submodules, by dotted names."""
        result = {prefix + name: x for name, x in self.fields.items() if not name.startswith("_")}
        for name, child in self.children().items():
            result |= child.attributes(f"{prefix}{name}.")
        return result

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """What it was constructed with."""
        kwargs = self.fields.get("_init_kwargs")
        return dict(kwargs) if isinstance(kwargs, dict) else {}

    def _group(self, name: str) -> dict[str, Any]:
        group = self.fields.get(name)
        return dict(group) if isinstance(group, dict) else {}


class TorchModule(PickledModule):
    """Stands for a module of ``torch.nn``."""

    def __init__(self) -> None:
        self.class_name, self.fields = "torch.nn", {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a torch.nn module without a state")
        self.fields = state


class TfNetwork(metaclass=_Sealed):
    """Stands for ``dnnlib.tflib.network.Network``, a network of the TensorFlow releases.

    Attributes:
        options: what it was made with.
        tensors: its variables, and those of its components with the component's name in front.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}

    def __setstate__(self, state: Any) -> None:
        if state["version"] < 4:
            raise pickle.UnpicklingError(f"a network of version {state['version']}, before StyleGAN2")
        self.options = dict(state["static_kwargs"])
        self.tensors = {str(name): torch.from_numpy(x.array) for name, x in state["variables"]}
        for component, network in state["components"].items():
            self.tensors |= {f"{component}/{name}": x for name, x in network.tensors.items()}


# --- numpy ------------------------------------------------------------------------------------------------------------


class _Dtype(metaclass=_Sealed):
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *flags: object) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", str(code)):
            raise pickle.UnpicklingError(f"an array of {code}")
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array(metaclass=_Sealed):
    """Stands for ``numpy.ndarray``."""

    def __init__(self, *args: object) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array without a dtype")
    flat = np.frombuffer(bytes(raw), dtype.numpy()).copy()
    return flat.reshape([int(k) for k in shape], order="F" if order == "F" else "C")


def _frombuffer(raw: Any, dtype: _Dtype, shape: Any, order: str, *_: object) -> _Array:
    array = _Array()
    array.array = _array(raw, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, raw: Any) -> float | int | bool:
    return _array(raw, dtype, (), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode``, as which the older protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


# --- torch ------------------------------------------------------------------------------------------------------------


def _storage(content: bytes) -> Tensor:
    """What ``torch.storage._load_from_bytes`` reads, a file in the file, as a flat tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # storages with a dtype are deprecated, and what these files hold
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise pickle.UnpicklingError("a storage that is none")
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    if not isinstance(storage, Tensor) or min([offset, *size, *stride], default=0) < 0:
        raise pickle.UnpicklingError("a tensor without a storage, or of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and max(last + 1, math.prod(size)) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _set(items: Any = ()) -> set[Any]:
    return set(items)


_ALLOWED: dict[str, type | _Function] = {
    "__builtin__.set": _Function(_set),
    "_codecs.encode": _Function(_encode),
    "builtins.set": _Function(_set),
    "collections.OrderedDict": InertDict,
    "dnnlib.EasyDict": InertDict,
    "dnnlib.util.EasyDict": InertDict,
    "dnnlib.tflib.network.Network": TfNetwork,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Inert,
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch.storage._load_from_bytes": _Function(_storage),
    "torch_utils.persistence._reconstruct_persistent_obj": PickledModule,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _Array
    _ALLOWED[f"{_core}.multiarray.scalar"] = _Function(_scalar)
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _Function(_frombuffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if re.fullmatch(r"torch\.nn\.modules(\.\w+)+", full):
            return TorchModule
        raise Forbidden(f"it names {full}, which no network file needs; nothing of it was run")

    def persistent_load(self, pid: object) -> Any:
        raise Forbidden("it refers to objects outside of it")


def load(file: BinaryIO) -> Any:
    """The object in a pickle: plain values and containers, tensors, :class:`PickledModule`.

    Raises:
        pickle.UnpicklingError: damaged, or :class:`Forbidden`.
    """
    try:
        return _Unpickler(file).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # what a damaged or hostile file makes of the opcodes: anything
        raise pickle.UnpicklingError(f"damaged ({type(error).__name__}: {error})") from error
