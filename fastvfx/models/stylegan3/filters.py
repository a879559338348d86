"""Low-pass filters: sinc and jinc under Kaiser's window."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def kaiser_beta(taps: int, width: float) -> float:
    """Shape of Kaiser's window whose transition band is as wide as given.

    Args:
        taps: of the window.
        width: of the transition band, as a fraction of half the sampling rate.

    Kaiser's estimates: the attenuation in decibels that so many taps reach, and the shape that reaches it (Oppenheim
    and Schafer, "Discrete-Time Signal Processing", section 7.5).
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def lowpass_filter(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor | None:
    r"""A low-pass filter with a gain of 1 for constants.

    Args:
        taps: along an axis; 1 is no filter.
        cutoff: frequency at the middle of the transition band.
        width: of the transition band.
        rate: sampling rate, in the unit of ``cutoff`` and ``width``.
        radial: the 2-D filter whose passband is a disc, in place of a 1-D filter for both axes.

    Returns:
        float32, ``(taps,)``, or ``(taps, taps)`` if radial, or ``None``.

    The ideal responses, :math:`2 f_c\, sinc(2 f_c x)` and :math:`f_c J_1(2 \pi f_c r) / r`, cut off with Kaiser's
    window along both axes (Karras et al., "Alias-Free Generative Adversarial Networks", 2021, appendix C.1).
    """
    if taps == 1:
        return None
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    window = np.kaiser(taps, kaiser_beta(taps, width / (rate / 2)))
    if radial:
        f = jinc(np.hypot(x[:, None], x[None, :]), cutoff) * np.outer(window, window)
    else:
        f = np.sinc(2 * cutoff * x) * window
    return torch.as_tensor(f / f.sum(), dtype=torch.float32)


def jinc(r: npt.NDArray[np.float64], cutoff: float) -> npt.NDArray[np.float64]:
    """Response of a disc of frequencies below ``cutoff`` at the radii ``r``, up to a factor."""
    at_centre = r == 0
    r = np.where(at_centre, 1.0, r)
    bessel = torch.special.bessel_j1(torch.from_numpy(2 * math.pi * cutoff * r)).numpy()
    return np.where(at_centre, math.pi * cutoff, bessel / r)
