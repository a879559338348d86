"""Every public operator, as functions of tensors. The modules of ``fastvfx`` are these with parameters."""

from .composite import CompositeOutput, composite, composite_alphas

__all__ = ["CompositeOutput", "composite", "composite_alphas"]
