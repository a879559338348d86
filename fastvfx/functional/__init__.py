"""Every public operator, as functions of tensors. The modules of ``fastvfx`` are these with parameters."""

from .composite import CompositeOutput, composite, composite_alphas
from .mlp import mlp
from .spherical_harmonics import spherical_harmonics

__all__ = ["CompositeOutput", "composite", "composite_alphas", "mlp", "spherical_harmonics"]
