"""Visual tokens: hierarchical k-means over features of clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_CHUNK = 1024  # points that are compared with their node's centroids at a time


class HierarchicalKMeans(nn.Module):
    """A tree of centroids: ``ways`` of them below each node, ``depth`` levels; a token is a leaf.

    VideoBERT's is 12 ways at depth 4, so of up to 20,736 tokens. A node with fewer distinct points than ways gets as
    many children as it has points, so no token stands for nothing.

    Attributes:
        n_tokens: how many leaves there are; 0 before :meth:`fit`.
        centroids: of the tokens, (n_tokens, dim).

    >>> tree = HierarchicalKMeans(depth=2, ways=4).fit(features)  # (n, dim)
    >>> tree(features)  # (n,) int64, from 0 to tree.n_tokens - 1
    """

    def __init__(self, depth: int = 4, ways: int = 12) -> None:
        super().__init__()
        if depth < 1 or ways < 2:
            raise ValueError(
                "fastvfx.models.videobert.HierarchicalKMeans: expected a depth of at least 1 and at least 2 ways, got "
                f"depth={depth}, ways={ways}"
            )
        self.depth, self.ways = depth, ways
        for level in range(depth):
            # Nodes of a level lie one parent's after the other: those of parent i are first[i] to first[i + 1].
            self.register_buffer(f"centroids{level}", torch.zeros(0, 0))
            self.register_buffer(f"first{level}", torch.zeros(2, dtype=torch.long))

    @property
    def n_tokens(self) -> int:
        return self.get_buffer(f"centroids{self.depth - 1}").shape[0]

    @property
    def centroids(self) -> Tensor:
        return self.get_buffer(f"centroids{self.depth - 1}")

    @torch.no_grad()
    def fit(self, features: Tensor, *, seed: int = 0, iterations: int = 50, batch: int = 8192) -> HierarchicalKMeans:
        """Find the centroids, level by level.

        Args:
            features: (n, dim), finite.
            seed: the same features and seed give the same tree, on one number of threads.
            iterations: of each node's k-means, at most.
            batch: nodes with more points take a random batch of so many in each iteration.

        Returns:
            Itself.

        Raises:
            ValueError: no features, or some of them not finite.
        """
        op = "fastvfx.models.videobert.HierarchicalKMeans.fit"
        if features.ndim != 2 or features.shape[0] == 0:
            raise ValueError(
                f"{op}: expected features of shape (n, dim) with n of at least 1, got {(*features.shape,)}"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{op}: expected finite features, got NaN or infinity")
        x = features
        generator = torch.Generator().manual_seed(seed)
        nodes = torch.zeros(len(x), dtype=torch.long, device=x.device)
        n_nodes = 1
        for level in range(self.depth):
            parts, first = [], [0]
            children = torch.empty_like(nodes)
            # The points of each node together: one sort instead of a search for each.
            order = torch.argsort(nodes, stable=True)
            for members in order.split(torch.bincount(nodes, minlength=n_nodes).tolist()):
                found, nearest = kmeans(x[members], self.ways, generator, iterations, batch)
                children[members] = first[-1] + nearest
                parts.append(found)
                first.append(first[-1] + len(found))
            setattr(self, f"centroids{level}", torch.cat(parts))
            setattr(self, f"first{level}", torch.tensor(first, device=x.device))
            nodes, n_nodes = children, first[-1]
        return self

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """The token of each feature: (..., dim) to (...) int64; down the tree, to the nearest child each time.

        Raises:
            ValueError: not fitted, or features of another length.
        """
        dim = self.centroids.shape[1]
        if self.n_tokens == 0 or features.shape[-1] != dim:
            told = f"features of length {dim}" if self.n_tokens else "fit() first"
            raise ValueError(
                f"fastvfx.models.videobert.HierarchicalKMeans: expected {told}, got shape {tuple(features.shape)}"
            )
        x = features.flatten(0, -2)
        tokens = torch.cat([self._descend(part) for part in x.split(_CHUNK)]) if len(x) else x.new_empty(0).long()
        return tokens.view(features.shape[:-1])

    def _descend(self, x: Tensor) -> Tensor:
        node = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for level in range(self.depth):
            centroids, first = self.get_buffer(f"centroids{level}"), self.get_buffer(f"first{level}")
            child = first[node, None] + torch.arange(self.ways, device=x.device)  # (n, ways)
            absent = child >= first[node + 1, None]
            distances = (centroids[child.clamp_max(len(centroids) - 1)] - x[:, None]).square().sum(2)
            nearest = distances.masked_fill(absent, torch.inf).argmin(1)
            node = first[node] + nearest
        return node

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The shape of the tree is that of the file.
        for name, buffer in list(self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if stored is not None and buffer is not None:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def kmeans(x: Tensor, k: int, generator: torch.Generator, iterations: int, batch: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k-means++ seeds; with more than ``batch`` points, Sculley's minibatch form (2010).

    Args:
        x: (n, dim), n of at least 1.
        k: centroids; fewer where there are fewer distinct points.
        generator: of everything random.
        iterations: at most.
        batch: see above.

    Returns:
        centroids (k', dim), none of them without points, and the nearest of each point, (n,).
    """
    whole = len(x) <= batch
    centroids = _seeds(x if whole else x[_some(len(x), batch, generator)], k, generator)
    seen = torch.zeros(len(centroids), device=x.device)
    for _ in range(iterations):
        points = x if whole else x[_some(len(x), batch, generator)]
        distances, nearest = torch.cdist(points, centroids).min(1)
        counts = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        if whole:
            moved = sums / counts.clamp_min(1)[:, None]
        else:
            # Each centroid is the mean of all points that it ever was the nearest of.
            seen = seen + counts
            moved = centroids + (sums - counts[:, None] * centroids) / seen.clamp_min(1)[:, None]
        empty = (counts == 0) & (seen == 0)
        if bool(empty.any()):  # they take the points that are worst represented
            moved[empty] = points[distances.topk(int(empty.sum())).indices]
        done = whole and bool(torch.equal(moved, centroids))
        centroids = moved
        if done:
            break
    nearest = torch.cat([torch.cdist(part, centroids).argmin(1) for part in x.split(batch)])
    used, nearest = torch.unique(nearest, return_inverse=True)
    return centroids[used], nearest


def _seeds(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed is a point, the likelier the farther it is (squared) from those before."""
    chosen = [int(torch.randint(len(x), (), generator=generator))]
    distances = (x - x[chosen[0]]).square().sum(1)
    for _ in range(1, min(k, len(x))):
        total = distances.double().cumsum(0)
        if total[-1] <= 0:
            break  # no more distinct points
        place = torch.rand((), generator=generator, dtype=torch.float64).to(x.device) * total[-1]
        chosen.append(min(int(torch.searchsorted(total, place, right=True)), len(x) - 1))
        distances = torch.minimum(distances, (x - x[chosen[-1]]).square().sum(1))
    return x[chosen].clone()


def _some(n: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(n, (count,), generator=generator)
