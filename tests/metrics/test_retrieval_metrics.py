"""Average precision of rankings, against scikit-learn, slow loops and cases made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.metrics.retrieval import average_precision, precision_at, ranked


def drawn(seed: int = 0, queries: int = 20, images: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities without ties, positives and ignored images."""
    rng = torch.Generator().manual_seed(seed)
    similarity = torch.rand(queries, images, generator=rng)
    return similarity, *(torch.rand(queries, images, generator=rng) < share for share in (0.2, 0.15))


def slow(
    similarity: Tensor, positive: Tensor, ignored: Tensor, ks: tuple[int, ...] = (1, 5, 10)
) -> tuple[float, list[float]]:
    """One query by the rules of the revisited Oxford and Paris: places are moved up by the ignored images before."""
    order = sorted(range(len(similarity)), key=lambda i: -similarity[i])
    places, moved = [], 0
    for place, image in enumerate(order):
        if ignored[image]:
            moved += 1
        elif positive[image]:
            places.append(place - moved)
    total = 0.0
    for number, place in enumerate(places):
        before = 1.0 if place == 0 else number / place
        total += (before + (number + 1) / (place + 1)) / 2
    firsts = [min(max(places) + 1, k) for k in ks]
    return total / len(places), [sum(p < first for p in places) / first for first in firsts]


def test_against_the_rules_of_the_revisited_sets() -> None:
    given = drawn()
    hits = ranked(*given)
    found = [average_precision(hits, True), *(precision_at(hits, k, until_last=True) for k in (1, 5, 10))]
    for query, values in enumerate(zip(*found, strict=True)):
        mean, firsts = slow(*(part[query] for part in given))
        assert [float(value) for value in values] == pytest.approx([mean, *firsts])


def test_against_scikit_learn() -> None:
    """Of the images that are not ignored."""
    sklearn = pytest.importorskip("sklearn.metrics")
    similarity, positive, ignored = drawn(1)
    found = average_precision(ranked(similarity, positive, ignored))
    for query, value in enumerate(found.tolist()):
        kept = ~ignored[query]
        expected = sklearn.average_precision_score(positive[query][kept], similarity[query][kept])
        assert value == pytest.approx(expected)


def row(text: str) -> tuple[Tensor, Tensor, Tensor]:
    """A ranking: + positive, - negative, i ignored, b both."""
    places = np.array(list(text))
    similarity = torch.linspace(1, 0, len(text))[None]
    return (
        similarity,
        torch.from_numpy(np.isin(places, ["+", "b"]))[None],
        torch.from_numpy(np.isin(places, ["i", "b"]))[None],
    )


@pytest.mark.parametrize(
    ("text", "mean", "trapezoids"),
    [
        ("+---", 1.0, 1.0),
        ("-+--", 1 / 2, 1 / 4),
        ("+-+-", (1 + 2 / 3) / 2, (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ("i+--", 1.0, 1.0),
        ("bi+-", 1.0, 1.0),
        ("-i+i", 1 / 2, 1 / 4),
        ("++--", 1.0, 1.0),
    ],
)
def test_by_hand(text: str, mean: float, trapezoids: float) -> None:
    hits = ranked(*row(text))
    assert average_precision(hits).item() == pytest.approx(mean)
    assert average_precision(hits, True).item() == pytest.approx(trapezoids)


def test_precision() -> None:
    hits = ranked(*row("i+-+---"))
    assert [precision_at(hits, k).item() for k in (1, 2, 5)] == pytest.approx([1, 1 / 2, 2 / 5])
    assert [precision_at(hits, k, until_last=True).item() for k in (1, 2, 5)] == pytest.approx([1, 1 / 2, 2 / 3])


def test_nothing_positive_and_ties() -> None:
    for text in ("----", "b-ii"):
        hits = ranked(*row(text))
        assert math.isnan(average_precision(hits).item())
        assert math.isnan(average_precision(hits, True).item())
    _, positive, ignored = row("-+-+")
    assert ranked(torch.zeros(1, 4), positive, ignored).tolist() == [[False, True, False, True]]
