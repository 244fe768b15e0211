"""Groups, leaks, retrieval and shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dense.curate import Settings
from dense.curate.duplicates import Described, best, groups, leaks
from dense.curate.retrieval import balanced, mode, retrieve, shares
from dense.curate.search import Vectors


def described(vectors: np.ndarray, hashes: np.ndarray | None = None) -> Described:
    """With random hashes, far from each other, if none are given."""
    random = np.random.default_rng(len(vectors)).integers(0, 256, (len(vectors), 8), dtype=np.uint8)
    hashes = random if hashes is None else hashes
    return Described(Vectors([vectors.astype(np.float32)]), hashes, hashes)


def directions(degrees: list[float]) -> np.ndarray:
    """Unit vectors in a plane."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


# ---- duplicates


@pytest.mark.parametrize("index", ["flat", "ivfpq"])
def test_groups_are_connected_components(index: Any) -> None:
    """A chain is one group though its ends differ."""
    found = groups(
        described(directions([0, 5, 10, 40, 44, 90, *list(range(130, 330, 20))])), Settings(threshold=0.99, index=index)
    )
    assert len(set(found[:3])) == 1
    assert found[3] == found[4] != found[0]
    assert len(set(found)) == 3 + 10


def test_hashes_join_what_features_do_not() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (3, 8), dtype=np.uint8)
    hashes[2] = hashes[0] ^ np.array([1, 0, 0, 0, 0, 0, 0, 3], np.uint8)
    found = groups(described(directions([0, 90, 180]), hashes), Settings())
    assert found[0] == found[2] != found[1]
    assert len(set(groups(described(directions([0, 90, 180]), hashes), Settings(hash_distance=2)))) == 3


@pytest.mark.parametrize(("keep", "expected"), [("largest", 2), ("sharpest", 1)])
def test_the_best_of_a_group_stays(keep: Any, expected: int) -> None:
    """Ties go by the other measure, then to the first; curated images before all."""
    group, pixels = np.array([0, 0, 0, 1, 1]), np.array([10, 10, 20, 5, 5])
    sharp, none = np.array([1, 3, 2, 7, 7], np.float32), np.zeros(5, bool)
    assert best(group, none, pixels, sharp, keep).tolist() == [expected] * 3 + [3, 3]
    first = np.array([True, False, False, False, True])
    assert best(group, first, pixels, sharp, keep).tolist() == [0, 0, 0, 4, 4]


def test_no_leak_is_missed() -> None:
    """Every copy of a held-out vector is found, however many there are of one: neighbours do not limit it."""
    rng = np.random.default_rng(0)
    tests = rng.standard_normal((20, 16))
    pool = np.concatenate(
        [tests[rng.integers(20, size=400)] + 0.01 * rng.standard_normal((400, 16)), rng.standard_normal((400, 16))]
    )
    shows = leaks(described(pool), described(tests), Settings(neighbours=1))
    assert (shows[:400] >= 0).all()
    assert (shows[400:] >= 0).mean() < 0.02
    assert (leaks(described(pool), described(tests[:0]), Settings()) == -1).all()


# ---- retrieval


def pool_of(sizes: dict[float, int]) -> Vectors:
    rng = np.random.default_rng(0)
    return Vectors(
        [directions([d + 0.1 * rng.standard_normal() for d, n in sizes.items() for _ in range(n)]).astype(np.float32)]
    )


def test_the_nearest_are_retrieved() -> None:
    """k of each query, each image once, all queries' best before any query's second."""
    pool, queries = pool_of({0: 10, 90: 10, 180: 10}), Vectors([directions([0, 90, 90]).astype(np.float32)])
    found = retrieve(pool, queries, np.array([0, 1, 1]), Settings(retrieve="nearest", per_query=3))
    assert len(set(found.places.tolist())) == len(found) == 6
    assert (found.places // 10 == (found.queries > 0)).all()
    assert (found.sets == (found.queries > 0)).all()
    assert {int(q) for q in found.queries[:2]} == {0, 1}


def test_more_is_asked_for_than_there_is() -> None:
    """A query set larger than the pool gets all of it, once."""
    pool, queries = pool_of({0: 3}), Vectors([directions([float(d) for d in range(100)]).astype(np.float32)])
    for how in ("nearest", "clusters"):
        found = retrieve(pool, queries, np.zeros(100, np.int64), Settings(retrieve=how, per_query=50))
        assert sorted(found.places.tolist()) == [0, 1, 2]
    none = retrieve(pool.chosen(np.zeros(0, np.int64)), queries, np.zeros(100, np.int64), Settings())
    assert len(none) == 0


def test_clusters_are_sampled_within_caps() -> None:
    """By query and by cluster; nothing of clusters that no query is in; the same for the same seed alone."""
    pool = pool_of({0: 100, 90: 100, 180: 100})
    queries = Vectors([directions([0] * 5 + [90] * 30).astype(np.float32)])
    sets = np.zeros(35, np.int64)
    settings = Settings(retrieve="clusters", clusters=3, per_query=4, per_cluster=60)
    found = retrieve(pool, queries, sets, settings)
    assert np.bincount(found.places // 100, minlength=3).tolist() == [20, 60, 0]
    assert np.bincount(found.queries).max() <= 4
    assert (retrieve(pool, queries, sets, settings).places == found.places).all()
    other = retrieve(pool, queries, sets, Settings(retrieve="clusters", clusters=3, per_cluster=60, seed=1))
    assert set(other.places.tolist()) != set(found.places.tolist())


def test_auto_goes_by_the_size_of_the_curated_set() -> None:
    assert [mode(Settings(), count) for count in (9_999, 10_000)] == ["clusters", "nearest"]
    assert mode(Settings(retrieve="nearest"), 1) == "nearest"


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [([5, 100, 100], 45, [5, 20, 20]), ([3, 3], 100, [3, 3]), ([10, 10, 10], 2, [0, 1, 1]), ([0, 9], 4, [0, 4])],
)
def test_shares_are_equal_as_far_as_they_reach(counts: list[int], total: int, expected: list[int]) -> None:
    assert shares(np.array(counts), total) == expected


def test_a_total_is_shared_by_sets_then_by_sources() -> None:
    """And of one source, what comes first stays."""
    sets = np.array([0] * 8 + [1] * 2)
    sources = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    stays = balanced([sets, sources], 6)
    assert stays.tolist() == [True, True, False, False, True, True, False, False, True, True]
    assert balanced([sets, sources], 10).all()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"threshold": 1.5}, "threshold=1.5: expected 0 to 1"), ({"hash_distance": 8}, "0 to 7"), ({"per_query": 0}, "1 or more"),
        ({"keep": "larger"}, "Did you mean largest"), ({"index": "flatt"}, "Did you mean flat"), ({"threshold": float("nan")}, "nan"),
    ],
)  # fmt: skip
def test_absurd_settings(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**choice)
