"""STEGO: the loss against plain loops, known classes found, saved files and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dense.discover import CoClusters, Distillation, Stego
from dense.discover.stego import CodeHead, correspondence_loss, distil, nearest_images
from tests.discover.features import blobs

QUICK = Distillation(dim=8, batch=4, samples=30, neighbours=2, negatives=2, lr=5e-3)


def test_the_loss_against_plain_loops() -> None:
    """Compute each pair of patches: the agreement less its row's mean, against a quantile of all."""
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    codes, other_codes = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))
    agreement, similarity = np.zeros((2, 5, 5)), np.zeros((2, 5, 5))
    for b in range(2):
        for i in range(5):
            for j in range(5):
                u, v = rows[b, i].double().numpy(), others[b, j].double().numpy()
                agreement[b, i, j] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                c, d = codes[b, i].double().numpy(), other_codes[b, j].double().numpy()
                similarity[b, i, j] = c @ d / np.linalg.norm(c) / np.linalg.norm(d)
            agreement[b, i] -= agreement[b, i].mean()
    threshold = np.sort(agreement.ravel())[40 - 1]  # 20 % of 50 lie above
    expected = -(np.maximum(similarity, 0) * (agreement - threshold)).mean()
    assert float(correspondence_loss(rows, codes, others, other_codes, 0.2)) == pytest.approx(expected, abs=1e-6)


def scenes(count: int = 12) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return features of two kinds of objects on a background, with a strong direction of each image added."""
    maps, labels = [], []
    generator = torch.Generator().manual_seed(5)
    for seed in range(count):
        features, numbers = blobs((8, 8), [(1, 4, 1, 5), (5, 8, 3, 7)], noise=0.3, seed=seed)
        direction = normalize(torch.randn(1, 16, 1, 1, generator=generator), dim=1)
        maps.append(features + 1.0 * direction)
        labels.append(numbers)
    return maps, torch.stack(labels)


def purity(found: torch.Tensor, ground_truth: torch.Tensor) -> float:
    """Return the share of patches in the most frequent class of their cluster."""
    counts = torch.zeros(int(found.max()) + 1, int(ground_truth.max()) + 1)
    counts.index_put_(
        (found.flatten().long(), ground_truth.flatten()), torch.ones(ground_truth.numel()), accumulate=True
    )
    return float(counts.amax(1).sum() / counts.sum())


def test_codes_separate_shared_classes() -> None:
    """Codes separate the classes better than features with a direction of each image added; seeds repeat."""
    maps, ground_truth = scenes()
    plain = CoClusters.fit(lambda: maps, 3)
    ours = Stego.fit(
        lambda: maps, 3, steps=150, settings=Distillation(dim=8, batch=6, samples=30, lr=4e-3, negatives=2)
    )
    found, baseline = (torch.cat([m(f).labels for f in maps]) for m in (ours, plain))
    assert purity(found, ground_truth) > max(purity(baseline, ground_truth), 0.85)
    again = Stego.fit(
        lambda: maps, 3, steps=150, settings=Distillation(dim=8, batch=6, samples=30, lr=4e-3, negatives=2)
    )
    assert all(torch.equal(again(f).labels, ours(f).labels) for f in maps)


def test_the_random_state_is_restored() -> None:
    """Training a head does not change the global random state."""
    rows = normalize(torch.randn(4, 9, 6), dim=-1)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        distil(rows, 60, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_neighbours() -> None:
    """The nearest images by mean feature, without the image itself, at most all others."""
    means = torch.eye(4)[[0, 0, 1, 1]] + 0.1 * torch.eye(4)
    near = nearest_images(means[:, None].expand(-1, 3, -1), 1)
    assert near[:, 0].tolist() == [1, 0, 3, 2]
    assert nearest_images(means[:, None], 7).shape == (4, 3)


def test_files_and_errors(tmp_path: Path) -> None:
    """A saved file restores the classes; wrong inputs raise."""
    maps, _ = scenes(3)
    classes = Stego.fit(lambda: maps, 3, steps=60, settings=QUICK)
    classes.save(tmp_path / "classes.safetensors")
    again = Stego.load(tmp_path / "classes.safetensors")
    assert torch.equal(again(maps[0]).labels, classes(maps[0]).labels)
    CoClusters.fit(lambda: maps, 3).save(tmp_path / "others.safetensors")
    wrong: list[tuple[str, Any]] = [
        ("expected a head and its codes", lambda: Stego.load(tmp_path / "others.safetensors")),
        ("features have 8 channels, the classes 16", lambda: classes(torch.zeros(1, 8, 4, 4))),
        ("at least two images", lambda: Stego.fit(lambda: maps[:1], 3, settings=QUICK)),
        ("no images", lambda: Stego.fit(lambda: [], 3)),
        ("steps=-1: expected 0 or more", lambda: Stego.fit(lambda: maps, 3, steps=-1)),
        ("samples=1", lambda: Distillation(samples=1)),
        ("three shares", lambda: Distillation(attract=(0.1, 0.0, 0.1))),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()


def test_head_is_stegos() -> None:
    """The sum of a linear map and an MLP as wide as the features."""
    head = CodeHead(6, 3)
    rows = torch.randn(2, 5, 6)
    hidden = torch.clamp(rows @ head.mlp[0].weight.T + head.mlp[0].bias, min=0)
    expected = rows @ head.linear.weight.T + head.linear.bias + hidden @ head.mlp[2].weight.T + head.mlp[2].bias
    torch.testing.assert_close(head(rows), expected)
