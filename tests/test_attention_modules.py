"""Modules of attention: the cache, class tokens, blocks, and the encoders built from them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import fastvfx
from fastvfx import (
    ClassAttention,
    DividedBlock,
    FrameCache,
    Rotary,
    SpatioTemporalAttention,
    WindowBlock,
)
from fastvfx.attention_blocks import relative_bias_of_swin, space_and_time_heads
from fastvfx.models.video_transformer import (
    SwinConfig,
    SwinTransformer3d,
    VideoTransformer,
    VideoTransformerConfig,
)
from fastvfx.patterns import CausalTime, Divided, Full, Neighborhood


def wide_awake(module: nn.Module) -> nn.Module:
    """float64 parameters of ordinary size: those of the start are so small that errors would not show."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * (0.5 if p.dim() == 1 else 2 / p.shape[-1] ** 0.5))
    return module


@pytest.mark.parametrize(
    "pattern",
    [CausalTime(), CausalTime(2), CausalTime(1, 3), CausalTime(1, 3, 2), CausalTime(2, 4, 1), CausalTime(3, 4, 2)],
    ids=str,
)
@pytest.mark.parametrize("rotary", [False, Rotary(spacing=(0.5, 1, 1), pairs="halves")], ids=["", "rotary"])
def test_frame_by_frame_equals_all_at_once(pattern: CausalTime, rotary: Rotary | bool) -> None:
    attention = wide_awake(SpatioTemporalAttention(16, 4, pattern, kv_heads=2, rotary=rotary, qk_norm=True))
    x = torch.randn(2, 12, 2, 3, 16, dtype=torch.float64)
    expected = attention(x)
    for first in (pattern.chunk, 6):
        cache, parts = FrameCache(), (x[:, :first], *x[:, first:].split(pattern.chunk, 1))
        parts = [attention(part, cache=cache) for part in parts]
        torch.testing.assert_close(torch.cat(parts, 1), expected)
        assert cache.frames_seen == 12
        if pattern.local is not None:  # the memory does not grow
            assert cache.grid[0] < pattern.sink + pattern.local
            assert cache.keys is not None and cache.keys.shape[1] == cache.grid[0] * 6


def test_what_a_cache_does_not_take() -> None:
    attention = SpatioTemporalAttention(16, 4, CausalTime(2))
    cache = FrameCache()
    attention(torch.randn(1, 3, 2, 2, 16), cache=cache)
    with pytest.raises(ValueError, match="FrameCache: expected whole chunks of 2 frames before more of them, got 3"):
        attention(torch.randn(1, 2, 2, 2, 16), cache=cache)
    cache = FrameCache()
    attention(torch.randn(1, 2, 2, 2, 16), cache=cache)
    with pytest.raises(ValueError, match="expected frames of 2 x 2 tokens and a batch of 1 as before, got 2 x 3 and 1"):
        attention(torch.randn(1, 2, 2, 3, 16), cache=cache)
    with pytest.raises(ValueError, match="expected no mask with a cache"):
        attention(torch.randn(1, 2, 2, 2, 16), cache=cache, mask=torch.ones(1, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected the pattern CausalTime with a cache, got Full\(\)"):
        SpatioTemporalAttention(16, 4)(torch.randn(1, 2, 2, 2, 16), cache=cache)


def test_attention_is_that_of_torch() -> None:
    """With torch's own module given the same weights."""
    ours = wide_awake(SpatioTemporalAttention(24, 4))
    theirs = nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, 3, 2, 4, 24, dtype=torch.float64)
    flat = x.flatten(1, 3)
    there = torch.rand(2, 24) < 0.7
    expected, _ = theirs(flat, flat, flat, key_padding_mask=~there)
    torch.testing.assert_close(ours(x, mask=there).flatten(1, 3), expected)
    torch.testing.assert_close(ours(flat, grid=(3, 2, 4), mask=there), expected)


def test_context_is_attended_by_all() -> None:
    attention = wide_awake(SpatioTemporalAttention(16, 2, Neighborhood((1, 3, 3)), context_dim=10))
    x, text = torch.randn(2, 2, 4, 4, 16, dtype=torch.float64), torch.randn(2, 5, 10, dtype=torch.float64)
    there = torch.arange(5) < torch.tensor([[3], [5]])
    out = attention(x, context=text, context_mask=there)
    changed = text.clone()
    changed[0, 3:] = torch.nan
    assert torch.equal(attention(x, context=changed, context_mask=there), out)
    changed = text.clone()
    changed[1, 4] += 1
    difference = attention(x, context=changed, context_mask=there) - out
    assert (difference[0] == 0).all() and (difference[1].abs().amax(-1) > 0).all()
    with pytest.raises(ValueError, match="expected context only with a context_dim"):
        SpatioTemporalAttention(16, 2)(x.float(), context=text.float())


def test_class_token_sees_all_and_is_seen() -> None:
    """The same as one more token in front of the others."""
    ours = wide_awake(ClassAttention(16, 2))
    plain = SpatioTemporalAttention(16, 2).double()
    plain.load_state_dict(ours.state_dict())
    x, cls = torch.randn(2, 2, 3, 2, 16, dtype=torch.float64), torch.randn(2, 1, 16, dtype=torch.float64)
    together = plain(torch.cat([cls, x.flatten(1, 3)], 1))
    of_x, of_cls = ours(x, cls)
    torch.testing.assert_close(torch.cat([of_cls, of_x.flatten(1, 3)], 1), together)


def test_divided_block_is_that_of_timesformer() -> None:
    """Hugging Face's layer with the same weights; its tokens are ordered by place, then time."""
    hf = pytest.importorskip("transformers.models.timesformer.modeling_timesformer")
    from transformers import TimesformerConfig

    config = TimesformerConfig(
        image_size=32, patch_size=16, num_frames=3, hidden_size=24, num_attention_heads=4, intermediate_size=48,
        attention_type="divided_space_time", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5,
    )  # fmt: skip
    config._attn_implementation = "eager"
    layer = hf.TimesformerLayer(config, 0).double().eval()
    ours = wide_awake(DividedBlock(24, 4, mlp_ratio=2))
    pairs = {
        "temporal_layernorm": ours.time_norm, "temporal_attention.attention.qkv": ours.time.qkv,
        "temporal_attention.output.dense": ours.time.out, "temporal_dense": ours.time_out,
        "layernorm_before": ours.space_norm, "attention.attention.qkv": ours.space.qkv,
        "attention.output.dense": ours.space.out, "layernorm_after": ours.norm,
        "intermediate.dense": ours.mlp[0], "output.dense": ours.mlp[3],
    }  # fmt: skip
    for name, module in pairs.items():
        layer.get_submodule(name).load_state_dict(module.state_dict())
    x, cls = torch.randn(2, 3, 2, 2, 24, dtype=torch.float64), torch.randn(2, 1, 24, dtype=torch.float64)
    of_x, of_cls = ours(x, cls)
    together = layer(torch.cat([cls, x.movedim(1, 3).flatten(1, 3)], 1))
    together = together[0] if isinstance(together, tuple) else together
    torch.testing.assert_close(of_cls, together[:, :1])
    torch.testing.assert_close(of_x.movedim(1, 3).flatten(1, 3), together[:, 1:])


def rolled_windows(block: WindowBlock, x: Tensor, table: Tensor) -> Tensor:
    """Attention in shifted windows as Swin's authors do it: pad, roll, cut, mask by regions, bias by query - key."""
    attention, window = block.attention, block.window
    grid = x.shape[1:4]
    size = [min(w, n) for w, n in zip(window, grid, strict=True)]
    shift = [0 if w >= n else s for w, n, s in zip(window, grid, attention.pattern.shift, strict=True)]
    missing = [-n % s for n, s in zip(grid, size, strict=True)]
    x = nn.functional.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    padded = x.shape[1:4]
    x = x.roll([-s for s in shift], (1, 2, 3))
    region = torch.zeros(padded, dtype=torch.long)
    slices = [
        [slice(0, n)] if s == 0 else [slice(0, n - w), slice(n - w, n - s), slice(n - s, n)]
        for n, w, s in zip(padded, size, shift, strict=True)
    ]
    for number, (t, h, w) in enumerate(itertools.product(*slices)):
        region[t, h, w] = number

    def cut(y: Tensor) -> Tensor:
        """(B, T, H, W, c) to (B, windows, tokens, c)."""
        for axis, s in zip((1, 3, 5), size, strict=True):
            y = y.unflatten(axis, (-1, s))
        return y.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)

    tokens, regions = cut(x), cut(region[None, ..., None])[0, :, :, 0]
    at = torch.tensor(list(itertools.product(*map(range, size))))
    offset = at[:, None] - at + torch.tensor(window) - 1
    sides = [2 * w - 1 for w in window]
    index = (offset[..., 0] * sides[1] + offset[..., 1]) * sides[2] + offset[..., 2]
    bias = table[index].permute(2, 0, 1)  # (heads, tokens, tokens)
    heads, dim = attention.n_heads, attention.head_dim
    q, k, v = attention.qkv(tokens).unflatten(-1, (3, heads, dim)).permute(3, 0, 1, 4, 2, 5)
    scores = q @ k.transpose(-1, -2) * dim**-0.5 + bias
    scores = scores.masked_fill((regions[:, :, None] != regions[:, None])[None, :, None], -torch.inf)
    out = attention.out((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
    n = [p // s for p, s in zip(padded, size, strict=True)]
    out = (
        out.unflatten(2, size).unflatten(1, n).permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    )
    out = out.roll(shift, (1, 2, 3))
    return out[:, : grid[0], : grid[1], : grid[2]]


@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize("grid", [(4, 6, 6), (2, 6, 3), (5, 7, 4)], ids=str)
def test_window_block_is_that_of_swin(grid: tuple[int, int, int], shifted: bool) -> None:
    window, heads = (2, 3, 3), 2
    block = wide_awake(WindowBlock(16, heads, window, shifted=shifted, attend_padding=True))
    table = torch.randn(3 * 5 * 5, heads, dtype=torch.float64)
    with torch.no_grad():
        block.attention.relative_bias.copy_(relative_bias_of_swin(table, window))
    x = torch.randn(2, *grid, 16, dtype=torch.float64)
    expected = x + rolled_windows(block, block.norm1(x), table)
    torch.testing.assert_close(block(x), expected + block.mlp(block.norm2(expected)))


def test_a_window_longer_than_the_clip_is_the_clip() -> None:
    block = wide_awake(WindowBlock(16, 2, (8, 3, 3), shifted=True))
    x = torch.randn(1, 4, 6, 6, 16, dtype=torch.float64)
    table = block.attention.relative_bias.detach().flip(1, 2, 3).flatten(1).T
    expected = x + rolled_windows(block, block.norm1(x), table)
    torch.testing.assert_close(block(x), expected + block.mlp(block.norm2(expected)))


@pytest.mark.parametrize("rotary", [False, True], ids=["learned positions", "rotary"])
@pytest.mark.parametrize(
    "attention", ["joint", "divided", "factorised_encoder", "factorised_attention", "factorised_heads"]
)
def test_video_transformers(attention: str, rotary: bool) -> None:
    config = VideoTransformerConfig(
        attention,
        clip=(4, 16, 24),
        patch=(2, 8, 8),
        dim=24,
        depth=2,
        time_depth=1,
        n_heads=2,
        rotary=rotary,
        n_classes=5,
    )
    assert VideoTransformerConfig.from_dict(config.to_dict()) == config
    model = VideoTransformer(config)
    clips = torch.rand(3, 4, 3, 16, 24)
    logits = model(clips)
    assert logits.shape == (3, 5)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    tokens, cls = model.tokens(clips)
    assert tokens.shape == (3, 2, 2, 3, 24) and (cls is None) == attention.endswith(("attention", "heads"))
    longer = torch.rand(3, 6, 3, 16, 24)
    if rotary:
        assert model(longer).shape == (3, 5)
    else:
        with pytest.raises(ValueError, match=r"expected clips of \(2, 2, 3\) tokens, .*, got \(3, 2, 3\)"):
            model(longer)


def test_swin_transformer() -> None:
    config = SwinConfig(dim=12, depths=(2, 2), n_heads=(2, 4), window=(2, 3, 3), n_classes=5)
    assert SwinConfig.from_dict(config.to_dict()) == config
    model = SwinTransformer3d(config)
    clips = torch.rand(2, 5, 3, 22, 30)
    out = model(clips)
    assert out.shape == (2, 5) and model.tokens(clips).shape == (2, 3, 3, 4, 24)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_comes_from_torch_s_generator() -> None:
    attention = SpatioTemporalAttention(16, 2, Divided("space"), dropout=0.5)
    x = torch.randn(2, 2, 3, 3, 16)
    torch.manual_seed(3)
    first = attention(x)
    second = attention(x)
    torch.manual_seed(3)
    assert torch.equal(attention(x), first) and not torch.equal(first, second)
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpatioTemporalAttention(16, 3), "SpatioTemporalAttention: expected n_heads to divide dim=16, got 3"),
        (lambda: SpatioTemporalAttention(16, 4, kv_heads=3), "expected kv_heads to divide n_heads, got 3 and 4"),
        (lambda: SpatioTemporalAttention(15, 3, rotary=True), "expected an even head_dim with rotary, got 5"),
        (lambda: SpatioTemporalAttention(16, 4)(torch.zeros(2, 3, 8)), r"expected x of shape \(batch, T, H, W, 16\)"),
        (lambda: space_and_time_heads(3), "expected an even number of heads, got 3"),
        (lambda: relative_bias_of_swin(torch.zeros(4, 2), (2, 2, 2)), r"expected a table of shape \(27, heads\), got"),
        (lambda: VideoTransformerConfig("sparse"), "VideoTransformerConfig: expected attention to be one of joint"),
        (lambda: VideoTransformerConfig(clip=(8, 30, 32)), r"expected clip in whole patches of \(1, 16, 16\), got"),
        (lambda: VideoTransformerConfig(positions="none"), "expected positions to be separate or joint, got 'none'"),
        (lambda: VideoTransformerConfig(gelu="fast"), "expected gelu to be none or tanh, got 'fast'"),
        (lambda: SwinConfig(depths=(2, 2)), "SwinConfig: expected as many depths as n_heads"),
        (lambda: VideoTransformer(VideoTransformerConfig(dim=24, depth=1))(torch.zeros(1, 8, 1, 224, 224)), "PatchEmb"),
    ],
)
def test_bad_input_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert str(raised.value).startswith("fastvfx.")


def test_one_graph_for_any_number_of_frames() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    attention = SpatioTemporalAttention(16, 2, CausalTime(2), rotary=True, qk_norm=True)
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="eager")
    for frames in (3, 6, 7):  # no other size is the same: torch would take them for one
        x = torch.randn(2, frames, 4, 5, 16)
        torch.testing.assert_close(compiled(x), attention(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_modules_say_what_they_are() -> None:
    text = repr(fastvfx.SpatioTemporalAttention(16, 4, Full(), kv_heads=2))
    assert "n_heads=4, kv_heads=2, pattern=Full()" in text
