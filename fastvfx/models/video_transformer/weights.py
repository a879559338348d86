"""Released weights of TimeSformer, ViViT and Video Swin in our encoders: their names become ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...attention_blocks import relative_bias_of_swin
from .._tensors import read_tensors
from ..checkpoint import CheckpointError, PathLike, fill
from .config import SwinConfig, VideoTransformerConfig
from .encoder import VideoTransformer
from .swin import SwinTransformer3d

M = TypeVar("M", bound=nn.Module)

#: Ours to the names that others have for it; a tuple is stacked.
_Names = Mapping[str, Sequence[str | tuple[str, ...]]]

_HEAD_DIM = 64  # of all released TimeSformers and ViViTs

# Hugging Face's names, then those of github.com/facebookresearch/TimeSformer.
_TIMESFORMER: _Names = {
    "embed.project": ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    "norm": ("layernorm", "norm"),
}
_JOINT: _Names = {
    "norm1": ("encoder.layer.{i}.layernorm_before", "blocks.{i}.norm1"),
    "attention.qkv": ("encoder.layer.{i}.attention.attention.qkv", "blocks.{i}.attn.qkv"),
    "attention.out": ("encoder.layer.{i}.attention.output.dense", "blocks.{i}.attn.proj"),
    "norm2": ("encoder.layer.{i}.layernorm_after", "blocks.{i}.norm2"),
    "mlp.0": ("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.fc1"),
    "mlp.3": ("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.fc2"),
}
_DIVIDED: _Names = {
    "time_norm": ("encoder.layer.{i}.temporal_layernorm", "blocks.{i}.temporal_norm1"),
    "time.qkv": ("encoder.layer.{i}.temporal_attention.attention.qkv", "blocks.{i}.temporal_attn.qkv"),
    "time.out": ("encoder.layer.{i}.temporal_attention.output.dense", "blocks.{i}.temporal_attn.proj"),
    "time_out": ("encoder.layer.{i}.temporal_dense", "blocks.{i}.temporal_fc"),
    "space_norm": _JOINT["norm1"],
    "space.qkv": _JOINT["attention.qkv"],
    "space.out": _JOINT["attention.out"],
    "norm": _JOINT["norm2"],
    "mlp.0": _JOINT["mlp.0"],
    "mlp.3": _JOINT["mlp.3"],
}

# What transformers' files hold, then what its models hold since version 5.
_VIVIT: _Names = {"embed.project": ("embeddings.patch_embeddings.projection",), "norm": ("layernorm",)}
_VIVIT_LAYER: _Names = {
    "norm1": ("encoder.layer.{i}.layernorm_before", "layers.{i}.layernorm_before"),
    "attention.qkv": (
        tuple(f"encoder.layer.{{i}}.attention.attention.{x}" for x in ("query", "key", "value")),
        tuple(f"layers.{{i}}.attention.{x}_proj" for x in "qkv"),
    ),
    "attention.out": ("encoder.layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj"),
    "norm2": ("encoder.layer.{i}.layernorm_after", "layers.{i}.layernorm_after"),
    "mlp.0": ("encoder.layer.{i}.intermediate.dense", "layers.{i}.mlp.fc1"),
    "mlp.3": ("encoder.layer.{i}.output.dense", "layers.{i}.mlp.fc2"),
}

# torchvision's names, then those of github.com/SwinTransformer/Video-Swin-Transformer.
_SWIN: _Names = {
    "embed.project": ("patch_embed.proj",),
    "embed_norm": ("patch_embed.norm",),
    "norm": ("norm",),
}
_SWIN_BLOCK: _Names = {
    "norm1": ("features.{even}.{i}.norm1", "layers.{stage}.blocks.{i}.norm1"),
    "attention.qkv": ("features.{even}.{i}.attn.qkv", "layers.{stage}.blocks.{i}.attn.qkv"),
    "attention.out": ("features.{even}.{i}.attn.proj", "layers.{stage}.blocks.{i}.attn.proj"),
    "norm2": ("features.{even}.{i}.norm2", "layers.{stage}.blocks.{i}.norm2"),
    "mlp.0": ("features.{even}.{i}.mlp.0", "layers.{stage}.blocks.{i}.mlp.fc1"),
    "mlp.3": ("features.{even}.{i}.mlp.3", "layers.{stage}.blocks.{i}.mlp.fc2"),
}
_SWIN_MERGING: _Names = {
    "norm": ("features.{odd}.norm", "layers.{before}.downsample.norm"),
    "reduction": ("features.{odd}.reduction", "layers.{before}.downsample.reduction"),
}
_CLASSES = ("classifier", "head", "cls_head.fc_cls")


def load_timesformer(
    weights: PathLike | Mapping[str, Tensor], *, n_heads: int | None = None, size: tuple[int, int] | None = None
) -> VideoTransformer:
    """A TimeSformer (Bertasius et al., 2021) with divided or joint attention.

    It takes clips ``(batch, frames, 3, height, width)``, normalised as in its training.

    Args:
        weights: a file, or a state dict, in the names of Hugging Face's or of the authors' code.
        n_heads: heads of the attention, which no name tells; ``None``: one for each 64 channels.
        size: height and width of the clips in pixels; ``None``: squares.

    Returns:
        The model in evaluation mode, with its classes if the file has them.

    Raises:
        CheckpointError: the file can't be read, lacks something, or has something that this model has no place for.
    """
    source = _Source(weights, "load_timesformer", ("timesformer.", "model."))
    state = source.modules(_TIMESFORMER)
    cls, places = source.take_class("cls_token", "embeddings.cls_token", "pos_embed", "embeddings.position_embeddings")
    times = source.take("time_embed", "embeddings.time_embeddings")[0]  # (T, dim)
    project = state["embed.project.weight"][:, :, None]  # (dim, channels, 1, p, p): a patch has one frame
    state["embed.project.weight"] = project
    patch = project.shape[2:]
    height, width = (math.isqrt(len(places)) * p for p in patch[1:]) if size is None else size
    clip = (len(times), height, width)
    source.check_positions(places, clip, (clip[0], *patch[1:]), "size")
    divided = source.has("blocks.0.temporal_fc.weight", "encoder.layer.0.temporal_dense.weight")
    depth = source.fill_layers(state, "blocks.{i}", _DIVIDED if divided else _JOINT)
    config = VideoTransformerConfig(
        "divided" if divided else "joint",
        clip=clip,
        patch=_three(patch),
        channels=project.shape[1],
        dim=project.shape[0],
        depth=depth,
        n_heads=max(project.shape[0] // _HEAD_DIM, 1) if n_heads is None else n_heads,
        mlp_ratio=_ratio(state["blocks.0.mlp.0.weight"]),
        norm_eps=1e-6,
        n_classes=source.fill_classes(state),
    )
    state |= {"cls": cls, "time_position": times[:, None, None]}
    state["space_position"] = places.unflatten(0, config.grid[1:])[None]
    return source.filled(VideoTransformer(config), state)


def load_vivit(
    weights: PathLike | Mapping[str, Tensor],
    *,
    n_heads: int | None = None,
    clip: tuple[int, int, int] = (32, 224, 224),
) -> VideoTransformer:
    """A ViViT with joint attention, the first model of Arnab et al. (2021), which is the one that Hugging Face has.

    It takes clips ``(batch, frames, 3, height, width)``, normalised as in its training.

    Args:
        weights: a file, or a state dict, in the names of Hugging Face's code. What ``VivitModel`` adds to the class
            token for pooling is left out.
        n_heads: heads of the attention, which no name tells; ``None``: one for each 64 channels.
        clip: frames, height and width in pixels, which the table of positions does not tell apart.

    Returns:
        The model in evaluation mode, with its classes if the file has them.

    Raises:
        CheckpointError: the file can't be read, lacks something, or has something that this model has no place for.
    """
    source = _Source(weights, "load_vivit", ("vivit.",), ignored=("pooler.",))
    state = source.modules(_VIVIT)
    cls, places = source.take_class("embeddings.cls_token", "embeddings.position_embeddings")
    project = state["embed.project.weight"]  # (dim, channels, frames, rows, columns)
    patch = project.shape[2:]
    source.check_positions(places, clip, patch, "clip")
    depth = source.fill_layers(state, "blocks.{i}", _VIVIT_LAYER)
    config = VideoTransformerConfig(
        "joint",
        clip=clip,
        patch=_three(patch),
        channels=project.shape[1],
        dim=project.shape[0],
        depth=depth,
        n_heads=max(project.shape[0] // _HEAD_DIM, 1) if n_heads is None else n_heads,
        mlp_ratio=_ratio(state["blocks.0.mlp.0.weight"]),
        positions="joint",
        norm_eps=1e-6,
        gelu="tanh",
        n_classes=source.fill_classes(state),
    )
    state |= {"cls": cls, "position": places.unflatten(0, config.grid)}
    return source.filled(VideoTransformer(config), state)


def load_swin3d(
    weights: PathLike | Mapping[str, Tensor], *, window: tuple[int, int, int] | None = None
) -> SwinTransformer3d:
    """A Video Swin transformer (Liu et al., 2022).

    It takes clips ``(batch, frames, 3, height, width)``, normalised as in its training; torchvision's has channels
    before frames. Where a stage has fewer rows or columns than a window (clips of less than 224 pixels), torchvision
    and the authors read the table of biases as if it were a smaller one; here a distance stays a distance.

    Args:
        weights: a file, or a state dict, in the names of torchvision's or of the authors' code.
        window: tokens of a window in time, height and width; ``None``: as the tables tell, of square ones.

    Returns:
        The model in evaluation mode, with its classes if the file has them.

    Raises:
        CheckpointError: the file can't be read, lacks something, or has something that this model has no place for.
    """
    source = _Source(weights, "load_swin3d", ("backbone.",))
    state = source.modules(_SWIN)
    project = state["embed.project.weight"]  # (dim, channels, frames, rows, columns)
    depths: list[int] = []
    heads: list[int] = []
    number = 0
    while True:
        stage = len(depths)
        at = {"stage": stage, "even": 2 * stage, "odd": 2 * stage - 1, "before": stage - 1}
        if stage:
            if not source.has_module(_SWIN_MERGING["reduction"], at):
                break
            state |= source.modules(_SWIN_MERGING, f"stages.{number}", at)
            number += 1
        depth = 0
        while source.has_module(_SWIN_BLOCK["norm1"], at | {"i": depth}):
            here = at | {"i": depth}
            ours = f"stages.{number}"
            state |= source.modules(_SWIN_BLOCK, ours, here)
            theirs = [name.format(**here) for name in ("features.{even}.{i}.attn", "layers.{stage}.blocks.{i}.attn")]
            table = source.take(*(f"{name}.relative_position_bias_table" for name in theirs))
            index = source.take_or_none(*(f"{name}.relative_position_index" for name in theirs))
            window = source.window(table, index) if window is None else window
            state[f"{ours}.attention.relative_bias"] = relative_bias_of_swin(table, window)
            depth, number = depth + 1, number + 1
        depths.append(depth)
        heads.append(table.shape[1] if depth else 0)
    if not all(depths) or window is None:
        raise CheckpointError(f"{source.where}: expected blocks in every stage, got {depths}")
    config = SwinConfig(
        patch=_three(project.shape[2:]),
        channels=project.shape[1],
        dim=project.shape[0],
        depths=tuple(depths),
        n_heads=tuple(heads),
        window=window,
        mlp_ratio=_ratio(state["stages.0.mlp.0.weight"]),
        n_classes=source.fill_classes(state),
    )
    return source.filled(SwinTransformer3d(config), state)


class _Source:
    """The tensors of others, taken one after the other, so that what is left over can be told."""

    def __init__(
        self,
        weights: PathLike | Mapping[str, Tensor],
        owner: str,
        prefixes: Sequence[str],
        ignored: tuple[str, ...] = (),
    ) -> None:
        given = isinstance(weights, Mapping)
        self.where = f"fastvfx.models.video_transformer.{owner}" if given else str(weights)
        tensors = weights if isinstance(weights, Mapping) else read_tensors(weights)
        self.left: dict[str, Tensor] = {}
        for name, x in tensors.items():
            short = next((name[len(p) :] for p in prefixes if name.startswith(p)), name)
            if not short.startswith(ignored):
                self.left[short] = x.detach()

    def has(self, *names: str) -> bool:
        """Whether one of them is still there."""
        return any(name in self.left for name in names)

    def has_module(self, aliases: Sequence[str | tuple[str, ...]], at: Mapping[str, int]) -> bool:
        """Whether a weight of one of these names is."""
        return self.has(*(f"{_parts(alias, at)[0]}.weight" for alias in aliases))

    def take_or_none(self, *names: str) -> Tensor | None:
        """The first of these that is there."""
        return next((self.left.pop(name) for name in names if name in self.left), None)

    def take(self, *names: str) -> Tensor:
        """The first of these that is there."""
        x = self.take_or_none(*names)
        if x is None:
            raise CheckpointError(f"{self.where}: expected {' or '.join(names)}, got no tensor of that name")
        return x

    def take_class(self, *names: str) -> tuple[Tensor, Tensor]:
        """The class token (1, 1, dim) at its position, and the positions (N, dim) of the others."""
        half = len(names) // 2
        cls, positions = self.take(*names[:half]), self.take(*names[half:])
        return cls + positions[:, :1], positions[0, 1:]

    def modules(self, names: _Names, ours: str = "", at: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """Weights and biases by our names; projections to queries, keys and values may lack a bias, which is then 0."""
        at = {} if at is None else at
        state = {}
        for name, aliases in names.items():
            found = [alias for alias in aliases if self.has_module([alias], at)] or aliases[:1]
            parts = _parts(found[0], at)
            name = f"{ours}.{name}" if ours else name
            weight = state[f"{name}.weight"] = torch.cat([self.take(f"{part}.weight") for part in parts])
            if name.endswith("reduction"):
                continue
            if name.endswith("qkv") and not self.has(f"{parts[0]}.bias"):
                state[f"{name}.bias"] = weight.new_zeros(len(weight))
            else:
                state[f"{name}.bias"] = torch.cat([self.take(f"{part}.bias") for part in parts])
        return state

    def fill_layers(self, state: dict[str, Tensor], ours: str, names: _Names) -> int:
        """All layers, and how many there are."""
        depth = 0
        first = next(iter(names.values()))
        while depth == 0 or self.has_module(first, {"i": depth}):
            state |= self.modules(names, ours.format(i=depth), {"i": depth})
            depth += 1
        return depth

    def fill_classes(self, state: dict[str, Tensor]) -> int:
        """The last layer, and how many classes it has: 0 without one."""
        if not any(self.has(f"{name}.weight") for name in _CLASSES):
            return 0
        state |= self.modules({"head": _CLASSES})
        return len(state["head.weight"])

    def check_positions(self, places: Tensor, clip: Sequence[int], patch: Sequence[int], argument: str) -> None:
        """Learned positions must be those of a clip."""
        n = math.prod(c // p for c, p in zip(clip, patch, strict=True))
        if n != len(places) or any(c % p for c, p in zip(clip, patch, strict=True)):
            raise CheckpointError(
                f"{self.where}: expected {argument} with as many patches as the {len(places)} positions that were "
                f"learned, got {tuple(clip)} in patches of {tuple(patch)}"
            )

    def window(self, table: Tensor, index: Tensor | None) -> tuple[int, int, int]:
        """The window (t, s, s) whose (2 t - 1) (2 s - 1)^2 distances and t s^2 tokens these are."""
        if index is not None:
            for s in range(1, math.isqrt(len(index)) + 1):
                t = len(index) // s**2
                if t * s**2 == len(index) and (2 * t - 1) * (2 * s - 1) ** 2 == len(table):
                    return t, s, s
        tells = "no relative_position_index" if index is None else f"{len(index)} tokens and {len(table)} distances"
        raise CheckpointError(f"{self.where}: expected the argument window, got {tells}, which tell no square window")

    def filled(self, model: M, state: dict[str, Tensor]) -> M:
        """The model with all of that, and nothing of the file left over."""
        if self.left:
            raise CheckpointError(
                f"{self.where}: expected only what the model has a place for, got {sorted(self.left)[0]} "
                f"({len(self.left)} tensors are left over)"
            )
        fill(model, state, self.where)
        return model.eval()


def _parts(alias: str | tuple[str, ...], at: Mapping[str, int]) -> list[str]:
    return [part.format(**at) for part in ((alias,) if isinstance(alias, str) else alias)]


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    t, h, w = sizes
    return t, h, w


def _ratio(weight: Tensor) -> float:
    """That of a feed-forward layer by its first weight: (inner, dim)."""
    inner, dim = weight.shape
    ratio = inner / dim
    return ratio if int(dim * ratio) == inner else math.nextafter(ratio, math.inf)
