"""Registration of every operator as ``torch.ops.fastvfx.*``."""

from . import composite, mlp, spherical_harmonics

__all__ = ["composite", "mlp", "spherical_harmonics"]
