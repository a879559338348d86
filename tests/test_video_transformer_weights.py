"""Weights of others in our encoders: the same outputs as the code that they come from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvfx.models.checkpoint import CheckpointError
from fastvfx.models.video_transformer import load_swin3d, load_timesformer, load_vivit

transformers = pytest.importorskip("transformers")


def wide_awake(model: nn.Module) -> nn.Module:
    """Parameters of ordinary size: many start at 0, which hides errors."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.5 if p.dim() != 2 else 1.5 / p.shape[-1] ** 0.5))
    return model.eval()


def same(ours: nn.Module, clips: Tensor, theirs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(clips), theirs)


# --- TimeSformer ----------------------------------------------------------------------------------------------------


def timesformer(kind: str = "divided_space_time", **options: Any) -> nn.Module:
    """A small one of Hugging Face's."""
    options = {"attention_probs_dropout_prob": 0.0, "num_labels": 7, **options}
    config = transformers.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=3, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=320, attention_type=kind, **options,
    )  # fmt: skip
    return wide_awake(transformers.TimesformerForVideoClassification(config))


@pytest.mark.parametrize("kind", ["divided_space_time", "joint_space_time"])
def test_timesformer_of_hugging_face(kind: str) -> None:
    theirs, clips = timesformer(kind), torch.randn(2, 3, 3, 32, 32)
    ours = load_timesformer(theirs.state_dict())
    assert ours.config.attention == kind.partition("_")[0] and ours.config.n_classes == 7
    with torch.no_grad():
        same(ours, clips, theirs(clips).logits)


def test_features_without_classes_and_biases() -> None:
    theirs, clips = timesformer(qkv_bias=False).timesformer, torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        same(load_timesformer(theirs.state_dict()), clips, theirs(clips).last_hidden_state[:, 0])


def test_timesformer_in_its_authors_names(tmp_path: Path) -> None:
    """What Hugging Face's conversion renames, the other way around, in a file as the authors' training writes it."""
    theirs, clips = timesformer(), torch.randn(2, 3, 3, 32, 32)
    names = {
        "timesformer.embeddings.cls_token": "cls_token",
        "timesformer.embeddings.position_embeddings": "pos_embed",
        "timesformer.embeddings.time_embeddings": "time_embed",
        "timesformer.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "timesformer.encoder.layer": "blocks",
        "temporal_attention.attention.qkv": "temporal_attn.qkv",
        "temporal_attention.output.dense": "temporal_attn.proj",
        "temporal_dense": "temporal_fc",
        "attention.attention.qkv": "attn.qkv",
        "attention.output.dense": "attn.proj",
        "temporal_layernorm": "temporal_norm1",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "timesformer.layernorm": "norm",
        "classifier": "head",
    }
    state = {}
    for name, x in theirs.state_dict().items():
        for a, b in names.items():
            name = name.replace(a, b)
        state["model." + name] = x
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "weights.pyth")
    with torch.no_grad():
        same(load_timesformer(tmp_path / "weights.pyth"), clips, theirs(clips).logits)


def test_timesformer_of_clips_that_are_no_squares() -> None:
    theirs = timesformer()
    with pytest.raises(CheckpointError, match=r"expected size with as many patches as the 16 positions .*, got \(3, 3"):
        load_timesformer(theirs.state_dict(), size=(32, 16))
    ours = load_timesformer(theirs.state_dict(), size=(16, 64))
    assert ours.config.grid == (3, 2, 8)


# --- ViViT ----------------------------------------------------------------------------------------------------------


def vivit() -> nn.Module:
    """A small one of Hugging Face's, with images that are no squares."""
    config = transformers.VivitConfig(
        image_size=[32, 48], num_frames=4, tubelet_size=[2, 16, 16], hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, num_labels=5,
    )  # fmt: skip
    return wide_awake(transformers.VivitForVideoClassification(config))


def test_vivit_of_hugging_face(tmp_path: Path) -> None:
    """Of a model, and of its file, whose names are older."""
    theirs, clips = vivit(), torch.randn(2, 4, 3, 32, 48)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(clips).logits
    for weights in (theirs.state_dict(), tmp_path / "model.safetensors"):
        ours = load_vivit(weights, n_heads=4, clip=(4, 32, 48))
        assert ours.config.positions == "joint" and ours.config.gelu == "tanh"
        same(ours, clips, expected)


def test_vivit_without_classes() -> None:
    theirs, clips = wide_awake(transformers.VivitModel(vivit().config)), torch.randn(1, 4, 3, 32, 48)
    assert any(name.startswith("pooler") for name in theirs.state_dict())
    with torch.no_grad():
        expected = theirs(clips).last_hidden_state[:, 0]
    same(load_vivit(theirs.state_dict(), n_heads=4, clip=(4, 32, 48)), clips, expected)


# --- Video Swin -----------------------------------------------------------------------------------------------------

WINDOW, DIM, DEPTHS, HEADS, CLASSES = (2, 3, 3), 8, (2, 2), (2, 4), 5


def swin_state() -> dict[str, Tensor]:
    """Random weights in the names of the authors' code."""
    t, h, w = WINDOW
    at = torch.tensor(list(itertools.product(range(t), range(h), range(w))))
    offset = at[:, None] - at + torch.tensor(WINDOW) - 1
    index = (offset[..., 0] * (2 * h - 1) + offset[..., 1]) * (2 * w - 1) + offset[..., 2]
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.patch_embed.proj": (DIM, 3, 2, 4, 4),
        "backbone.patch_embed.norm": (DIM,),
        "backbone.norm": (2 * DIM,),
        "cls_head.fc_cls": (CLASSES, 2 * DIM),
        "backbone.layers.0.downsample.norm": (4 * DIM,),
    }
    state = {"backbone.layers.0.downsample.reduction.weight": torch.randn(2 * DIM, 4 * DIM) * 0.3}
    for stage, block in itertools.product(range(2), range(2)):
        name, dim = f"backbone.layers.{stage}.blocks.{block}", DIM * 2**stage
        shapes |= {
            f"{name}.norm1": (dim,), f"{name}.attn.qkv": (3 * dim, dim), f"{name}.attn.proj": (dim, dim),
            f"{name}.norm2": (dim,), f"{name}.mlp.fc1": (4 * dim, dim), f"{name}.mlp.fc2": (dim, 4 * dim),
        }  # fmt: skip
        state[f"{name}.attn.relative_position_bias_table"] = torch.randn((2 * t - 1) * (2 * h - 1) ** 2, HEADS[stage])
        state[f"{name}.attn.relative_position_index"] = index
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) * (0.3 if len(shape) > 1 else 1)
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.5
    return state


def swin(state: dict[str, Tensor], clips: Tensor) -> Tensor:
    """A Video Swin transformer by rolling, cutting and masking, for clips that whole windows cover at every stage."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def cut(x: Tensor) -> Tensor:
        for axis, size in zip((1, 3, 5), WINDOW, strict=True):
            x = x.unflatten(axis, (-1, size))
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)  # (B, nt, nh, nw, tokens, C)

    def attention(name: str, x: Tensor, heads: int, shifted: bool) -> Tensor:
        grid, c = x.shape[1:4], x.shape[-1]
        shift = [s // 2 if shifted and s < n else 0 for n, s in zip(grid, WINDOW, strict=True)]
        # What was rolled from one end to the other is far away: regions of a window do not see each other.
        region = torch.zeros(1, *grid, 1)
        for axis, (n, s) in enumerate(zip(grid, shift, strict=True)):
            far = (torch.arange(n) >= n - s).float() * 10**axis
            region = region + far.view([n if a == axis + 1 else 1 for a in range(5)])
        regions = cut(region)[..., 0]  # (1, nt, nh, nw, tokens)
        windows = cut(x.roll([-s for s in shift], (1, 2, 3)))
        q, k, v = linear(f"{name}.qkv", windows).unflatten(-1, (3, heads, -1)).movedim(-3, 0).transpose(-2, -3)
        index = state[f"{name}.relative_position_index"]
        bias = state[f"{name}.relative_position_bias_table"][index].movedim(2, 0)  # (heads, tokens, tokens)
        apart = (regions[..., None] != regions[..., None, :])[..., None, :, :] * -100.0
        weights = (q @ k.mT * (c // heads) ** -0.5 + bias + apart).softmax(-1)
        out = linear(f"{name}.proj", (weights @ v).transpose(-2, -3).flatten(-2)).unflatten(4, WINDOW)
        out = out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)
        return out.roll(shift, (1, 2, 3))

    weight, bias = (state[f"backbone.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    x = F.conv3d(clips.transpose(1, 2), weight, bias, stride=weight.shape[2:]).movedim(1, -1)
    x = norm("backbone.patch_embed.norm", x)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        if stage:
            a, b, c, d = x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]
            name = f"backbone.layers.{stage - 1}.downsample"
            x = linear(f"{name}.reduction", norm(f"{name}.norm", torch.cat([a, b, c, d], -1)))
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}"
            x = x + attention(f"{name}.attn", norm(f"{name}.norm1", x), heads, block % 2 == 1)
            x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
    return linear("cls_head.fc_cls", norm("backbone.norm", x).mean((1, 2, 3)))


def test_swin_in_its_authors_names(tmp_path: Path) -> None:
    state, clips = swin_state(), torch.randn(2, 8, 3, 24 * 2, 24)
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "swin.pth")
    ours = load_swin3d(tmp_path / "swin.pth")
    assert ours.config.window == WINDOW and ours.config.n_heads == HEADS and ours.config.n_classes == CLASSES
    same(ours, clips, swin(state, clips))


def test_swin_in_torchvision_s_names() -> None:
    """As torchvision calls the same tensors: stages and what merges patches in one row."""
    state, clips = swin_state(), torch.randn(1, 4, 3, 24, 24)
    renamed = {}
    for name, x in state.items():
        name = name.removeprefix("backbone.").replace("cls_head.fc_cls", "head")
        name = name.replace("layers.0.downsample", "features.1").replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        for stage in range(2):
            name = name.replace(f"layers.{stage}.blocks.", f"features.{2 * stage}.")
        renamed[name] = x
    same(load_swin3d(renamed), clips, swin(state, clips))
    without = {name: x for name, x in renamed.items() if not name.endswith("index")}
    same(load_swin3d(without, window=WINDOW), clips, swin(state, clips))
    with pytest.raises(CheckpointError, match="expected the argument window, got no relative_position_index"):
        load_swin3d(without)


def test_swin_of_torchvision() -> None:
    swin_transformer = pytest.importorskip("torchvision.models.video.swin_transformer")
    theirs = wide_awake(
        swin_transformer.SwinTransformer3d(
            patch_size=[2, 4, 4], embed_dim=24, depths=[2, 2, 2], num_heads=[3, 6, 12], window_size=[4, 3, 3],
            num_classes=9,
        )
    )  # fmt: skip
    for shape in ((9, 48, 60), (4, 50, 70)):  # padded, and with fewer frames than a window
        clips = torch.randn(2, shape[0], 3, *shape[1:])
        with torch.no_grad():
            same(load_swin3d(theirs.state_dict()), clips, theirs(clips.transpose(1, 2)))


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = timesformer().state_dict()
    name = "timesformer.encoder.layer.1.output.dense.bias"
    lacking = {n: x for n, x in state.items() if n != name}
    with pytest.raises(CheckpointError, match=r"load_timesformer: expected encoder.layer.1.output.dense.bias, got no"):
        load_timesformer(lacking)
    with pytest.raises(CheckpointError, match=r"got extra.weight \(1 tensors are left over\)"):
        load_timesformer(state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"expected time_embed or embeddings.time_embeddings, got no tensor"):
        load_timesformer({n: x for n, x in state.items() if not n.endswith("time_embeddings")})
    with pytest.raises(CheckpointError, match=r"load_vivit: expected .*projection.weight, got no tensor of that name"):
        load_vivit({"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"expected clip with as many patches as the 12 positions .*32, 224, 224"):
        load_vivit(vivit().state_dict())
    with pytest.raises(CheckpointError, match=r"load_swin3d: expected patch_embed.proj.weight, got no tensor"):
        load_swin3d(state)
    with pytest.raises(CheckpointError, match="no such file"):
        load_swin3d(tmp_path / "lost.pth")
    (tmp_path / "broken.pth").write_bytes(b"no file of tensors")
    with pytest.raises(CheckpointError, match=r"broken.pth: damaged"):
        load_swin3d(tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="expected n_heads to divide dim=128, got 3"):
        load_timesformer(state, n_heads=3)
