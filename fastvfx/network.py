"""Small fully connected networks as a module."""

from __future__ import annotations

from itertools import pairwise
from typing import cast, get_args

import torch
from torch import Tensor, nn

from .functional.mlp import Activation, mlp

#: The names that tiny-cuda-nn's configurations use, beside our own.
_SYNONYMS = {"leakyrelu": "leaky_relu", "exponential": "exp"}


def _activation(option: str, name: str) -> Activation:
    lower = name.lower()
    kind = _SYNONYMS.get(lower, lower)
    if kind not in get_args(Activation):
        names = ", ".join(get_args(Activation))
        raise ValueError(f"fastvfx.MLP: expected {option} to be one of {names}, got {name!r}")
    return cast(Activation, kind)


class Layer(nn.Module):
    """The parameters of one layer: ``weight`` (n_out, n_in) and ``bias`` (n_out,) or ``None``, not yet filled."""

    bias: nn.Parameter | None

    def __init__(
        self, n_in: int, n_out: int, bias: bool, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(n_out, dtype=dtype, device=device)) if bias else None

    def extra_repr(self) -> str:
        n_out, n_in = self.weight.shape
        return f"{n_in}, {n_out}, bias={self.bias is not None}"


class MLP(nn.Module):
    """:func:`fastvfx.mlp` with its weights: ``n_hidden_layers`` hidden layers of ``n_neurons``.

    Args:
        n_input_dims, n_output_dims: any widths; none is padded in what the optimiser and ``state_dict`` see.
        n_neurons: width of the hidden layers; 16, 32, 64 and 128 are the fast ones.
        n_hidden_layers: 0 to 15.
        activation, output_activation: ``"None"``, ``"ReLU"``, ``"LeakyReLU"``, ``"Sigmoid"``, ``"Tanh"``,
            ``"Softplus"``, ``"Exponential"``, ``"Sine"``, in any case, or as in :func:`fastvfx.mlp`.
        bias: also learn a bias in every layer, zero at first.
        dtype, device: of the parameters; the output has the dtype of the input.
        compute_dtype: what the parameters are cast to for the computation, if not ``dtype``. ``torch.bfloat16`` is
            about twice as fast on processors with AVX512-BF16; the optimiser still sees ``dtype``.
        seed: makes the initial weights reproducible; without it they come from torch's global generator.

    Attributes:
        layers: one :class:`Layer` a layer, whose ``weight`` (and ``bias``) are the parameters, shaped and named as in
            ``torch.nn.Linear``. Weights start uniform after Glorot and Bengio (2010).

    >>> net = fastvfx.MLP(32, 3, n_neurons=64, n_hidden_layers=2, output_activation="Sigmoid")
    >>> net(torch.rand(1000, 32)).shape
    torch.Size([1000, 3])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 64,
        n_hidden_layers: int = 2,
        activation: str = "ReLU",
        output_activation: str = "None",
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= n_hidden_layers <= 15:
            raise ValueError(f"fastvfx.MLP: expected n_hidden_layers from 0 to 15, got {n_hidden_layers}")
        widths = [n_input_dims, *[n_neurons] * n_hidden_layers, n_output_dims]
        if min(widths) < 1:
            raise ValueError(f"fastvfx.MLP: expected positive widths, got {widths}")
        self.activation = _activation("activation", activation)
        self.output_activation = _activation("output_activation", output_activation)
        self.compute_dtype = compute_dtype
        self.layers = nn.ModuleList(Layer(n_in, n_out, bias, dtype, device) for n_in, n_out in pairwise(widths))
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw new weights, always on the CPU, so that a seed means the same ones everywhere."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self._typed_layers():
                start = nn.init.xavier_uniform_(torch.empty(layer.weight.shape, device="cpu"), generator=generator)
                layer.weight.copy_(start)
                if layer.bias is not None:
                    layer.bias.zero_()

    def _typed_layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_input_dims) to (..., n_output_dims)."""
        layers = self._typed_layers()
        dtype = layers[0].weight.dtype if self.compute_dtype is None else self.compute_dtype
        weights = [layer.weight.to(dtype) for layer in layers]
        biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
        return mlp(x, weights, biases or None, self.activation, self.output_activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation}, output_activation={self.output_activation}"
