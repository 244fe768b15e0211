"""Depth of data as the depth that a head learns, and batches that lack targets."""

from __future__ import annotations

import pytest
import torch

from dense.data.labelled.sample import Batch, Sample, collate
from dense.tasks.depth import depth_target
from dense.tasks.options import OptimOptions, TargetOptions

NAN, INF = float("nan"), float("inf")
DEPTH = torch.tensor([0.5, 2.0, 8.0, NAN, INF, 0.0]).view(1, 1, 2, 3)
BOUNDS = TargetOptions(min_depth=1.0, max_depth=4.0)


def flat(*values: torch.Tensor) -> list[list[float]]:
    return [v.flatten().tolist() for v in values]


@pytest.mark.parametrize(
    ("wanted", "options", "values", "mask"),
    [
        ("metric", TargetOptions(), [0.5, 2, 8], [1, 1, 1, 0, 0, 0]),
        ("metric", BOUNDS, [1, 2, 1], [0, 1, 0, 0, 0, 0]),
        ("log", TargetOptions(), torch.tensor([0.5, 2, 8]).log().tolist(), [1, 1, 1, 0, 0, 0]),
        ("inverse_relative", TargetOptions(), [2, 0.5, 0.125, 0, 0, 0], [1, 1, 1, 0, 1, 0]),
        ("inverse_relative", BOUNDS, [0, 0.5, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0]),
    ],
)
def test_metric_depth(wanted: str, options: TargetOptions, values: list[float], mask: list[int]) -> None:
    """What is infinitely far counts as inverse depth 0 alone, whatever the bounds."""
    target, valid = depth_target(DEPTH, "metric", wanted, options)  # type: ignore[arg-type]
    found, kept = flat(target, valid)
    assert kept == mask
    assert found[: len(values)] == pytest.approx(values)
    assert torch.isfinite(target[valid]).all()


def test_inverse_depth() -> None:
    target, valid = depth_target(DEPTH, "inverse_relative", "inverse_relative", BOUNDS)
    assert flat(valid)[0] == [1, 1, 1, 0, 0, 1]
    assert torch.equal(target[valid], DEPTH[valid])
    for wanted in ("metric", "log"):
        with pytest.raises(ValueError, match=wanted):
            depth_target(DEPTH, "inverse_relative", wanted, BOUNDS)  # type: ignore[arg-type]


def test_targets_are_resized_to_the_nearest() -> None:
    labels = torch.tensor([[[0, 1], [255, 3]]]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    depth = torch.where(labels == 255, NAN, labels.float())[:, None]
    batch = Batch(labels=labels, depth=depth).resized((2, 2))
    assert batch.labels is not None
    assert batch.depth is not None
    assert batch.labels.tolist() == [[[0, 1], [255, 3]]]
    assert batch.depth.isnan().sum() == 1


def test_an_target_that_lacks_is_as_large_as_the_other() -> None:
    """An image resized for validation beside its depth at full size."""
    batch = collate([Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), None, torch.ones(1, 8, 8), "")], True, True)
    assert batch.labels is not None
    assert batch.labels.shape == (1, 8, 8)
    assert (batch.labels == 255).all()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="grid8"):
        TargetOptions(size="grid8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_depth=1"):
        TargetOptions(min_depth=2, max_depth=1)
    for wrong in ({"lr": 0}, {"schedule": "step"}, {"clip": -1}, {"warmup_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OptimOptions(**wrong)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    factors = [OptimOptions(schedule=schedule, warmup_steps=4).factor(s, 20) for s in range(21)]  # type: ignore[arg-type]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0)
    made_short = [OptimOptions(schedule=schedule, warmup_steps=12800).factor(s, 6) for s in range(6)]  # type: ignore[arg-type]
    assert made_short[:3] == [0.5, 1.0, 1.0]  # a third of the run, not all of it
