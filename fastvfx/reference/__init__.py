"""Every operator in plain PyTorch: the fallback where no kernel was built, and the oracle of the tests."""

from .composite import composite
from .mlp import mlp

__all__ = ["composite", "mlp", "spherical_harmonics"]
from .spherical_harmonics import spherical_harmonics
