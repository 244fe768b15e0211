"""Retrieval, equal shares and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dense.curate import Settings
from dense.curate.retrieval import balance, equal_shares, resolve_retrieve, retrieve
from dense.curate.search import Vectors
from tests.curate.pools import directions


def pool_of(sizes: dict[float, int]) -> Vectors:
    rng = np.random.default_rng(0)
    return Vectors(
        [directions([d + 0.1 * rng.standard_normal() for d, n in sizes.items() for _ in range(n)]).astype(np.float32)]
    )


def test_the_nearest_are_retrieved() -> None:
    """k per query, each image once, the best of all queries before the second of any."""
    pool, queries = pool_of({0: 10, 90: 10, 180: 10}), Vectors([directions([0, 90, 90]).astype(np.float32)])
    found = retrieve(pool, queries, np.array([0, 1, 1]), Settings(retrieve="nearest", per_query=3))
    assert len(set(found.indices.tolist())) == len(found) == 6
    assert (found.indices // 10 == (found.queries > 0)).all()
    assert (found.sets == (found.queries > 0)).all()
    assert {int(q) for q in found.queries[:2]} == {0, 1}


def test_more_queries_than_images() -> None:
    """Queries that outnumber the pool retrieve all of it, once."""
    pool, queries = pool_of({0: 3}), Vectors([directions([float(d) for d in range(100)]).astype(np.float32)])
    for method in ("nearest", "clusters"):
        found = retrieve(pool, queries, np.zeros(100, np.int64), Settings(retrieve=method, per_query=50))
        assert sorted(found.indices.tolist()) == [0, 1, 2]
    none = retrieve(pool.subset(np.zeros(0, np.int64)), queries, np.zeros(100, np.int64), Settings())
    assert len(none) == 0


def test_clusters_are_sampled_within_caps() -> None:
    """Limits per query and per cluster; nothing from clusters without a query; the sample depends on the seed."""
    pool = pool_of({0: 100, 90: 100, 180: 100})
    queries = Vectors([directions([0] * 5 + [90] * 30).astype(np.float32)])
    sets = np.zeros(35, np.int64)
    settings = Settings(retrieve="clusters", clusters=3, per_query=4, per_cluster=60)
    found = retrieve(pool, queries, sets, settings)
    assert np.bincount(found.indices // 100, minlength=3).tolist() == [20, 60, 0]
    assert np.bincount(found.queries).max() <= 4
    assert (retrieve(pool, queries, sets, settings).indices == found.indices).all()
    other = retrieve(pool, queries, sets, Settings(retrieve="clusters", clusters=3, per_cluster=60, seed=1))
    assert set(other.indices.tolist()) != set(found.indices.tolist())


def test_auto_depends_on_the_size_of_the_curated_set() -> None:
    assert [resolve_retrieve(Settings(), count) for count in (9_999, 10_000)] == ["clusters", "nearest"]
    assert resolve_retrieve(Settings(retrieve="nearest"), 1) == "nearest"


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [([5, 100, 100], 45, [5, 20, 20]), ([3, 3], 100, [3, 3]), ([10, 10, 10], 2, [0, 1, 1]), ([0, 9], 4, [0, 4])],
)
def test_shares_are_as_equal_as_the_counts_allow(counts: list[int], total: int, expected: list[int]) -> None:
    assert equal_shares(np.array(counts), total) == expected


def test_a_total_is_shared_by_sets_then_by_sources() -> None:
    """Within one source the first images are kept."""
    sets = np.array([0] * 8 + [1] * 2)
    sources = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    stays = balance([sets, sources], 6)
    assert stays.tolist() == [True, True, False, False, True, True, False, False, True, True]
    assert balance([sets, sources], 10).all()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"threshold": 1.5}, "threshold=1.5: expected 0 to 1"),
        ({"threshold": float("nan")}, "nan"),
        ({"hash_distance": 8}, "0 to 7"),
        ({"per_query": 0}, "1 or more"),
        ({"keep": "larger"}, "Did you mean largest"),
        ({"index": "flatt"}, "Did you mean flat"),
    ],
)
def test_invalid_settings_raise(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**choice)
