"""Visual tokens and the features behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvfx.models.videobert import ClipFeatures, HierarchicalKMeans, ReaderConfig, VideoReader, VideoTokenEmbeddings
from fastvfx.models.videobert.tokens import kmeans


def clusters(n: int = 40, dim: int = 5) -> tuple[Tensor, Tensor]:
    """Points around nine places that lie in three groups; and which of the nine each belongs to."""
    generator = torch.Generator().manual_seed(1)
    groups = 100 * torch.eye(dim)[:3]
    places = (groups[:, None] + 10 * torch.eye(dim)[None, :3]).reshape(9, dim)
    which = torch.arange(9).repeat(n)
    return places[which] + 0.1 * torch.randn(9 * n, dim, generator=generator), which


# --- k-means --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [10_000, 64], ids=["whole", "minibatch"])
def test_each_centroid_is_the_mean_of_its_points(batch: int) -> None:
    x, _ = clusters()
    centroids, nearest = kmeans(x, 3, torch.Generator().manual_seed(0), 50, batch)
    assert torch.equal(nearest, torch.cdist(x, centroids).argmin(1))
    means = torch.stack([x[nearest == k].mean(0) for k in range(3)])
    if batch >= len(x):
        torch.testing.assert_close(centroids, means)
    else:  # the mean of the points that were seen, a third of each of 50 batches: within four standard errors
        spread = max(x[nearest == k].std(0).max().item() for k in range(3))
        torch.testing.assert_close(centroids, means, rtol=0, atol=4 * spread / (50 * batch / 3) ** 0.5)
    assert sorted(torch.bincount(nearest).tolist()) == [120, 120, 120]


@pytest.mark.parametrize("seed", range(5))
def test_no_centroid_is_without_points(seed: int) -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed)).repeat(2, 1)
    for k in (2, 7, 29, 40):
        centroids, nearest = kmeans(x, k, torch.Generator().manual_seed(seed), 20, 16)
        assert len(centroids) <= min(k, 30)
        assert (torch.bincount(nearest, minlength=len(centroids)) > 0).all()


def test_as_many_centroids_as_distinct_points() -> None:
    x = torch.tensor([[0.0], [1.0], [1.0], [5.0]])
    centroids, nearest = kmeans(x, 12, torch.Generator().manual_seed(0), 20, 100)
    assert centroids[nearest].equal(x) and len(centroids) == 3


# --- the tree -------------------------------------------------------------------------------------------------------


def test_the_tree_finds_groups_and_their_members() -> None:
    x, which = clusters()
    tree = HierarchicalKMeans(depth=2, ways=3).fit(x)
    tokens = tree(x)
    assert tree.n_tokens == 9
    pairs = {(int(a), int(b)) for a, b in zip(tokens, which, strict=True)}
    assert len(pairs) == 9  # one token for each place
    assert len({token // 3 for token, place in pairs if place < 3}) == 1  # and siblings for a group
    means = torch.stack([x[tokens == t].mean(0) for t in range(9)])
    torch.testing.assert_close(tree.centroids, means)


def test_new_points_get_the_token_of_their_neighbours() -> None:
    x, _ = clusters()
    tree = HierarchicalKMeans(depth=2, ways=3).fit(x)
    assert torch.equal(tree(x + 0.3), tree(x))
    assert tree(x.reshape(4, 90, 5)).shape == (4, 90) and tree(x[:0]).shape == (0,)


def test_same_seed_same_tree_other_seed_another() -> None:
    x = torch.randn(200, 4)
    trees = [HierarchicalKMeans(3, 4).fit(x, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(trees[0](x), trees[1](x)) and torch.equal(trees[0].centroids, trees[1].centroids)
    assert not torch.equal(trees[0].centroids[:16], trees[2].centroids[:16])


def test_the_papers_size() -> None:
    x = torch.randn(3000, 8)
    tree = HierarchicalKMeans().fit(x, batch=500)
    assert (tree.depth, tree.ways) == (4, 12)
    tokens = tree(x)
    assert 2000 < tree.n_tokens <= 3000 and tokens.max() == tree.n_tokens - 1
    assert len(tokens.unique()) > 0.95 * tree.n_tokens  # a point may be nearer to a cousin's branch


def test_one_point_is_one_token() -> None:
    tree = HierarchicalKMeans(4, 12).fit(torch.ones(5, 3))
    assert tree.n_tokens == 1 and tree(torch.zeros(2, 3)).tolist() == [0, 0]


def test_a_tree_is_read_again() -> None:
    x, _ = clusters()
    tree, other = HierarchicalKMeans(2, 3).fit(x), HierarchicalKMeans(2, 3)
    other.load_state_dict(tree.state_dict())
    assert other.n_tokens == 9 and torch.equal(other(x), tree(x))


def test_looks_and_motion_count_alike() -> None:
    """The reader weighs the two halves of features so that each has a variance of 1 in all."""
    x, _ = clusters()
    y = torch.cat([x * 1000, x[torch.randperm(len(x))]], 1)
    reader = VideoReader(ReaderConfig(depth=1, ways=9))
    reader.fit([y[:100], y[100:]])
    halves = torch.stack(y.chunk(2, 1)) * reader.balance[:, None, None]
    assert torch.allclose(halves.var(1, correction=0).sum(1), torch.ones(2), atol=1e-4)
    assert reader.tree is not None and torch.equal(reader.finish(y), reader.tree(torch.cat(list(halves), 1)))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: HierarchicalKMeans(0, 3), "depth=0, ways=3"),
        (lambda: HierarchicalKMeans(2, 1), "depth=2, ways=1"),
        (lambda: HierarchicalKMeans().fit(torch.zeros(0, 4)), r"n of at least 1, got \(0, 4\)"),
        (lambda: HierarchicalKMeans().fit(torch.tensor([[0.0, torch.nan]])), "got NaN or infinity"),
        (lambda: HierarchicalKMeans()(torch.zeros(2, 4)), r"expected fit\(\) first"),
        (lambda: HierarchicalKMeans(2, 2).fit(torch.rand(9, 3))(torch.zeros(2, 4)), "features of length 3, got shape"),
    ],
)
def test_bad_input(call, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call()


# --- embeddings from centroids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [16, 6, 3], ids=["wider", "same", "narrower"])
def test_embeddings_start_from_the_centroids(hidden: int) -> None:
    """Up to one factor, distances are those of the centroids, or of their first principal components."""
    centroids = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5, 4, 3, 0.1, 0.1, 0.1])
    embeddings = VideoTokenEmbeddings(20, hidden)
    before = embeddings.tokens.weight.detach().clone()
    embeddings.initialise(centroids)
    own, theirs = torch.pdist(embeddings.tokens.weight[:20].detach()), torch.pdist(centroids)
    ratio = own / theirs
    assert float(ratio.std() / ratio.mean()) < (0.02 if hidden == 3 else 1e-5)
    assert float(embeddings.tokens.weight[:20].detach().std()) == pytest.approx(before.std().item(), rel=0.1)
    assert torch.equal(embeddings.tokens.weight[20:], before[20:])  # padding and [MASK]
    with pytest.raises(ValueError, match="centroids of 20 tokens, got 3"):
        embeddings.initialise(centroids[:3])


# --- features -------------------------------------------------------------------------------------------------------


def test_features_are_means_over_frames_and_of_their_change() -> None:
    def network(images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3))], 1)

    clips = torch.rand(3, 40, 3, 4, 4)
    frames = network((clips * 2 - 1).flatten(0, 1)).view(3, 40, 2)
    expected = torch.cat([frames.mean(1), (frames[:, 1:] - frames[:, :-1]).abs().mean(1)], 1)
    assert torch.allclose(ClipFeatures(network)(clips), expected, atol=1e-6)
    assert ClipFeatures(network)(clips[:, :1])[:, 2:].tolist() == [[0, 0]] * 3


def test_the_untrained_network_tells_scenes_and_motion() -> None:
    still = torch.rand(1, 1, 3, 32, 32).expand(1, 6, 3, 32, 32)
    moving = torch.stack([still[0, 0].roll(4 * i, 2) for i in range(6)])[None]
    features = ClipFeatures("random")(torch.cat([still, moving, still * 0.3]))
    assert features.shape == (3, 960) and torch.isfinite(features).all()
    assert features[0, 480:].abs().max() == 0 and features[1, 480:].abs().max() > 0
    assert not torch.allclose(features[0, :480], features[2, :480], atol=0.05)
