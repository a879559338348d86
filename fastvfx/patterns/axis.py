"""One axis of a pattern: which keys each query may attend, as an interval with a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """The keys that the queries of one axis may attend.

    Key j is allowed for query i iff ``start <= j < end`` and ``(j - start) % dilation == 0`` with ``start, end =
    spans[i]``, or ``j < min(sink, end)``. Sizes may be symbolic while torch.compile traces, so everything that depends
    on them is a tensor or arithmetic.
    """

    spans: Tensor  # (L_q, 2) int32
    n_keys: int
    reach: int  # no allowed key is further than this many dilations from its query
    dilation: int = 1
    sink: int = 0
    whole: bool = False  # every query may attend every key

    def mask(self) -> Tensor:
        """(L_q, L_k) bool."""
        return span_mask(self.spans, self.n_keys, self.dilation, self.sink)


def span_mask(spans: Tensor, n_keys: int, dilation: int, sink: int) -> Tensor:
    """Which keys spans (..., L_q, 2) allow: (..., L_q, n_keys) bool."""
    key = torch.arange(n_keys, device=spans.device, dtype=spans.dtype)
    start, end = spans[..., :1], spans[..., 1:]
    allowed = (key >= start) & (key < end) & ((key - start) % dilation == 0)
    return allowed | ((key < sink) & (key < end))


def positions(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Where queries stand among the keys: they are the last ones, as in decoding with a cache."""
    return torch.arange(n_queries, device=device) + (n_keys - n_queries)


def _spans(start: Tensor, end: Tensor) -> Tensor:
    return torch.stack([start, end], -1).to(torch.int32)


def larger(a: int, b: int) -> int:
    """The larger of sizes that may be symbolic, without asking which it is."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else torch.sym_max(a, b)


def smaller(a: int, b: int) -> int:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else torch.sym_min(a, b)


def whole(n_queries: int, n_keys: int, device: torch.device) -> Axis:
    zero = torch.zeros(n_queries, dtype=torch.int64, device=device)
    reach = larger(larger(n_queries, n_keys), 1) - 1
    return Axis(_spans(zero, zero + n_keys), n_keys, reach, whole=True)


def neighborhood(
    n_queries: int, n_keys: int, kernel: int, stride: int, dilation: int, causal: bool, device: torch.device
) -> Axis:
    """Generalised neighbourhood attention: queries in groups of ``stride`` share the window of the group's leader.

    A dilated axis is ``dilation`` interleaved axes of its own. ``i`` and ``length`` below are a query's index and the
    number of keys within its interleaved axis.
    """
    at = positions(n_queries, n_keys, device)
    phase, i = at % dilation, at // dilation
    length = (n_keys - phase + dilation - 1) // dilation
    if causal:
        leader = torch.minimum(i // stride * stride + stride - 1, length - 1)
        first, last = (leader - kernel + 1).clamp(min=0), i
    else:
        leader = torch.minimum(i // stride * stride + stride // 2, length - 1)
        before, after = kernel // 2, kernel // 2 + kernel % 2 - 1
        first = torch.minimum(leader, length - 1 - after).clamp(min=before) - before
        last = first + kernel - 1
    return Axis(_spans(phase + dilation * first, phase + dilation * last + 1), n_keys, kernel - 1, dilation)


def shifted_windows(n_queries: int, n_keys: int, window: int, shift: int, device: torch.device) -> Axis:
    """Windows whose borders lie at ``shift`` modulo ``window``; the first and the last may be shorter.

    These are the windows of a Swin transformer after its roll and mask, seen without the roll.
    """
    at = positions(n_queries, n_keys, device)
    start = torch.div(at - shift, window, rounding_mode="floor") * window + shift
    return Axis(_spans(start.clamp(min=0), (start + window).clamp(max=n_keys)), n_keys, window - 1)


def sliding_tile(n_queries: int, n_keys: int, tile: int, kernel: int, device: torch.device) -> Axis:
    """Windows of ``2 * (kernel // 2) + 1`` tiles around the query's own, moved inwards at the borders."""
    n_tiles = (n_keys + tile - 1) // tile
    half = kernel // 2
    centre = (positions(n_queries, n_keys, device) // tile).clamp(min=half)
    centre = centre.clamp(max=n_tiles - 1 - half)
    start, end = (centre - half).clamp(min=0) * tile, ((centre + half + 1) * tile).clamp(max=n_keys)
    reach = smaller(tile * (2 * half + 1), n_keys) - 1
    return Axis(_spans(start, end), n_keys, reach)


def causal(n_queries: int, n_keys: int, chunk: int, local: int | None, sink: int, device: torch.device) -> Axis:
    """All keys up to the end of the query's chunk, or the last ``local`` of them and the first ``sink``."""
    at = positions(n_queries, n_keys, device)
    end = (at // chunk + 1) * chunk
    start = torch.zeros_like(end) if local is None else (end - local).clamp(min=0)
    reach = larger(n_keys, 1) - 1
    if local is not None and not sink:
        reach = smaller(reach, larger(local, chunk) - 1)
    return Axis(_spans(start, end.clamp(max=n_keys)), n_keys, reach, sink=sink if local is not None else 0)


def intersect(a: Axis, b: Axis) -> Axis | None:
    """Keys that both allow, or ``None`` if that is not one interval with a step."""
    if a.whole or b.whole:
        return b if a.whole else a
    if a.sink != b.sink or (a.sink and a.dilation * b.dilation > 1):
        return None
    if a.dilation != b.dilation and 1 not in (a.dilation, b.dilation):
        return None
    if a.dilation < b.dilation:
        a, b = b, a
    (start_a, end_a), (start_b, end_b) = a.spans.unbind(-1), b.spans.unbind(-1)
    # The first key of a's steps that b's interval holds as well.
    steps = ((start_b - start_a).clamp(min=0) + a.dilation - 1) // a.dilation
    start, end = start_a + steps * a.dilation, torch.minimum(end_a, end_b)
    if b.dilation > 1:  # the same step: they meet everywhere or nowhere
        end = torch.where((start_b - start_a) % a.dilation == 0, end, start)
    reach = smaller(a.reach * a.dilation, b.reach * b.dilation) // a.dilation
    return Axis(_spans(start, end), a.n_keys, reach, a.dilation, a.sink)
