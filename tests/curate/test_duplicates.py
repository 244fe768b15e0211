"""Perceptual hashes, groups of duplicates and copies of held-out images."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks._planted import COPIES
from dense.curate import Settings
from dense.curate.alignment import Alignment
from dense.curate.duplicates import (
    Signatures,
    duplicate_groups,
    hash_pairs,
    held_out_matches,
    near_hashes,
    perceptual_hash,
    representatives,
)
from dense.curate.search import Vectors
from tests.curate.pools import directions, scene


def bits(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.unpackbits(a ^ b).sum())


def signatures(vectors: np.ndarray, hashes: np.ndarray | None = None) -> Signatures:
    """Return signatures, with random hashes far from each other by default."""
    random = np.random.default_rng(len(vectors)).integers(0, 256, (len(vectors), 8), dtype=np.uint8)
    hashes = random if hashes is None else hashes
    return Signatures(Vectors([vectors.astype(np.float32)]), hashes, hashes)


def groups(images: Signatures, settings: Settings) -> np.ndarray:
    return duplicate_groups(images, settings)[0]


# ---- hashes


def test_hashes_are_robust_to_resizing_compression_and_mirroring() -> None:
    """Copies of a scene are nearer than other scenes; the second hash recognises the mirror image."""
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
    """The result equals an exhaustive comparison."""
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


# ---- duplicates


@pytest.mark.parametrize("index", ["flat", "ivfpq"])
def test_groups_are_connected_components(index: Any) -> None:
    """A chain is one group although its ends differ."""
    found = groups(
        signatures(directions([0, 5, 10, 40, 44, 90, *list(range(130, 330, 20))])),
        Settings(threshold=0.99, index=index),
    )
    assert len(set(found[:3])) == 1
    assert found[3] == found[4] != found[0]
    assert len(set(found)) == 3 + 10


def test_hashes_connect_images_that_features_do_not() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (3, 8), dtype=np.uint8)
    hashes[2] = hashes[0] ^ np.array([1, 0, 0, 0, 0, 0, 0, 3], np.uint8)
    found = groups(signatures(directions([0, 90, 180]), hashes), Settings())
    assert found[0] == found[2] != found[1]
    assert len(set(groups(signatures(directions([0, 90, 180]), hashes), Settings(hash_distance=2)))) == 3


@pytest.mark.parametrize(("keep", "expected"), [("largest", 2), ("sharpest", 1)])
def test_the_best_of_a_group_is_kept(keep: Any, expected: int) -> None:
    """Ties are broken by the other measure, then by order; preferred images come first."""
    group, pixels = np.array([0, 0, 0, 1, 1]), np.array([10, 10, 20, 5, 5])
    sharp, none = np.array([1, 3, 2, 7, 7], np.float32), np.zeros(5, bool)
    assert representatives(group, none, pixels, sharp, keep).tolist() == [expected] * 3 + [3, 3]
    first = np.array([True, False, False, False, True])
    assert representatives(group, first, pixels, sharp, keep).tolist() == [0, 0, 0, 4, 4]


def test_every_copy_of_a_held_out_image_is_found() -> None:
    """The number of neighbours does not limit how many copies of one image are found."""
    rng = np.random.default_rng(0)
    tests = rng.standard_normal((20, 16))
    pool = np.concatenate(
        [tests[rng.integers(20, size=400)] + 0.01 * rng.standard_normal((400, 16)), rng.standard_normal((400, 16))]
    )
    shows, _ = held_out_matches(signatures(pool), signatures(tests), Settings(neighbours=1, held_out_threshold=0.9))
    assert (shows[:400] >= 0).all()
    assert (shows[400:] >= 0).mean() < 0.02
    assert (held_out_matches(signatures(pool), signatures(tests[:0]), Settings())[0] == -1).all()


def test_pixels_decide_between_near_images() -> None:
    """The nearest held-out image that agrees is taken; near hashes need no comparison, distant images get none."""
    hashes = np.random.default_rng(0).integers(0, 256, (5, 8), dtype=np.uint8)
    images = signatures(directions([0, 30, 90, 0]), hashes[[0, 1, 2, 4]])
    held_out = signatures(directions([1, 2, 200]), hashes[[3, 3, 4]])
    compared = []

    def compare(image: int, place: int) -> Alignment:
        compared.append((image, place))
        return Alignment(0.8 if place == 1 else 0.6, mirrored=True)

    matches, found = held_out_matches(images, held_out, Settings(held_out_threshold=0.8, agreement=0.7), compare)
    assert compared == [(0, 0), (0, 1), (1, 1)]
    assert matches.tolist() == [1, 1, -1, 2]
    assert found == {0: Alignment(0.8, mirrored=True), 1: Alignment(0.8, mirrored=True)}
    matches, found = held_out_matches(images, held_out, Settings(held_out_threshold=0.8, agreement=0), compare)
    assert matches.tolist() == [0, 1, -1, 2]
    assert not found
    assert len(compared) == 3


def test_pixels_decide_between_duplicates() -> None:
    """The nearest pair is compared first, joined images are not compared again, and failures are limited."""
    hashes = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    hashes[5] = hashes[0]
    images, compared = signatures(directions([0, 1, 3, 90, 91.5, 180]), hashes), list[tuple[int, int]]()

    def compare(a: int, b: int) -> Alignment:
        compared.append((a, b))
        return Alignment(0.8 if a == 0 else 0.6)

    settings = Settings(threshold=0.97, agreement=0.7)
    found, by_hash = duplicate_groups(images, settings, compare)
    assert compared == [(0, 1), (3, 4), (1, 2), (0, 2)]
    assert found.tolist() == [0, 0, 0, 1, 2, 0]
    assert len(set(by_hash)) == 5
    assert found.tolist() != groups(images, Settings(threshold=0.97)).tolist() == [0, 0, 0, 1, 1, 0]
    near = signatures(directions([number / 10 for number in range(41)]))
    compared.clear()
    duplicate_groups(near, settings, compare)
    assert 40 <= len(compared) <= 2 * len(near)


def test_the_benchmark_imports() -> None:
    sys.path.insert(0, "benchmarks")
    try:
        assert importlib.import_module("benchmarks.curate").COPIES.keys() == COPIES.keys()
    finally:
        sys.path.remove("benchmarks")
