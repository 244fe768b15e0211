"""DAVIS' J and F against their definitions in NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from dense.metrics.video import contour_accuracy, contours, mean_recall_decay, region_similarity


def contour_by_loops(mask: np.ndarray) -> np.ndarray:
    """A pixel whose right, lower or lower right neighbour within the image is other."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for i in range(height):
        for j in range(width):
            around = mask[i : i + 2, j : j + 2]
            found[i, j] = (around != mask[i, j]).any()
    return found


def f_by_distances(mask: np.ndarray, ground_truth: np.ndarray) -> float:
    """By the distance of every pixel to the other contour."""
    reach = np.ceil(0.008 * np.hypot(*mask.shape))
    a, b = contour_by_loops(mask), contour_by_loops(ground_truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = (ndimage.distance_transform_edt(~b) <= reach)[a].mean()
    recall = (ndimage.distance_transform_edt(~a) <= reach)[b].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def shapes(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth random shapes, some at the border, some in several parts."""
    noise = np.random.default_rng(seed).normal(size=(count, *size))
    return np.stack([ndimage.gaussian_filter(one, 6) > 0.01 for one in noise])


@pytest.mark.parametrize("size", [(60, 90), (130, 71), (1, 40)])
def test_against_numpy_and_scipy(size: tuple[int, int]) -> None:
    """Related shapes, so that values are spread, with tolerances of 1 and 2 pixels."""
    ground_truth = shapes(4, size, 0)
    masks = np.stack([np.roll(one, (k, 2 * k), (0, 1)) for k, one in enumerate(ground_truth)])
    masks[3] ^= shapes(1, size, 5)[0]
    a, b = torch.from_numpy(masks), torch.from_numpy(ground_truth)
    j = [(x & y).sum() / (x | y).sum() if (x | y).any() else 1.0 for x, y in zip(masks, ground_truth, strict=True)]
    np.testing.assert_allclose(region_similarity(a, b), j)
    f = [f_by_distances(x, y) for x, y in zip(masks, ground_truth, strict=True)]
    np.testing.assert_allclose(contour_accuracy(a, b), f)
    assert f[0] == j[0] == 1
    assert size[0] == 1 or min(f) < 0.9


def test_contours() -> None:
    mask = shapes(1, (40, 50), 3)
    assert np.array_equal(contours(torch.from_numpy(mask))[0], contour_by_loops(mask[0]))


def test_empty_masks_and_invalid_pixels() -> None:
    """Two empty masks agree, an empty and another one do not; invalid pixels do not count."""
    some, none = torch.zeros(1, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20, dtype=torch.bool)
    some[:, 5:10, 5:10] = True
    for a, b, value in ((none, none, 1), (some, none, 0), (none, some, 0), (some, some, 1)):
        assert region_similarity(a, b).item() == contour_accuracy(a, b).item() == value
    more = some.clone()
    more[:, 5:10, 10:18] = True
    known = torch.ones(20, 20, dtype=torch.bool)
    known[:, 10:] = False
    assert region_similarity(more, some).item() < 0.5
    assert region_similarity(more, some, known).item() == contour_accuracy(more, some, known).item() == 1
    with pytest.raises(ValueError, match="expected"):
        region_similarity(some, none[:, :5])


def test_mean_recall_and_decay() -> None:
    """Quarters of eight frames, by hand: 0..2 and 5..7, as the published evaluation cuts them."""
    values = torch.tensor([1.0, 0.9, 0.8, 0.8, 0.6, 0.4, 0.2, 0.3], dtype=torch.double)
    mean, recall, decay = mean_recall_decay(values)
    assert mean == pytest.approx(0.625)
    assert recall == pytest.approx(5 / 8)
    assert decay == pytest.approx(0.9 - 0.3)
    assert mean_recall_decay(torch.tensor([0.7])) == (pytest.approx(0.7), 1.0, 0.0)
