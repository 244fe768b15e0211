"""Depth metrics: what they do not depend on, and what counts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dense.metrics import DepthEdges, DepthMetrics
from dense.metrics.depth import NAMES


def maps(images: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = 1 + 7 * torch.rand(images, 1, 20, 30, generator=generator)
    prediction = target * (0.7 + 0.6 * torch.rand(images, 1, 20, 30, generator=generator))
    return prediction.to(dtype), target, torch.rand(images, 1, 20, 30, generator=generator) > 0.3


def measure(prediction: Tensor, target: Tensor, mask: Tensor, **options: Any) -> dict[str, float]:
    metric = DepthMetrics(**{"cap": (1e-3, 10.0), **options})
    metric.update(prediction, target, mask)
    return metric.compute()


@pytest.mark.parametrize("average", ["image", "pixel"])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_batches_and_halves_do_not_matter(average: Any, split: int) -> None:
    prediction, target, mask = maps()
    mask[3] = False
    whole = measure(prediction, target, mask, average=average)
    halves = [DepthMetrics(cap=(1e-3, 10.0), average=average) for _ in range(2)]
    order = torch.tensor([4, 0, 3, 1, 2])
    for index, part in enumerate(order.split(split)):
        halves[index % 2].update(prediction[part], target[part], mask[part])
    if split < len(order):
        halves[0].merge_state(halves[1])
    assert halves[0].compute() == pytest.approx(whole, rel=1e-5)
    assert whole["images"] == 4 and whole["skipped"] == 1


@pytest.mark.parametrize("average", ["image", "pixel"])
def test_averages_differ_as_they_should(average: Any) -> None:
    target = torch.full((2, 1, 4, 4), 2.0)
    prediction = target.clone()
    prediction[1] = 3.0  # wrong by half, in one image
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[1, :, 1:] = False  # which has 4 pixels of 20
    assert measure(prediction, target, mask, average=average)["abs_rel"] == pytest.approx(
        {"image": 0.25, "pixel": 0.1}[average]
    )


def test_perfect_depth() -> None:
    _, target, mask = maps()
    result = measure(target, target, mask)
    assert {name: result[name] for name in NAMES} == pytest.approx({n: float("delta" in n) for n in NAMES}, abs=1e-4)


@pytest.mark.parametrize("average", ["image", "pixel"])
def test_images_without_valid_pixels_are_reported(average: Any) -> None:
    prediction, target, mask = maps()
    result = measure(prediction, torch.full_like(target, torch.nan), mask, average=average)
    assert result["images"] == 0 and result["skipped"] == 5
    assert all(math.isnan(result[name]) for name in NAMES)


def test_what_lies_outside_mask_and_cap_does_not_matter() -> None:
    prediction, target, mask = maps()
    wanted = measure(prediction, target, mask)
    for rubbish in (torch.nan, torch.inf, 0.0, -1.0, 1e30):
        assert measure(torch.where(mask, prediction, rubbish), torch.where(mask, target, rubbish), mask) == wanted
    beyond = torch.where(mask, target, 10.0)  # the cap itself does not count
    assert measure(prediction, beyond, torch.ones_like(mask)) == wanted


def test_predictions_are_clipped_to_the_cap() -> None:
    target = torch.full((1, 1, 2, 2), 5.0)
    mask = torch.ones_like(target, dtype=torch.bool)
    assert measure(torch.full_like(target, 1e9), target, mask)["mae"] == pytest.approx(5)
    assert measure(torch.full_like(target, -3.0), target, mask)["mae"] == pytest.approx(5, abs=2e-3)


def test_a_logarithm_is_depth() -> None:
    prediction, target, mask = maps()
    assert measure(prediction.log(), target, mask, kind="log") == pytest.approx(
        measure(prediction, target, mask), rel=1e-4
    )


def test_relative_depth_is_aligned_in_disparity() -> None:
    prediction, target, mask = maps()
    scale, shift = torch.rand(5, 1, 1, 1) + 0.5, torch.rand(5, 1, 1, 1)
    options: dict[str, Any] = {"kind": "inverse_relative", "alignment": "lsq"}
    assert measure(scale / target + shift, target, mask, **options)["abs_rel"] < 1e-5
    noisy = measure(1 / prediction, target, mask, **options)
    assert 0.01 < noisy["abs_rel"] < 0.5
    assert measure(scale / prediction + shift, target, mask, **options) == pytest.approx(noisy, rel=1e-3)


@pytest.mark.parametrize("kind", ["metric", "inverse_relative", "log"])
def test_median_alignment_removes_the_scale(kind: Any) -> None:
    prediction, target, mask = maps()
    values = {"metric": prediction, "inverse_relative": 1 / prediction, "log": prediction.log()}[kind]
    far = {"metric": 0.01 * prediction, "inverse_relative": 100 / prediction, "log": prediction.log() - 5}[kind]
    near = measure(values, target, mask, kind=kind, alignment="median")
    assert measure(far, target, mask, kind=kind, alignment="median") == pytest.approx(near, rel=1e-3)


@pytest.mark.parametrize("alignment", ["median", "lsq"])
@pytest.mark.parametrize("kind", ["metric", "inverse_relative", "log"])
@pytest.mark.parametrize("constant", [0.0, -2.0, 0.3, 1e6])
def test_a_constant_prediction_counts_and_is_bad(kind: Any, alignment: Any, constant: float) -> None:
    _, target, mask = maps()
    flat = torch.full_like(target, min(constant, 50.0) if kind == "log" else constant)
    result = measure(flat, target, mask, kind=kind, alignment=alignment)
    assert result["images"] == 5 and all(math.isfinite(value) for value in result.values())
    assert result["delta1"] < 0.5


def test_crops_count_only_their_pixels() -> None:
    target = torch.full((1, 1, 480, 640), 2.0)
    prediction = torch.full_like(target, 9.0)
    prediction[:, :, 45:471, 41:601] = 2.0
    mask = torch.ones_like(target, dtype=torch.bool)
    assert measure(prediction, target, mask, crop="nyu_eigen")["abs_rel"] == 0
    assert measure(prediction, target, mask)["abs_rel"] > 0.1
    with pytest.raises(ValueError, match="480x640"):
        measure(prediction[..., ::2], target[..., ::2], mask[..., ::2], crop="nyu_eigen")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions(dtype: torch.dtype) -> None:
    prediction, target, mask = maps(dtype=dtype)
    assert measure(prediction, target, mask) == measure(prediction.float(), target, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "metrics"}, "Did you mean metric"),
        ({"alignment": "lqs"}, "Did you mean lsq"),
        ({"crop": "garge"}, "Did you mean garg"),
        ({"kind": "inverse_relative"}, "use alignment='lsq'"),
        ({"cap": (10.0, 1.0)}, "nearest < farthest"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthMetrics(**options)


def test_wrong_shapes_are_named() -> None:
    prediction, target, mask = maps()
    with pytest.raises(ValueError, match="resize the prediction"):
        measure(prediction[..., ::2], target, mask)
    with pytest.raises(TypeError, match=r"torch\.bool"):
        measure(prediction, target, mask.long())


def slow_edge_f1(predicted: Tensor, true: Tensor, known: Tensor, apart: int) -> float:
    """Count the pairs one by one."""
    total, weights = 0.0, 0.0
    height, width = true.shape
    for percent in range(5, 26):
        factor, counts = 1 + percent / 100, [0, 0, 0]
        for y in range(height):
            for x in range(width):
                for v, u in ((y + apart, x), (y, x + apart)):
                    if v >= height or u >= width or not (known[y, x] and known[v, u]):
                        continue
                    p, t = (
                        [bool(m[v, u] > m[y, x] * factor), bool(m[y, x] > m[v, u] * factor)] for m in (predicted, true)
                    )
                    counts[0] += any(p)
                    counts[1] += any(t)
                    counts[2] += any(t) and p == t
        total += percent * 2 * counts[2] / max(counts[0] + counts[1], 1)
        weights += percent
    return total / weights


def test_edges_of_depth() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 1, 7, 9, generator=generator).round() + 1 + torch.rand(2, 1, 7, 9, generator=generator) / 10
    predicted = (true * (1 + 0.2 * torch.randn(true.shape, generator=generator))).clamp(min=0.1)
    known = torch.rand(true.shape, generator=generator) > 0.2
    true[~known] = torch.nan
    metric = DepthEdges(distance=0.17)  # 2 of a diagonal of 11.4 pixels
    metric.update(predicted, true, known)
    expected = [slow_edge_f1(predicted[i, 0], true[i, 0], known[i, 0], 2) for i in range(2)]
    assert metric.compute()["edge_f1"] == pytest.approx(sum(expected) / 2, abs=1e-6)
    of_log = DepthEdges(distance=0.17, log=True)
    of_log.update(predicted.log() + 1, true, known)  # a scale changes nothing
    assert of_log.compute()["edge_f1"] == pytest.approx(metric.compute()["edge_f1"], abs=1e-6)


def test_edges_of_flat_depth() -> None:
    flat = torch.ones(1, 1, 9, 9)
    metric = DepthEdges()
    metric.update(flat, flat, flat > 0)
    assert math.isnan(metric.compute()["edge_f1"])  # no edge, no image that counts
    metric.update(flat, 1 + torch.arange(9.0).expand(1, 1, 9, 9), flat > 0)
    assert metric.compute()["edge_f1"] == 0
    with pytest.raises(ValueError, match=r"distance=0: expected a share of the diagonal"):
        DepthEdges(distance=0)
