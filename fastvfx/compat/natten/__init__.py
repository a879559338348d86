"""NATTEN's neighbourhood attention, without its library to build, on CPU and GPU, gradients included.

>>> import fastvfx.compat.natten
>>> fastvfx.compat.natten.install("natten")
>>> from natten import NeighborhoodAttention2D, na3d  # theirs is not needed

The names and signatures are those of NATTEN 0.21. Arguments that choose a kernel of theirs or tune it change no result
and are ignored: ``backend``, all tile sizes and shapes, ``backward_kv_splits``, ``backward_use_pt_reduction``,
``run_persistent_kernel``, ``kernel_schedule``, ``torch_compile``, ``use_autograd_fix``; as are the settings of
:mod:`.context`. What NATTEN has lost, or never had, is here by keyword: ``rpb`` (relative position bias, with its
gradient), dropout of the weights in the modules, a kernel of 1, second derivatives; and ``natten2dqkrpb`` with
``natten2dav`` and their kin of one and three axes, which left with 0.20 and which transformers' DiNAT imports.

Not here: the profiler, and the lists of kernel configurations (``get_configs_for_...``).
"""

from __future__ import annotations

from types import ModuleType

from . import context, functional, modules
from .context import (
    allow_flex_compile,
    allow_flex_compile_backprop,
    are_deterministic_algorithms_enabled,
    disable_flex_compile,
    disable_flex_compile_backprop,
    get_memory_usage_preference,
    is_flex_compile_allowed,
    is_flex_compile_backprop_allowed,
    is_kv_parallelism_in_fused_na_enabled,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    set_memory_usage_preference,
    use_deterministic_algorithms,
    use_kv_parallelism_in_fused_na,
)
from .functional import attention, merge_attentions, na1d, na2d, na3d, neighborhood_attention_generic
from .modules import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

__version__ = "0.21.7"  # whose signatures these are: programs ask
HAS_LIBNATTEN = True  # "is there a fused kernel"

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "attention",
    "context",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "functional",
    "get_memory_usage_preference",
    "install",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "merge_attentions",
    "modules",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention_generic",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_kv_parallelism_in_fused_na",
]


def install(name: str = "natten") -> ModuleType:
    """Serve ``import name`` and its modules from here. Call it before anything imports them.

    Returns:
        The module that was installed.
    """
    import fastvfx.compat.natten as package

    from .._install import install_as

    return install_as(name, package)
