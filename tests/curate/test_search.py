"""Hashes, vectors and searches against plain NumPy and scikit-learn."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from benchmarks._planted import COPIES
from dense.curate import search as searching
from dense.curate.hashes import hash_pairs, near_hashes, perceptual_hash
from dense.curate.search import IVFPQ, Flat, Vectors, assign, build, cluster, faiss, search_all
from tests.curate.pools import scene


def bits(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.unpackbits(a ^ b).sum())


def clumps(count: int, dim: int = 30) -> np.ndarray:
    """Vectors around fifty centres."""
    rng = np.random.default_rng(0)
    return (
        3 * rng.standard_normal((50, dim))[rng.integers(50, size=count)] + rng.standard_normal((count, dim))
    ).astype(np.float32)


# ---- hashes


def test_hashes_survive_what_they_should() -> None:
    """Every scene's copies are nearer than any other scene; a mirror image is known by the other hash."""
    known = [perceptual_hash(scene(number, 96)) for number in range(12)]
    between = min(bits(a[0], b[i]) for a in known for b in known if a is not b for i in (0, 1))
    assert between > 7
    for number, (straight, mirrored) in enumerate(known):
        image = scene(number, 96)
        for name in ("half the size", "twice the size", "JPEG of quality 30"):
            assert bits(straight, perceptual_hash(COPIES[name](image))[0]) <= 6, name
        assert bits(mirrored, perceptual_hash(COPIES["mirrored"](image))[0]) <= 2


@pytest.mark.parametrize("distance", [0, 3, 7])
def test_near_hashes_miss_nothing(distance: int) -> None:
    """As a comparison of all with all."""
    rng = np.random.default_rng(distance)
    bank = rng.integers(0, 256, (300, 8), dtype=np.uint8)
    flips = np.stack([rng.permutation(np.arange(64) < n) for n in rng.integers(0, 12, 200)])
    queries = bank[rng.integers(300, size=200)] ^ np.packbits(flips, axis=1)
    mirrored = rng.integers(0, 256, (200, 8), dtype=np.uint8)
    rows, places, counts = near_hashes(bank, queries, mirrored, distance)
    apart = np.unpackbits(queries[:, None] ^ bank[None], axis=2).sum(2)
    expected = np.argwhere(apart <= distance)
    assert sorted(zip(rows.tolist(), places.tolist(), strict=True)) == sorted(map(tuple, expected.tolist()))
    assert (apart[rows, places] == counts).all()


def test_equal_hashes_are_joined_without_all_pairs() -> None:
    """Ten thousand copies of one image make ten thousand pairs, not fifty million."""
    hashes = np.zeros((10_000, 8), np.uint8)
    hashes[-1] = 255
    first, second = hash_pairs(hashes, hashes, 6)
    assert len(first) == 9998
    assert set(first) | set(second) == set(range(9999))
    assert [len(part) for part in hash_pairs(hashes[:0], hashes[:0], 6)] == [0, 0]


# ---- vectors


def test_vectors_come_from_several_arrays() -> None:
    """In any order, less a mean, of unit length."""
    whole = clumps(100)
    mean = whole.mean(0)
    vectors = Vectors([whole[:30], whole[30:31], whole[31:]], np.arange(5, 95), mean)
    places = np.random.default_rng(0).integers(90, size=40)
    np.testing.assert_allclose(vectors.take(places), normalize(whole[5:95][places] - mean), atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([b for _, b in vectors.blocks(7)]), normalize(whole[5:95] - mean), atol=1e-6
    )
    assert vectors.chosen(np.array([3])).rows.tolist() == [8]
    assert vectors.sample(10, 0).shape == (10, 30)
    assert (vectors.sample(10, 0) == vectors.sample(10, 0)).all()
    assert (Vectors([np.ones((2, 3), np.float32)], None, np.ones(3, np.float32)).take(np.arange(2)) == 0).all()


# ---- search


def test_flat_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many blocks."""
    monkeypatch.setattr(searching, "BLOCK", 64)
    monkeypatch.setattr(searching, "QUERIES", 50)
    bank, queries = clumps(500), clumps(620)[500:]
    ours = list(search_all(Flat(Vectors([bank])), Vectors([queries]), 5))
    assert [start for start, _, _ in ours] == [0, 50, 100]
    distances, places = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank).kneighbors(queries)
    np.testing.assert_array_equal(np.concatenate([p for _, _, p in ours]), places)
    np.testing.assert_allclose(np.concatenate([c for _, c, _ in ours]), 1 - distances, atol=1e-5)


def test_more_neighbours_than_vectors() -> None:
    """What is not there is -1."""
    vectors = Vectors([clumps(3)])
    cosines, places = Flat(vectors).search(vectors.take(np.arange(3)), 5)
    assert (places[:, 3:] == -1).all()
    assert np.isneginf(cosines[:, 3:]).all()
    assert (places[:, 0] == np.arange(3)).all()


def test_ivfpq_finds_nearly_all() -> None:
    """Recall against exact search; its cosines are exact, and a seed gives the same again."""
    vectors = Vectors([clumps(10_000, 16)])
    queries = vectors.take(np.arange(0, 10_000, 50))
    _, exact = Flat(vectors).search(queries, 4)
    cosines, places = IVFPQ(vectors).search(queries, 4)
    recall = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(places.tolist(), exact.tolist(), strict=True)])
    assert recall > 0.9
    np.testing.assert_allclose(
        cosines, (queries[:, None] * vectors.take(places.reshape(-1)).reshape(200, 4, -1)).sum(2), atol=1e-5
    )
    assert (IVFPQ(vectors).search(queries, 4)[1] == places).all()


def test_ivfpq_of_few_vectors() -> None:
    """Fewer than codes would want."""
    vectors = Vectors([clumps(100)])
    _, places = IVFPQ(vectors).search(vectors.take(np.arange(100)), 3)
    assert (places[:, 0] == np.arange(100)).mean() > 0.9
    assert isinstance(build(vectors, "auto"), Flat)
    assert isinstance(build(vectors, "ivfpq"), IVFPQ)
    for count in (1, 5, 15):
        few = vectors.chosen(np.arange(count))
        assert (IVFPQ(few).search(few.take(np.arange(count)), 1)[1][:, 0] == np.arange(count)).all()


def test_clusters_are_those_of_the_data() -> None:
    """Fifty clumps, fifty clusters: nearly every clump is in one."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 30))
    ground_truth = rng.integers(20, size=2000)
    vectors = Vectors([(centres[ground_truth] + 0.1 * rng.standard_normal((2000, 30))).astype(np.float32)])
    found = cluster(vectors, 20, 0)
    homes = assign(vectors, found)
    most = [np.bincount(homes[ground_truth == number]).max() for number in range(20)]
    assert sum(most) > 0.9 * 2000
    assert (cluster(vectors, 20, 0) == found).all()


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'dino-dense\[curate\]'"):
        faiss()


def test_the_benchmark_tells_its_options(tmp_path: Path) -> None:
    """It imports what exists."""
    sys.path.insert(0, "benchmarks")
    try:
        assert importlib.import_module("benchmarks.curate").COPIES.keys() == COPIES.keys()
    finally:
        sys.path.remove("benchmarks")
