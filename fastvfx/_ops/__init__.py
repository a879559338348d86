"""Registration of every operator as ``torch.ops.fastvfx.*``."""

from . import composite

__all__ = ["composite"]
