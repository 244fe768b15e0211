"""k-NN against scikit-learn, and at sizes where chunks and clipping matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from dense.evaluate import accuracy, knn_accuracy, knn_classify


def clusters(n: int, classes: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points around as many centres as there are classes, at random distances from the origin."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=rng)
    points = centres[labels] + spread * torch.randn(n, 16, generator=rng)
    return points * (0.5 + 3 * torch.rand(n, 1, generator=rng)), labels


def by_scikit_learn(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> NDArray[np.float64]:
    """Class probabilities; for unit vectors the cosine is 1 - d^2 / 2."""
    unit = [torch.nn.functional.normalize(x.double(), dim=1).numpy() for x in (bank, queries)]
    model = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature), algorithm="brute")
    return model.fit(unit[0], labels.numpy()).predict_proba(unit[1])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("chunks", [(1024, 16384), (7, 31)])
def test_agrees_with_scikit_learn(temperature: float, chunks: tuple[int, int]) -> None:
    """Same predictions and the same shares of votes, in one chunk or in many."""
    bank, labels = clusters(503, 9, 1.4, 0)
    queries, _ = clusters(101, 9, 1.4, 1)
    found = knn_classify(
        bank, labels, queries, (1, 10, 20, 200), temperature, top=9, query_chunk=chunks[0], bank_chunk=chunks[1]
    )
    assert list(found) == [1, 10, 20, 200]
    for k, votes in found.items():
        wanted = by_scikit_learn(bank, labels, queries, k, temperature)
        assert (votes.predictions.numpy() == wanted.argmax(1)).all()
        shares = torch.zeros(101, 9).scatter_(1, votes.classes, votes.shares)
        np.testing.assert_allclose(shares.numpy(), wanted, atol=1e-4)
    assert len({tuple(v.predictions.tolist()) for v in found.values()}) > 1  # k matters on these points


def test_similarity_weighs_votes() -> None:
    """One near neighbour outvotes two far ones at a low temperature, not at a high one; length does not count."""
    bank = torch.tensor([[1.0, 0.1], [0.0, 30.0], [0.1, 30.0]])
    labels, query = torch.tensor([5, 8, 8]), torch.tensor([[9.0, 2.0]])
    assert knn_classify(bank, labels, query, (3,), 0.07)[3].predictions.tolist() == [5]
    assert knn_classify(bank, labels, query, (3,), 10.0)[3].predictions.tolist() == [8]


def test_few_images_and_odd_labels() -> None:
    """A k beyond the bank means the whole bank; one query, any label numbers and top-5 of two classes work."""
    bank, labels = clusters(12, 2, 0.3, 0)
    queries, ground_truth = clusters(1, 2, 0.3, 3)
    named = torch.tensor([1000, -7])
    found = knn_classify(bank, named[labels], queries, (10, 200), top=5)
    assert found[200].predictions.tolist() == named[ground_truth].tolist()
    assert found[200].classes.shape == (1, 2)
    assert accuracy(found[200], named[ground_truth], top=5) == 1.0
    whole = knn_classify(bank, labels, queries, (12,))[12]
    torch.testing.assert_close(found[200].shares, whole.shares)


def test_accuracy_counts() -> None:
    """Three quarters right is .75; features of no meaning give about chance."""
    bank, labels = clusters(200, 4, 0.2, 0)
    queries, ground_truth = clusters(100, 4, 0.2, 1)
    wrong = ground_truth.clone()
    wrong[:25] = (wrong[:25] + 1) % 4
    assert knn_accuracy(bank, labels, queries, wrong) == {k: pytest.approx(0.75) for k in (10, 20, 100, 200)} | {
        200: pytest.approx(knn_accuracy(bank, labels, queries, wrong, (200,))[200])
    }
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    random = knn_accuracy(noise[:200], labels, noise[200:], labels, (20,))[20]
    assert 0.12 < random < 0.4


def test_many_classes_in_bounded_memory() -> None:
    """More classes than a chunk of queries could count at once still gives each its own."""
    bank = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3000) * 10**12
    assert knn_accuracy(bank, labels, bank, labels, (1, 5)) == {1: 1.0, 5: 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (0, 10)}, "positive"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"bank_labels": torch.zeros(3)}, "labels of shape"),
        ({"queries": torch.zeros(0, 16)}, "0 queries"),
        ({"queries": torch.full((2, 16), float("nan"))}, "of the queries are not finite"),
        ({"queries": torch.zeros(4, 8)}, r"\(4, 8\)"),
    ],
)
def test_wrong_arguments_name_themselves(change: dict[str, object], message: str) -> None:
    """One clear error each."""
    arguments: dict[str, object] = {
        "bank": torch.ones(5, 16),
        "bank_labels": torch.zeros(5),
        "queries": torch.ones(2, 16),
    }
    with pytest.raises(ValueError, match=message):
        knn_classify(**(arguments | change))  # type: ignore[arg-type]
