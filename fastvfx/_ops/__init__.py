"""Registration of every operator as ``torch.ops.fastvfx.*``."""

from . import composite, mlp

__all__ = ["composite", "mlp"]
