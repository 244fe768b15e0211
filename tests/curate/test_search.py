"""Vectors and searches against plain NumPy and scikit-learn."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from dense.curate import search as search_module
from dense.curate.search import IVFPQ, Flat, Vectors, assign, build_index, cluster, import_faiss, search_blocks


def clumps(count: int, dim: int = 30) -> np.ndarray:
    """Return vectors around fifty centres."""
    rng = np.random.default_rng(0)
    return (
        3 * rng.standard_normal((50, dim))[rng.integers(50, size=count)] + rng.standard_normal((count, dim))
    ).astype(np.float32)


# ---- vectors


def test_vectors_come_from_several_arrays() -> None:
    """In any order, centred by a mean, of unit length."""
    whole = clumps(100)
    mean = whole.mean(0)
    vectors = Vectors([whole[:30], whole[30:31], whole[31:]], np.arange(5, 95), mean)
    places = np.random.default_rng(0).integers(90, size=40)
    np.testing.assert_allclose(vectors.take(places), normalize(whole[5:95][places] - mean), atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([b for _, b in vectors.blocks(7)]), normalize(whole[5:95] - mean), atol=1e-6
    )
    assert vectors.subset(np.array([3])).rows.tolist() == [8]
    assert vectors.sample(10, 0).shape == (10, 30)
    assert (vectors.sample(10, 0) == vectors.sample(10, 0)).all()
    assert (Vectors([np.ones((2, 3), np.float32)], None, np.ones(3, np.float32)).take(np.arange(2)) == 0).all()


# ---- search


def test_flat_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over many blocks."""
    monkeypatch.setattr(search_module, "BLOCK", 64)
    monkeypatch.setattr(search_module, "QUERY_BLOCK", 50)
    bank, queries = clumps(500), clumps(620)[500:]
    ours = list(search_blocks(Flat(Vectors([bank])), Vectors([queries]), 5))
    assert [start for start, _, _ in ours] == [0, 50, 100]
    distances, places = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank).kneighbors(queries)
    np.testing.assert_array_equal(np.concatenate([p for _, _, p in ours]), places)
    np.testing.assert_allclose(np.concatenate([c for _, c, _ in ours]), 1 - distances, atol=1e-5)


def test_more_neighbours_than_vectors() -> None:
    """Missing neighbours are -1."""
    vectors = Vectors([clumps(3)])
    cosines, places = Flat(vectors).search(vectors.take(np.arange(3)), 5)
    assert (places[:, 3:] == -1).all()
    assert np.isneginf(cosines[:, 3:]).all()
    assert (places[:, 0] == np.arange(3)).all()


def test_ivfpq_finds_nearly_all() -> None:
    """Recall against exact search; its cosines are exact, and the same seed gives the same result."""
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
    """Fewer vectors than the training of codes asks for."""
    vectors = Vectors([clumps(100)])
    _, places = IVFPQ(vectors).search(vectors.take(np.arange(100)), 3)
    assert (places[:, 0] == np.arange(100)).mean() > 0.9
    assert isinstance(build_index(vectors, "auto"), Flat)
    assert isinstance(build_index(vectors, "ivfpq"), IVFPQ)
    for count in (1, 5, 15):
        few = vectors.subset(np.arange(count))
        assert (IVFPQ(few).search(few.take(np.arange(count)), 1)[1][:, 0] == np.arange(count)).all()


def test_clusters_are_those_of_the_data() -> None:
    """Twenty clumps, twenty clusters: nearly every clump is in one cluster."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 30))
    label = rng.integers(20, size=2000)
    vectors = Vectors([(centres[label] + 0.1 * rng.standard_normal((2000, 30))).astype(np.float32)])
    found = cluster(vectors, 20, 0)
    homes = assign(vectors, found)
    most = [np.bincount(homes[label == number]).max() for number in range(20)]
    assert sum(most) > 0.9 * 2000
    assert (cluster(vectors, 20, 0) == found).all()


def test_a_missing_faiss_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command to install it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'dino-dense\[curate\]'"):
        import_faiss()
