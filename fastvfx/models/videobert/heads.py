"""What is read from the hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def initialise(module: nn.Module, deviation: float) -> None:
    """BERT's beginning: weights, vectors and places are normal, biases 0, norms leave things as they are."""
    for name, parameter in module.named_parameters():
        if "norm" in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=deviation)


class Transform(nn.Module):
    """BERT's layer in front of a prediction."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.gelu(self.dense(x)))


class TokenHead(nn.Module):
    """Logits of tokens: the products with the vectors that embed them, and a bias for each."""

    def __init__(self, hidden: int, n_tokens: int) -> None:
        super().__init__()
        self.transform = Transform(hidden)
        self.bias = nn.Parameter(torch.zeros(n_tokens))

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """(..., hidden), with vectors (n_tokens, hidden), to (..., n_tokens)."""
        return nn.functional.linear(self.transform(x), vectors, self.bias)


class FeatureHead(nn.Module):
    """What was hidden, predicted as numbers: (..., hidden) to (..., dim)."""

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        self.transform = Transform(hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.transform(x))


class Pooler(nn.Module):
    """BERT's vector of the whole sequence: tanh of a layer on ``[CLS]``, (B, N, hidden) to (B, hidden)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))
