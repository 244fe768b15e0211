"""Labels propagated through synthetic features, and compared with plain loops."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dense.discover import Propagation, Tracker, propagate
from tests.discover.features import blobs


def by_loops(features: np.ndarray, context: np.ndarray, labels: np.ndarray, settings: Propagation) -> np.ndarray:
    """Propagate patch by patch, over all patches of all frames."""
    (_, height, width), frames = features.shape, len(context)
    out = np.zeros((labels.shape[1], height, width))
    for i in range(height):
        for j in range(width):
            found = []
            for t in range(frames):
                for a in range(height):
                    for b in range(width):
                        far = np.hypot(a - i, b - j) if settings.shape == "circle" else max(abs(a - i), abs(b - j))
                        if not settings.neighbourhood or far <= settings.neighbourhood:
                            found.append((float(features[:, i, j] @ context[t, :, a, b]), t, a, b))
            found = sorted(found, reverse=True)[: settings.topk]
            weights = np.exp(np.array([one[0] for one in found]) / settings.temperature)
            for weight, (_, t, a, b) in zip(weights / weights.sum(), found, strict=True):
                out[:, i, j] += weight * labels[t, :, a, b]
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"neighbourhood": 3, "shape": "square", "topk": 5},
        {"neighbourhood": 3, "shape": "circle", "topk": 4, "temperature": 0.2},
        {"neighbourhood": 0, "topk": 3},
        {"neighbourhood": 1, "topk": 50},
    ],
)
def test_against_loops(settings: dict[str, Any]) -> None:
    """Square and circle, borders of frames and tiles, fewer patches than topk, several videos at once."""
    generator = torch.Generator().manual_seed(0)
    propagation, grid = Propagation(**settings), (5, 15)
    features = F.normalize(torch.randn(2, 4, 6, *grid, generator=generator), dim=2)
    labels = torch.rand(2, 3, 2, *grid, generator=generator)
    found = propagate(features[:, 3], features[:, :3], labels, propagation)
    for one in range(2):
        wanted = by_loops(features[one, 3].numpy(), features[one, :3].numpy(), labels[one].numpy(), propagation)
        np.testing.assert_allclose(found[one].numpy(), wanted, atol=1e-5)


def test_moving_blobs_are_tracked_exactly() -> None:
    """Two blobs move by a known number of patches per frame, across tiles, one of them out of the frame."""
    grid = (20, 40)
    boxes = [[(3, 8, 4 + 2 * t, 10 + 2 * t), (10 + t, 15 + t, 28 + t, 34 + t)] for t in range(15)]
    frames = [blobs(grid, [(a, b, c, d) for a, b, c, d in some], noise=0.02, seed=t) for t, some in enumerate(boxes)]
    first = F.one_hot(frames[0][1], 3).permute(2, 0, 1)[None]
    tracker = Tracker(frames[0][0], first, Propagation(context=3))
    for features, numbers in frames[1:]:
        assert torch.equal(tracker.step(features).argmax(1)[0], numbers)
    assert (frames[-1][1] == 2).sum() == 0


def test_what_moves_farther_than_the_neighbourhood_is_lost() -> None:
    """Without the limit the blob is found again."""
    near, far = (blobs((8, 40), [(2, 6, a, a + 4)], 0.02) for a in (2, 30))
    first = F.one_hot(near[1], 2).permute(2, 0, 1)[None]
    for limit, there in ((12, 0), (0, 16)):
        found = Tracker(near[0], first, Propagation(neighbourhood=limit)).step(far[0]).argmax(1)
        assert int((found == 1).sum()) == there


@pytest.mark.parametrize("context", [0, 1, 4])
def test_memory_is_that_of_the_context(context: int) -> None:
    """Of 30 frames only the features of the first and of the last `context` are in memory."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, 6, 7, generator=generator)
    tracker = Tracker(features, torch.ones(1, 2, 6, 7), Propagation(context=context))
    kept: list[weakref.ref[torch.Tensor]] = []
    for t in range(30):
        tracker.step(torch.randn(1, 8, 6, 7, generator=generator))
        if context:
            kept.append(weakref.ref(tracker.recent[-1][0]))
        assert len(tracker.recent) == min(t + 1, context)
    gc.collect()
    assert sum(one() is not None for one in kept) == context


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topk": 0}, "topk=0: expected a whole number of 1 or more"),
        ({"context": -1}, "context=-1"),
        ({"neighbourhood": 1.5}, "neighbourhood=1.5"),
        ({"temperature": 0.0}, "temperature=0.0: expected a positive"),
        ({"shape": "round"}, "expected square or circle"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Propagation(**settings)


def test_wrong_features() -> None:
    """Another grid, and values that are not finite."""
    with pytest.raises(ValueError, match="differ in grid"):
        Tracker(torch.ones(1, 3, 4, 4), torch.ones(1, 2, 4, 5), Propagation())
    tracker = Tracker(torch.ones(1, 3, 4, 4), torch.ones(1, 2, 4, 4), Propagation())
    with pytest.raises(ValueError, match="those of the first frame"):
        tracker.step(torch.ones(1, 3, 4, 5))
    with pytest.raises(ValueError, match="not finite"):
        tracker.step(torch.full((1, 3, 4, 4), torch.nan))
