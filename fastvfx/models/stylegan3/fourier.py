"""The input of the synthesis network: waves that a style can turn and shift."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...convolution import EqualizedLinear
from .schedule import Signal


class SynthesisInput(nn.Module):
    r"""Fourier features: a fixed set of plane waves, turned and shifted by the style, and mixed by a learned matrix.

    .. math:: y_c(p) = \tfrac{1}{\sqrt C} \sum_k W_{ck}\, a_k \sin 2 \pi (f_k \cdot T p + \phi_k)

    (Karras et al., "Alias-Free Generative Adversarial Networks", 2021, section 3.1 and appendix C.4) with :math:`T`
    the style's rotation and translation in front of ``transform``. Waves that ``transform`` brings out of the band
    fade out (:math:`a_k`).

    Args:
        w_dim: dimension of styles.
        signal: what shall come out.

    Attributes:
        transform: ``(3, 3)`` buffer, the inverse of a transformation of the image that the user may set, in units of
            the image's width.
        freqs, phases: ``(channels, 2)`` and ``(channels,)`` buffers, uniform in the passband's disc and in a cycle.
        affine: from w to cosine and sine of an angle (of any length), and a translation; no transformation at first.
        weight: ``(channels, channels)``.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, signal: Signal) -> None:
        super().__init__()
        self.signal = signal
        channels = signal.channels
        radius = signal.cutoff * torch.rand(channels).sqrt()
        angle = 2 * math.pi * torch.rand(channels)
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualizedLinear(w_dim, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias[0] = 1  # type: ignore[index]
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", torch.stack([radius * angle.cos(), radius * angle.sin()], 1))
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        """Styles (N, w_dim) to features (N, channels, size, size)."""
        freqs, phases = self._turned(w)
        signal = self.signal
        # Waves beyond the band would alias; between its end and half the sampling rate they fade.
        beyond = freqs.norm(dim=2) - signal.cutoff
        amplitudes = (1 - beyond / (signal.rate / 2 - signal.cutoff)).clamp(0, 1)  # (N, C)
        centres = (torch.arange(signal.size, dtype=w.dtype, device=w.device) + 0.5 - signal.size / 2) / signal.rate
        along_x = freqs[:, :, 0, None, None] * centres  # (N, C, 1, size)
        along_y = freqs[:, :, 1, None, None] * centres[:, None]  # (N, C, size, 1)
        cycles = along_x + along_y + phases[:, :, None, None]
        waves = torch.sin(2 * math.pi * cycles) * amplitudes[:, :, None, None]
        mixed = (self.weight / math.sqrt(signal.channels)) @ waves.flatten(2)  # (N, C, size^2)
        return mixed.unflatten(2, (signal.size, signal.size))

    def _turned(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Frequencies (N, C, 2) and phases (N, C) under the style's transformation and the user's."""
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cosine, sine, shift = t[:, 0], t[:, 1], t[:, 2:]
        rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)  # (N, 2, 2)
        # p -> R (A p + b - shift), A and b the user's matrix and translation
        linear = rotation @ self.transform[:2, :2]
        translation = rotation @ (self.transform[:2, 2] - shift)[:, :, None]  # (N, 2, 1)
        phases = self.phases + (self.freqs @ translation).squeeze(2)
        return self.freqs @ linear, phases

    def extra_repr(self) -> str:
        return str(self.signal)
