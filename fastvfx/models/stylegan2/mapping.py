"""The mapping network: from latents and labels to styles."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedLinear
from ...normalization import PixelNorm
from .config import MappingConfig


class MappingNetwork(nn.Module):
    """Latents z (and labels c) to styles w, one for each layer of the synthesis.

    Both are normalised to a mean square of 1, the label after its embedding, and go through ``num_layers`` fully
    connected layers (Karras et al., StyleGAN, 2019, section 2).

    Args:
        z_dim: dimension of latents; 0 for none.
        c_dim: dimension of labels; 0 for none.
        w_dim: dimension of styles.
        num_ws: how often the style is repeated; ``None`` returns it once, without a dimension for it.
        config: everything else.

    Attributes:
        w_avg: ``(w_dim,)``, the moving average of w that truncation pulls towards.
    """

    w_avg: Tensor

    def __init__(
        self, z_dim: int, c_dim: int, w_dim: int, num_ws: int | None, config: MappingConfig | None = None
    ) -> None:
        super().__init__()
        config = MappingConfig() if config is None else config
        if z_dim + c_dim == 0 or config.num_layers < 0:
            raise ValueError(
                "fastvfx.stylegan2.MappingNetwork: expected z_dim or c_dim above 0 and num_layers of at least 0, got "
                f"z_dim={z_dim}, c_dim={c_dim}, num_layers={config.num_layers}"
            )
        self.config = config
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.normalize = PixelNorm()
        embedded = 0
        if c_dim > 0:
            embedded = w_dim if config.embed_features is None else config.embed_features
            self.embed = EqualizedLinear(c_dim, embedded)
        between = w_dim if config.layer_features is None else config.layer_features
        widths = [z_dim + embedded, *[between] * (config.num_layers - 1), w_dim]
        for k in range(config.num_layers):
            layer = EqualizedLinear(widths[k], widths[k + 1], act=config.activation, lr_multiplier=config.lr_multiplier)
            self.add_module(f"fc{k}", layer)
        if num_ws is not None and config.w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Styles for latents.

        Args:
            z: latents ``(N, z_dim)`` from N(0, 1), or ``None`` if ``z_dim`` is 0.
            c: labels ``(N, c_dim)``; ignored if ``c_dim`` is 0.
            truncation_psi: 1 leaves styles as they are, 0 makes all of them their average.
            truncation_cutoff: how many of the repeated styles that applies to, from the first; ``None`` for all.
            update_emas: take these styles into the average.

        Returns:
            ``(N, num_ws, w_dim)``, or ``(N, w_dim)`` without ``num_ws``.

        Raises:
            ValueError: shapes do not fit, or truncation without an average.
        """
        x = self._features(z, c)
        for k in range(self.config.num_layers):
            x = self.get_submodule(f"fc{k}")(x)
        beta = self.config.w_avg_beta
        tracked = self.num_ws is not None and beta is not None
        if update_emas and tracked:
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, cast(float, beta)))
        if truncation_psi != 1 and not tracked:
            raise ValueError(
                "fastvfx.stylegan2.MappingNetwork: expected truncation_psi=1 without an average of w, "
                f"got {truncation_psi}"
            )
        if self.num_ws is None:
            return x
        if truncation_psi == 1:
            return x[:, None].repeat(1, self.num_ws, 1)
        cutoff = self.num_ws if truncation_cutoff is None else min(truncation_cutoff, self.num_ws)
        truncated = self.w_avg.lerp(x, truncation_psi)
        return torch.cat(
            [truncated[:, None].expand(-1, cutoff, -1), x[:, None].expand(-1, self.num_ws - cutoff, -1)], 1
        )

    def _features(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        """Normalised latents and embedded labels, ``(N, z_dim + embed_features)``, in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        parts = []
        if self.z_dim > 0:
            parts.append(self.normalize(self._checked("z", z, self.z_dim).to(dtype)))
        if self.c_dim > 0:
            parts.append(self.normalize(self.embed(self._checked("c", c, self.c_dim).to(dtype))))
        if len({part.shape[0] for part in parts}) > 1:
            raise ValueError(
                "fastvfx.stylegan2.MappingNetwork: expected as many labels as latents, "
                f"got z of shape {tuple(cast(Tensor, z).shape)} and c of shape {tuple(cast(Tensor, c).shape)}"
            )
        return torch.cat(parts, 1)

    @staticmethod
    def _checked(name: str, x: Tensor | None, dim: int) -> Tensor:
        op = "stylegan2.MappingNetwork"
        _check.is_tensor(op, name, x)
        x = cast(Tensor, x)
        if x.dim() != 2 or x.shape[1] != dim:
            raise ValueError(f"fastvfx.{op}: expected {name} of shape (N, {dim}), got {tuple(x.shape)}")
        return x

    def extra_repr(self) -> str:
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"
