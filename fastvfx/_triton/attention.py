"""Launches the attention kernels: torch.ops.fastvfx.attention_fwd and attention_bwd on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..reference.march import mix64
from .attention_blocks import BlockLists, box_in, of_keys, of_queries
from .attention_bwd import BiasSums, bwd_kv_kernel, bwd_q_kernel, delta_kernel
from .attention_fwd import fwd_kernel
from .attention_plan import Geometry, Tile, Triple, boxes_of, merged, padded, tables_of, tiles_of, turned
from .attention_rotary import rotate
from .attention_scores import Options
from .attention_tiles import Tables, Tokens


class Inputs(NamedTuple):
    """The arguments of the operator, in its order."""

    q: Tensor  #: (B, N_q, heads, dim), like all four-dimensional ones with adjacent channels
    k: Tensor
    v: Tensor
    extra_k: Tensor | None
    extra_v: Tensor | None
    extra_mask: Tensor | None
    kv_mask: Tensor | None
    relative_bias: Tensor | None
    bias: Tensor | None
    rotary: Tensor | None
    kv_rotary: Tensor | None
    blocks: Tensor | None
    spans_t: Tensor
    spans_h: Tensor
    spans_w: Tensor
    head_spans: Tensor
    shape: Sequence[int]
    scale: float
    softcap: float
    dropout: float
    seed: int


class Gradients(NamedTuple):
    """Where :func:`backward` writes, like the arguments; ``None`` where nothing is wanted. k and v come together."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None
    relative_bias: Tensor | None
    bias: Tensor | None


def _tokens(x: Tensor) -> Tokens:
    return Tokens(x, x.stride(0), x.stride(1), x.stride(2))


def _precision() -> str:
    """Of float32 products: as torch's own."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _capability(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class Call:
    """One call of the operator: what its kernels are given."""

    def __init__(self, x: Inputs) -> None:
        self.batch, self.n_q, self.heads, self.dim = x.q.shape
        self.n_k, self.kv_heads, self.dim_v = x.v.shape[1:]
        self.n_extra = 0 if x.extra_k is None else x.extra_k.shape[1]
        self.geometry, self.flat = Geometry.of(x.shape), False
        self.spans = [x.spans_t, x.spans_h, x.spans_w]
        self.blocks = x.blocks
        if x.relative_bias is None and x.blocks is None:  # these need the axes as they are
            self.geometry, self.spans, self.flat = merged(self.geometry, self.spans)
        self.tiles = tiles_of(_capability(x.q.device), self.dim, self.dim_v, x.q.element_size())
        common: dict[str, Any] = {"softcap": float(x.softcap) or None}
        if x.dropout:
            seed = torch.tensor((x.seed + (1 << 63)) % (1 << 64) - (1 << 63))
            common |= {"threshold": int(x.dropout * 2**32), "kept": 1 / (1 - x.dropout), "seed": int(mix64(seed))}
        self.extra_options = Options(**common, **_mask(x.extra_mask), first_key=self.n_k)
        self.options = Options(
            **common, **_mask(x.kv_mask), bias=x.bias, bias_strides=_bias_strides(x.bias),
            relative=None if x.relative_bias is None else x.relative_bias.float().contiguous(),
            dilation=self.geometry.dilation,
            shift=tuple(m - n for n, m in zip(self.geometry.grid, self.geometry.kv_grid, strict=True)),
            relative_sizes=(1, 1, 1) if x.relative_bias is None else tuple(x.relative_bias.shape[1:]),
        )  # fmt: skip

    def constants(self, tile: Tile) -> dict[str, Any]:
        """What a kernel with such tiles is compiled for."""
        step = key_step = None
        if self.blocks is not None:
            step = key_step = self.geometry.block
            box, key_box = box_in(step, tile.rows), box_in(step, tile.columns)
        elif self.flat:
            box, key_box = (1, 1, tile.rows), (1, 1, tile.columns)
        else:
            box, key_box = boxes_of(self.geometry, tile.rows, tile.columns)
        return self._constants(tile, box, step or box, key_box, key_step or key_box, self.flat)

    def extra_constants(self, tile: Tile) -> dict[str, Any]:
        """Likewise for extra keys: a line of them and one of queries."""
        box, key_box = (1, 1, tile.rows), (1, 1, tile.columns)
        return self._constants(tile, box, box, key_box, key_box, True)

    def _constants(
        self, tile: Tile, box: Triple, step: Triple, key_box: Triple, key_step: Triple, flat: bool
    ) -> dict[str, Any]:
        return {
            "dim": self.dim, "padded": padded(self.dim), "dim_v": self.dim_v, "padded_v": padded(self.dim_v),
            "box": box, "step": step, "key_box": key_box, "key_step": key_step, "flat": flat, "stages": tile.stages,
            "precision": _precision(), "num_warps": tile.warps,
        }  # fmt: skip

    def lists(self, of: str) -> BlockLists | None:
        if self.blocks is None:
            return None
        if of == "queries":
            return of_queries(self.blocks)
        return of_keys(self.blocks, math.prod(_counts(self.geometry.kv_grid, self.geometry.block, self.geometry.block)))


def _mask(mask: Tensor | None) -> dict[str, Any]:
    """Options of (B, columns) bool."""
    if mask is None:
        return {}
    return {"kv_mask": mask.view(torch.uint8), "kv_mask_batch": mask.stride(0), "kv_mask_column": mask.stride(1)}


def _bias_strides(bias: Tensor | None) -> tuple[int, ...]:
    if bias is None:
        return 0, 0, 0, 0
    return (bias.stride(0) if bias.shape[0] > 1 else 0, *bias.stride()[1:])


def _counts(grid: Triple, box: Triple, step: Triple) -> Triple:
    """Tiles along each axis, boxes cut from blocks of ``step``."""
    t, h, w = (triton.cdiv(n, s) * triton.cdiv(s, b) for n, b, s in zip(grid, box, step, strict=True))
    return t, h, w


def _extras(x: Inputs) -> tuple[Tokens | None, Tokens | None]:
    return (None, None) if x.extra_k is None or x.extra_v is None else (_tokens(x.extra_k), _tokens(x.extra_v))


def _turned(x: Inputs, call: Call) -> Inputs:
    halves = call.geometry.halves
    return x._replace(q=rotate(x.q, x.rotary, halves), k=rotate(x.k, x.kv_rotary, halves))


def forward(x: Inputs, out: Tensor, lse: Tensor) -> None:
    """Fills ``out`` (B, N_q, heads, dim_v) and ``lse`` (B, heads, N_q), float32, which are contiguous."""
    call = Call(x)
    constants = call.constants(call.tiles[0])
    tiles = _counts(call.geometry.grid, constants["box"], constants["step"])
    if lse.numel() == 0:
        return
    x = _turned(x, call)
    tables = tables_of(call.geometry, call.spans)
    fwd_kernel[(math.prod(tiles) * call.batch * call.heads,)](
        _tokens(x.q), _tokens(x.k), _tokens(x.v), *_extras(x), out, lse, tables, x.head_spans,
        call.lists("queries"), call.options, call.extra_options, *call.geometry.grid, *call.geometry.kv_grid,
        call.n_extra, call.heads, call.heads // call.kv_heads, float(x.scale), positive=x.scale > 0, **constants,
    )  # fmt: skip


def backward(grad_out: Tensor, grad_lse: Tensor | None, x: Inputs, out: Tensor, lse: Tensor, grads: Gradients) -> None:
    """Fills ``grads``. ``grad_out`` has adjacent channels; ``out`` and ``lse`` are as :func:`forward` left them."""
    call = Call(x)
    delta = torch.empty_like(lse)
    if lse.numel():
        delta_kernel[(triton.cdiv(call.n_q, 64) * call.batch * call.heads,)](
            out, _tokens(grad_out), None if grad_lse is None else grad_lse.contiguous(), delta, call.n_q, call.heads,
            dim_v=call.dim_v, padded_v=padded(call.dim_v), block=64,
        )  # fmt: skip
    sums = _bias_sums(call, grad_out, grad_lse, x, grads)
    tables = tables_of(call.geometry, call.spans)
    x = _turned(x, call)
    rows = _tokens(grad_out), lse, delta  # one of each for a query
    halves, kv_grid = call.geometry.halves, call.geometry.kv_grid
    if lse.numel() and (grads.q is not None or sums is not None):
        grad_q = torch.empty_like(x.q) if grads.q is None else grads.q
        constants = call.constants(call.tiles[1])
        tiles = _counts(call.geometry.grid, constants["box"], constants["step"])
        bwd_q_kernel[(math.prod(tiles) * call.batch * call.heads,)](
            _tokens(x.q), _tokens(x.k), _tokens(x.v), *_extras(x), *rows, _tokens(grad_q), sums, tables,
            x.head_spans, call.lists("queries"), call.options, call.extra_options, *call.geometry.grid, *kv_grid,
            call.n_extra, call.heads, call.heads // call.kv_heads, float(x.scale), **constants,
        )  # fmt: skip
        rotate(grad_q, x.rotary, halves, grad_q, back=True)
    if grads.k is not None and grads.v is not None:
        _backward_of_keys(
            call, x, _tokens(x.k), _tokens(x.v), rows, _tokens(grads.k), _tokens(grads.v), turned(tables, kv_grid),
            call.lists("keys"), call.options, call.geometry.grid, kv_grid, call.constants(call.tiles[2]),
        )  # fmt: skip
        rotate(grads.k, x.kv_rotary, halves, grads.k, back=True)
    if grads.extra_k is not None and grads.extra_v is not None:
        whole = Tables(), Tables(), Tables()
        _backward_of_keys(
            call, x, *_extras(x), rows, _tokens(grads.extra_k), _tokens(grads.extra_v), whole, None,
            call.extra_options, (1, 1, call.n_q), (1, 1, call.n_extra), call.extra_constants(call.tiles[2]),
        )  # fmt: skip
    if sums is not None:
        _finish(sums, grads)


def _backward_of_keys(
    call: Call, x: Inputs, k: Any, v: Any, rows: tuple[Any, ...], grad_k: Tokens, grad_v: Tokens,
    tables: tuple[Tables, Tables, Tables], lists: BlockLists | None, options: Options, grid: Triple, kv_grid: Triple,
    constants: dict[str, Any],
) -> None:  # fmt: skip
    tiles = _counts(kv_grid, constants["key_box"], constants["key_step"])
    programs = math.prod(tiles) * call.batch * call.kv_heads
    if programs:
        bwd_kv_kernel[(programs,)](
            _tokens(x.q), k, v, *rows, grad_k, grad_v, tables, x.head_spans, lists, options, *grid, *kv_grid,
            call.kv_heads, call.heads // call.kv_heads, float(x.scale), **constants,
        )  # fmt: skip


_COPIES = 16  # of the table, so that fewer programs add to the same number at a time


def _bias_sums(call: Call, grad_out: Tensor, grad_lse: Tensor | None, x: Inputs, grads: Gradients) -> BiasSums | None:
    if grads.bias is None and grads.relative_bias is None:
        return None
    bias = relative = unit = None
    if grads.bias is not None:
        bias = grad_out.new_zeros((call.batch, call.heads, call.n_q, call.n_k), dtype=torch.float32)
    if grads.relative_bias is not None:
        relative = grad_out.new_zeros((_COPIES, *grads.relative_bias.shape), dtype=torch.int64)
        # |dS| <= P (2 |dO| |V| + |gradient of the log-sum-exp|), and each query adds one dS to an entry at most.
        longest = [_longest(v) for v in (x.v, x.extra_v) if v is not None and v.numel()]
        most = (
            _longest(grad_out) * sum(longest) * (2 * call.options.kept) if grad_out.numel() else grad_out.new_ones(())
        )
        if grad_lse is not None and grad_lse.numel():
            most = most + grad_lse.abs().amax()
        unit = (2.0**62 / (max(call.batch * call.n_q, 1) * most.float().clamp(min=1e-30))).reshape(1)
    return BiasSums(bias, relative, _COPIES, unit)


def _longest(x: Tensor) -> Tensor:
    """The greatest length of a row, float32."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax()


def _finish(sums: BiasSums, grads: Gradients) -> None:
    if grads.bias is not None:
        grads.bias.copy_(sums.bias.sum(0, keepdim=True) if grads.bias.shape[0] == 1 else sums.bias)
    if grads.relative_bias is not None:
        grads.relative_bias.copy_(sums.relative.sum(0).double() / sums.unit)


def attention_fwd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator of that name."""
    x = _adjacent(Inputs(*arguments))
    batch, n_q, heads, _ = x.q.shape
    out = x.q.new_empty((batch, n_q, heads, x.v.shape[3]))
    lse = x.q.new_empty((batch, heads, n_q), dtype=torch.float32)
    forward(x, out, lse)
    return out, lse


def attention_bwd(grad_out: Tensor, grad_lse: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator of that name: ..., out, lse, the numbers, and which of the gradients are wanted."""
    tensors, (out, lse), numbers, wanted = arguments[:16], arguments[16:18], arguments[18:-1], arguments[-1]
    x = _adjacent(Inputs(*tensors, *numbers))
    leaves = x.q, x.k, x.v, x.extra_k, x.extra_v, x.relative_bias, x.bias
    q, k, v, extra_k, extra_v, relative_bias, bias = wanted
    needed = q, k or v, k or v, extra_k or extra_v, extra_k or extra_v, relative_bias, bias
    found = [
        leaf.new_empty(leaf.shape) if need and leaf is not None else None
        for leaf, need in zip(leaves, needed, strict=True)
    ]
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    backward(grad_out, grad_lse, x, out.contiguous(), lse.contiguous(), Gradients(*found))
    nothing = grad_out.new_empty((0,))
    return tuple(g if g is not None and want else nothing for g, want in zip(found, wanted, strict=True))


def _adjacent(x: Inputs) -> Inputs:
    """With channels that lie side by side."""

    def adjacent(t: Tensor | None) -> Any:
        return t if t is None or t.stride(-1) == 1 else t.contiguous()

    five = {name: adjacent(getattr(x, name)) for name in ("q", "k", "v", "extra_k", "extra_v")}
    tables = {name: getattr(x, name).contiguous() for name in ("spans_t", "spans_h", "spans_w", "head_spans")}
    return x._replace(**five, **tables)
