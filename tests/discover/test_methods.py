"""Each method on features with known objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dense.discover import LOST, Attention, CoClusters, KMeans, MaskCut, Objects, Regions, Spectral, TokenCut, boxes
from dense.discover.attention import smallest_set
from dense.discover.kmeans import cosine_kmeans
from dense.discover.source import centred
from tests.discover.features import blobs, smooth

OBJECTS = [TokenCut(), LOST(), MaskCut()]
REGIONS = [Spectral(3), KMeans(3)]


def with_ids(methods: list[Any]) -> list[Any]:
    """Return parameters with the names of their classes as ids."""
    return [pytest.param(method, id=type(method).__name__) for method in methods]


def same_partition(labels: Tensor, numbers: Tensor) -> bool:
    """Return whether two label maps are the same partition."""
    pairs = set(zip(labels.flatten().tolist(), numbers.flatten().tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("method", with_ids(OBJECTS))
@pytest.mark.parametrize("box", [(3, 8, 4, 10), (0, 5, 0, 6), (8, 12, 3, 9)], ids=["inside", "corner", "border"])
def test_one_object(method: Any, box: tuple[int, int, int, int]) -> None:
    """The mask is the object, also at the border of the image, and the box encloses it."""
    features, numbers = blobs((12, 16), [box])
    found = method(centred(features))
    assert torch.equal(found.masks[0, 0], numbers == 1)
    top, bottom, left, right = box
    assert found.boxes[0, 0].tolist() == [left, top, right, bottom]
    assert found.scores[0, 0] > 0.1


@pytest.mark.parametrize("method", with_ids(OBJECTS))
def test_the_side_of_the_object(method: Any) -> None:
    """An object larger than its background is found by salience only, and the score falls with the doubt."""
    features, numbers = blobs((12, 16), [(0, 5, 9, 16)])  # a corner of background
    features, mask = centred(features), numbers == 0
    inside = mask.float()[None]
    published = replace(method, foreground="published")(features, inside)
    assert torch.equal(published.masks, method(features).masks)
    assert torch.equal(published.masks[0, 0], ~mask)
    assert published.scores[0, 0] > 0.5
    found = method(features, 0.1 + inside)
    assert torch.equal(found.masks[0, 0], mask)
    doubtful = method(features, 1 + 0.1 * inside)
    assert torch.equal(doubtful.masks[0, 0], mask)
    assert found.scores[0, 0] > 0.8
    assert 0 < doubtful.scores[0, 0] < 0.1
    with pytest.raises(ValueError, match=r"salience \(1, 3, 16\) is not on the grid of features \(1, 16, 12, 16\)"):
        method(features, torch.ones(1, 3, 16))


def test_two_blobs_with_equal_features() -> None:
    """TokenCut returns the connected part with the seed, not both."""
    features, numbers = blobs((12, 20), [(2, 8, 2, 8), (4, 9, 12, 18)])
    features[:, :, numbers == 2] = features[:, :, numbers == 1][..., :30]
    mask = TokenCut()(features).masks[0, 0]
    assert torch.equal(mask, numbers == 1) or torch.equal(mask, numbers == 2)


def test_three_objects() -> None:
    """MaskCut finds all three, each once, and the labels show them."""
    features, numbers = blobs((20, 24), [(2, 8, 2, 9), (4, 10, 14, 22), (13, 18, 6, 16)])
    found = MaskCut(3)(features)
    assert same_partition(found.labels[0], numbers)
    assert (found.scores > 0.9).all()
    more = MaskCut(5)(features)
    assert not more.masks[0, 3:].any() or more.scores[0, 3:].max() > 0
    for count, method in ((4, Spectral(4)), (4, KMeans(4))):
        regions = method(features)
        assert regions.count == count
        assert same_partition(regions.labels[0], numbers)
        assert (regions.labels[0][numbers == 0] == 0).all()  # the largest comes first


@pytest.mark.parametrize("method", with_ids([*OBJECTS, Attention()]))
@pytest.mark.parametrize("grid", [(6, 7), (1, 1), (1, 9), (20, 20)], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 3e4])
def test_constant_features_hold_no_object(method: Any, grid: tuple[int, int], value: float) -> None:
    """The mask is empty, score and box are 0, and everything is finite."""
    found = method(torch.full((2, 8, *grid), value))
    assert not found.masks.any()
    assert (found.scores == 0).all()
    assert (found.boxes == 0).all()
    assert found.maps.isfinite().all()
    assert (found.labels == 0).all()


@pytest.mark.parametrize("method", with_ids([TokenCut(), MaskCut()]))
def test_orthogonal_features_hold_no_object(method: Any) -> None:
    """No cut is better than another."""
    found = method(torch.eye(16).view(1, 16, 4, 4))
    assert not found.masks.any()
    assert (found.scores == 0).all()


@pytest.mark.parametrize("method", with_ids(REGIONS))
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 5)], ids=str)
def test_constant_features_are_one_region(method: Any, grid: tuple[int, int]) -> None:
    """Also with fewer patches than regions."""
    labels = method(torch.ones(1, 8, *grid)).labels
    assert labels.shape == (1, *grid)
    assert labels.unique().tolist() == [0]


@pytest.mark.parametrize("method", with_ids([*OBJECTS, *REGIONS]))
@pytest.mark.parametrize("grid", [(1, 12), (9, 1), (17, 18)], ids=str)
def test_batches_equal_single_images(method: Any, grid: tuple[int, int]) -> None:
    """Other images of the batch do not matter, also for grids of one row or column."""
    features = smooth(3, grid)
    together, alone = method(features), [method(f[None]) for f in features]
    for i, one in enumerate(alone):
        assert torch.equal(together.resized((40, 30)).labels[i], one.resized((40, 30)).labels[0])
        if isinstance(one, Objects):
            torch.testing.assert_close(together.scores[i], one.scores[0], atol=1e-5, rtol=1e-4)


def test_attention_keeps_the_smallest_set() -> None:
    """As in the original: patches in descending order until they hold more than the share."""
    rows = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)) ** 4
    rows = rows / rows.sum((-2, -1), keepdim=True)
    kept = smallest_set(rows, 0.6)
    ascending, order = rows.flatten(2).sort(-1)
    theirs = torch.zeros_like(rows, dtype=torch.bool).flatten(2).scatter(-1, order, ascending.cumsum(-1) > 0.4)
    assert torch.equal(kept, theirs.view(kept.shape))
    held = (rows * kept).sum((-2, -1))
    assert (held >= 0.6).all()
    least = torch.where(kept, rows, 1.0).amin((-2, -1))
    assert (held - least < 0.6).all()
    ties = torch.tensor([[[[0.5, 0.25, 0.125, 0.125]]]])  # the first patch already holds half
    assert smallest_set(ties, 0.5)[0, 0, 0].tolist() == [True, False, False, False]


def test_attention_modes() -> None:
    """One mask per head, that of the mean, that of the most concentrated head."""
    rows = torch.full((1, 2, 4, 4), 1 / 16)
    rows[0, 1] = 0
    rows[0, 1, 1:3, 1:3] = 0.25
    heads, mean, best = (Attention(mode=mode)(rows) for mode in ("heads", "mean", "best"))
    assert heads.masks.shape == (1, 2, 4, 4)
    assert not heads.masks[0, 0].any()  # uniform
    assert best.masks[0, 0].sum() == 3  # of 4 equal patches, 3 hold more than 0.6
    assert torch.equal(best.masks[0, 0], heads.masks[0, 1])
    assert mean.masks.shape[1] == best.masks.shape[1] == 1
    assert best.scores[0, 0] == pytest.approx(3 / 4 - 3 / 16)


def test_coclusters_hold_for_all_images(tmp_path: Any) -> None:
    """A class has one number in all images of any size; memory holds a sample; a saved file restores the classes."""
    first, a = blobs((10, 12), [(2, 6, 2, 7)])
    second, b = blobs((8, 9), [(4, 8, 4, 9)], seed=1)
    passes = []

    def stream() -> Any:
        passes.append(1)
        yield from (first, second)

    classes = CoClusters.fit(stream, 2, passes=3, sample=50)
    assert len(passes) == 3
    found = [classes(features).labels[0] for features in (first, second)]
    assert same_partition(torch.cat([x.flatten() for x in found]), torch.cat([x.flatten() for x in (a, b)]))
    classes.save(tmp_path / "classes.safetensors")
    again = CoClusters.load(tmp_path / "classes.safetensors")
    assert torch.equal(again(first).labels[0], found[0])
    with pytest.raises(ValueError, match="features have 8 channels, the classes 16"):
        classes(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match="cannot be shared out"):
        CoClusters.fit(lambda: [torch.ones(1, 4, 1, 2)], 3)
    with pytest.raises(ValueError, match="no images"):
        CoClusters.fit(lambda: [], 3)


def test_kmeans_finds_the_best_grouping() -> None:
    """Compare with scikit-learn on unit rows: the inertia is no larger."""
    cluster = pytest.importorskip("sklearn.cluster")
    rows = torch.nn.functional.normalize(smooth(1, (12, 12)).flatten(2).mT, dim=-1)
    labels, centres = cosine_kmeans(rows, 4, tries=8)
    ours = (1 - (rows @ centres.mT).gather(-1, labels[..., None])).sum()
    peer = cluster.KMeans(4, n_init=10, random_state=0).fit(rows[0].numpy())
    means = torch.from_numpy(peer.cluster_centers_)
    theirs = (1 - (rows[0] * torch.nn.functional.normalize(means, dim=-1)[peer.labels_]).sum(-1)).sum()
    assert ours <= theirs * 1.01


def test_boxes_and_sizes() -> None:
    """Boxes of any leading shape; enlarged masks keep square patches."""
    masks = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 2] = True
    assert boxes(masks).tolist() == [[[2, 1, 3, 3]], [[0, 0, 0, 0]]]
    found = Objects(masks, torch.ones(2, 1), masks.float()).resized((8, 18))
    assert found.boxes.tolist() == [[[6, 2, 9, 6]], [[0, 0, 0, 0]]]
    assert Regions(masks[:, 0].byte(), 2).resized((8, 12)).labels.sum() == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenCut(tau=1.5), "tau=1.5: expected a cosine"),
        (lambda: TokenCut(foreground="front"), "foreground='front': expected attention or published"),  # type: ignore[arg-type]
        (lambda: TokenCut(eps=0), "eps=0: expected a small positive"),
        (lambda: MaskCut(0), "count=0: expected 1 to 255"),
        (lambda: MaskCut(least=5.0), "least=5.0: expected a share"),
        (lambda: Spectral(tau=1.5), "tau=1.5: expected a cosine"),
        (lambda: CoClusters.fit(lambda: [torch.ones(1, 4, 2, 2)], 2, passes=0), "passes=0: expected at least 1"),
        (lambda: KMeans(1), "count=1: expected 2 to 254"),
        (lambda: LOST(0), "k_patches=0"),
        (lambda: Attention(1.0), "share=1.0"),
        (lambda: Attention(mode="all"), "mode='all': expected one of"),  # type: ignore[arg-type]
        (lambda: Attention()(-torch.ones(1, 2, 3, 3)), "not negative"),
        (lambda: TokenCut()(torch.zeros(3, 4, 4)), r"\(B, C, h, w\)"),
        (lambda: LOST()(torch.zeros(1, 3, 0, 4)), r"none of them 0"),
        (lambda: KMeans()(torch.full((2, 3, 4, 4), torch.nan)), r"images \[0, 1\] are not finite"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    """Named, with what was expected."""
    with pytest.raises(ValueError, match=message):
        make()
