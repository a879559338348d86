"""The generator: mapping and synthesis."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...convolution import NoiseMode
from .config import GeneratorConfig
from .mapping import MappingNetwork
from .synthesis import SynthesisNetwork


class StyleGenerator(nn.Module):
    """What the generators of StyleGAN2 and StyleGAN3 have in common: all but how styles become images.

    Args:
        config: the shape of it; a ``GeneratorConfig`` of either.
        synthesis: from styles to images; says how many it takes (``num_ws``).
    """

    def __init__(self, config: Any, synthesis: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.z_dim, self.c_dim, self.w_dim = config.z_dim, config.c_dim, config.w_dim
        self.img_resolution, self.img_channels = config.img_resolution, config.img_channels
        self.synthesis = synthesis
        self.num_ws: int = synthesis.num_ws  # type: ignore[assignment]
        self.mapping = MappingNetwork(config.z_dim, config.c_dim, config.w_dim, self.num_ws, config.mapping)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        noise_mode: NoiseMode = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """Latents (N, z_dim) and labels (N, c_dim) to images (N, img_channels, img_resolution, img_resolution).

        See the ``forward`` of :class:`MappingNetwork` and of the synthesis network for the options.
        """
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, noise_mode, update_emas, force_fp32)


class Generator(StyleGenerator):
    """StyleGAN2's generator.

    Parameters and buffers have the names and shapes of NVIDIA's PyTorch release, so that ``load_state_dict`` takes its
    weights; :mod:`fastvfx.models.stylegan2.weights` opens its files and others'.

    Args:
        config: the shape of it.

    >>> generator = Generator(GeneratorConfig(img_resolution=64))
    >>> images = generator(torch.randn(4, 512), truncation_psi=0.7)  # (4, 3, 64, 64)
    """

    config: GeneratorConfig
    synthesis: SynthesisNetwork

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        config = GeneratorConfig() if config is None else config
        super().__init__(
            config, SynthesisNetwork(config.w_dim, config.img_resolution, config.img_channels, config.synthesis)
        )
