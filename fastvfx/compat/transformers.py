"""Hugging Face transformers' models on our attention.

>>> import fastvfx.compat.transformers
>>> fastvfx.compat.transformers.register()
>>> model = AutoModel.from_pretrained("google/vivit-b-16x2-kinetics400", attn_implementation="fastvfx")

Everything in transformers 5 that looks its attention up by name runs so: BERT, ViViT and VideoMAE among them.
TimeSformer takes any name and computes its attention itself all the same; for it, and for models that exist already:

>>> model = TimesformerModel.from_pretrained("facebook/timesformer-base-finetuned-k400")
>>> fastvfx.compat.transformers.install(model)

Padding, causal and arbitrary masks, caches, grouped heads, ``softcap`` and dropout are those of the model; a mask of
padding stays (batch, keys) instead of a matrix. Attention weights are not returned: ``output_attentions`` needs
``"eager"``. A query that may attend nothing gets 0, where eager attention gives it the mean of all values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from ..functional.scaled_dot_product_attention import attend_sequence, bias_or_kv_mask, random_seed

require("transformers", extra="transformers", purpose="running its models on our attention")

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel  # noqa: E402
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask  # noqa: E402
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention  # noqa: E402

__all__ = ["attention_forward", "attention_mask", "install", "register"]

OP = "compat.transformers"


def register(name: str = "fastvfx") -> None:
    """Make ``attn_implementation=name`` work in every model that dispatches by name. Any number of times."""
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask)


def install(model: PreTrainedModel, name: str = "fastvfx") -> PreTrainedModel:
    """Run ``model`` on our attention from now on, in place; parameters and state dict stay as they are.

    Returns:
        ``model``.

    Raises:
        ValueError: the model neither looks its attention up by name nor is a TimeSformer.
    """
    register(name)
    swapped = [module for module in model.modules() if type(module) is TimesformerSelfAttention]
    for module in swapped:
        module.__class__ = _TimesformerSelfAttention
    if model._supports_attention_backend:
        model.set_attn_implementation(name)
    elif not swapped:
        raise ValueError(
            f"fastvfx.{OP}: expected a TimeSformer or a model that looks its attention up by name, got "
            f"{type(model).__name__}"
        )
    return model


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What :class:`transformers.AttentionInterface` calls: heads before tokens in, tokens before heads out."""
    if kwargs.get("output_attentions"):
        raise ValueError(f"fastvfx.{OP}: expected attn_implementation='eager' with output_attentions, got 'fastvfx'")
    (batch, heads, L), S = query.shape[:3], key.shape[2]
    bias, kv_mask = bias_or_kv_mask(OP, attention_mask, torch.Size([batch]), heads, L, S)
    if position_bias is not None:
        bias = position_bias.expand(-1, heads, L, S) + (0 if bias is None else bias)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    out, _ = attend_sequence(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        # A mask says what is causal itself, and one query is the last.
        is_causal and attention_mask is None and L > 1,
        scale=scaling,
        bias=bias,
        kv_mask=kv_mask,
        softcap=softcap or 0.0,
        dropout=dropout,
        seed=random_seed(dropout),
    )
    return out, None


def attention_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """What :class:`transformers.AttentionMaskInterface` calls: the mask of PyTorch's attention, or shorter.

    Where only padding is masked, ``(batch, 1, 1, keys)`` says it; transformers would repeat that for every query.
    """
    padding = kwargs.get("attention_mask")
    if (
        kwargs.get("mask_function") is bidirectional_mask_function
        and kwargs.get("allow_is_bidirectional_skip")
        and padding is not None
        and padding.shape[-1] == kwargs.get("kv_length")
    ):
        return padding[:, None, None, :].bool()
    return sdpa_mask(*args, **kwargs)


class _TimesformerSelfAttention(TimesformerSelfAttention):
    """The original multiplies its matrices itself."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        # (B, N, heads, dim) each: views of one projection, read in place
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        out, _ = attention_forward(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            None,
            dropout=self.attn_drop.p if self.training else 0.0,
            scaling=self.scale,
            is_causal=False,
            output_attentions=output_attentions,
        )
        return (out.flatten(2),)
