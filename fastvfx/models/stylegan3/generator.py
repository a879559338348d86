"""The generator: mapping and synthesis."""

from __future__ import annotations

from torch import Tensor, nn

from ...convolution import NoiseMode
from ..stylegan2 import MappingNetwork
from .config import GeneratorConfig
from .synthesis import SynthesisNetwork


class Generator(nn.Module):
    """StyleGAN3's generator, T or R. Its discriminator is :class:`fastvfx.models.stylegan2.Discriminator`.

    Parameters and buffers have the names and shapes of NVIDIA's PyTorch release, so that ``load_state_dict`` takes its
    weights; :mod:`fastvfx.models.stylegan3.weights` opens its files.

    Args:
        config: the shape of it.

    >>> generator = Generator(GeneratorConfig(img_resolution=64))
    >>> images = generator(torch.randn(4, 512), truncation_psi=0.7)  # (4, 3, 64, 64)
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = GeneratorConfig() if config is None else config
        self.z_dim, self.c_dim, self.w_dim = config.z_dim, config.c_dim, config.w_dim
        self.img_resolution, self.img_channels = config.img_resolution, config.img_channels
        self.synthesis = SynthesisNetwork(config.w_dim, config.img_resolution, config.img_channels, config.synthesis)
        self.num_ws = self.synthesis.num_ws
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

        The options are those of :meth:`fastvfx.models.stylegan2.MappingNetwork.forward` and of
        :meth:`SynthesisNetwork.forward`.
        """
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, noise_mode, update_emas, force_fp32)
