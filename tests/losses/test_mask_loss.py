"""The loss of mask queries against a plain loop, and against its own promises."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from dense.losses.masks import MaskLoss, overlap, sample, sample_objects

Targets = tuple[list[Tensor], list[Tensor]]


def batch_of(
    queries: int = 5, classes: int = 3, size: int = 8, counts: tuple[int, ...] = (3, 0, 1)
) -> tuple[Tensor, Tensor, Targets]:
    """Random logits, and objects twice as large as the mask logits."""
    torch.manual_seed(0)
    masks, logits = torch.randn(len(counts), queries, size, size), torch.randn(len(counts), queries, classes + 1)
    objects = [torch.rand(n, 2 * size, 2 * size) > 0.6 for n in counts]
    return masks.requires_grad_(), logits.requires_grad_(), (objects, [torch.randint(classes, (n,)) for n in counts])


def by_loop(masks: Tensor, logits: Tensor, targets: Targets, valid: Tensor | None = None) -> float:
    """The loss cell by cell, with the best of all permutations; objects are averaged to the cells."""
    ce = weights = bce = dice = 0.0
    count = sum(map(len, targets[0]))
    for image in range(len(masks)):
        objects = torch.nn.functional.avg_pool2d(targets[0][image].float(), 2) if len(targets[0][image]) else []
        labels = targets[1][image].tolist()
        w = torch.ones(masks.shape[-2:]) if valid is None else valid[image].float()
        best = None
        for chosen in permutations(range(masks.shape[1]), len(labels)):
            cost = 0.0
            for query, label, target in zip(chosen, labels, objects, strict=True):
                p = masks[image, query].sigmoid()
                entropy = -(target * p.log() + (1 - target) * (1 - p).log())
                b = float((entropy * w).sum() / w.sum())
                d = float(1 - (2 * (p * target * w).sum() + 1) / ((p * w).sum() + (target * w).sum() + 1))
                cost += 5 * b + 5 * d - 2 * float(logits[image, query].softmax(-1)[label])
            if best is None or cost < best[0]:
                best = cost, chosen
        assert best is not None
        wanted = dict(zip(best[1], labels, strict=True))
        for query in range(masks.shape[1]):
            weight = 1.0 if query in wanted else 0.1
            ce -= weight * float(logits[image, query].log_softmax(-1)[wanted.get(query, -1)])
            weights += weight
        for query, target in zip(best[1], objects, strict=True):
            p = masks[image, query].sigmoid()
            bce += float((-(target * p.log() + (1 - target) * (1 - p).log()) * w).sum() / w.sum())
            dice += float(1 - (2 * (p * target * w).sum() + 1) / ((p * w).sum() + (target * w).sum() + 1))
    return 2 * ce / weights + 5 * bce / count + 5 * dice / count


def test_a_plain_loop() -> None:
    """At the centres of all cells, the loss is the sum over layers of a loop's."""
    masks, logits, targets = batch_of()
    value, parts = MaskLoss(points=0)([(masks, logits), (-masks, logits)], *targets)
    with torch.no_grad():
        expected = by_loop(masks, logits, targets), by_loop(-masks, logits, targets)
    assert value.item() == pytest.approx(sum(expected), rel=1e-5)
    together = 2 * parts["class"] + 5 * parts["mask"] + 5 * parts["dice"]
    assert float(together) == pytest.approx(expected[1], rel=1e-5)


def test_ignored_pixels() -> None:
    """Count neither in the matching nor in the loss."""
    masks, logits, targets = batch_of()
    valid = torch.rand(3, 8, 8) > 0.5
    value, _ = MaskLoss(points=0)([(masks, logits)], *targets, valid.repeat_interleave(2, 1).repeat_interleave(2, 2))
    with torch.no_grad():
        assert float(value) == pytest.approx(by_loop(masks, logits, targets, valid), rel=1e-5)


def test_sampled_points_approach_all_cells() -> None:
    """Uniform points estimate the same means; uncertain ones lie where the logits are near zero."""
    masks, logits, targets = batch_of()
    whole, _ = MaskLoss(points=0)([(masks, logits)], *targets)
    drawn, _ = MaskLoss(points=40000, importance=0)([(masks, logits)], *targets)
    assert float(drawn) == pytest.approx(float(whole), rel=0.1)  # between cells logits are interpolated
    loss = MaskLoss(points=200)
    ramp = torch.linspace(-4, 4, 64).expand(1, 1, 64, 64)
    points = loss._uncertain_points(ramp, None)[0]
    assert points.shape == (200, 2)
    near = ((points[:, 0] - 0.5).abs() < 0.15).float().mean()
    assert 0.75 < near < 0.95


def test_uncertain_points_are_valid() -> None:
    """Padding, where logits are near zero, gets no uncertain point, and no gradient, as long as others are left."""
    loss, logits, weight = MaskLoss(points=200), torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 128, 128)
    logits[..., :32, :48], weight[..., :64, :96] = 5.0, 1.0
    for importance, least in ((1.0, 1.0), (0.75, 0.75)):
        loss.importance = importance
        assert sample(weight, loss._uncertain_points(logits, weight), "nearest").mean() >= least
    masks, classes = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(1, 2, 2)
    valid = torch.arange(16).expand(1, 16, 16) < 8
    loss([(masks, classes)], [valid & (torch.arange(16)[:, None] < 8)], [torch.zeros(1).long()], valid)[0].backward()
    assert masks.grad is not None
    assert masks.grad[..., :4].any()
    assert not masks.grad[..., 5:].any()


def test_images_without_objects() -> None:
    """Masks cost nothing, with a gradient; classes are pushed to no object."""
    masks, logits, _ = batch_of(counts=(0, 0))
    empty = [torch.zeros(0, 16, 16, dtype=torch.bool)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    value, parts = MaskLoss(points=50)([(masks, logits)], *empty)
    value.backward()
    assert parts["mask"] == parts["dice"] == 0
    assert masks.grad is not None
    assert not masks.grad.any()
    assert logits.grad is not None
    assert (logits.grad[..., -1] < 0).all()
    assert float(parts["class"]) == pytest.approx(float(-logits.log_softmax(-1)[..., -1].mean()), rel=1e-5)


def test_more_objects_than_queries() -> None:
    masks, logits, targets = batch_of(queries=2, counts=(4, 1))
    value, _ = MaskLoss(points=100)([(masks, logits)], *targets)
    assert torch.isfinite(value)


def test_unlabelled_objects_cost_nothing() -> None:
    """With `drop`, an unmatched query elsewhere has no gradient; one on a labelled object does, whatever is padding."""
    masks = torch.full((1, 3, 8, 8), -5.0)
    masks[0, 0, :4], masks[0, 1, :3], masks[0, 2, 6:] = 5.0, 5.0, 5.0
    objects = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    objects[0, 0, :8] = True
    left = torch.arange(16).expand(1, 16, 16) < 4
    wide = masks.clone()
    wide[0, 1, :, 2:] = 5.0  # in the padding, with which its IoU is 0.54 instead of 0.75
    for predicted, valid, drop, expected in (
        (masks, None, None, [True, True, True]),
        (masks, None, 0.01, [True, True, False]),
        (wide, None, 0.6, [True, False, False]),
        (wide, left, 0.6, [True, True, False]),
    ):
        logits = torch.zeros(1, 3, 2, requires_grad=True)
        loss, labels = MaskLoss(points=0, drop=drop), [torch.zeros(1, dtype=torch.int64)]
        value, _ = loss([(predicted, logits)], list(objects), labels, valid)
        value.backward()
        assert logits.grad is not None
        assert logits.grad[0].abs().sum(1).bool().tolist() == expected


def test_two_processes_are_one() -> None:
    """The mean of losses whose counts are averaged over processes is the loss of all images."""
    masks, logits, (objects, labels) = batch_of(counts=(3, 0, 1, 4))
    loss, counts = MaskLoss(points=0), []

    def remember(found: Tensor) -> Tensor:
        counts.append(found)
        return found

    halves = [slice(0, 2), slice(2, 4)]
    for half in halves:
        loss([(masks[half], logits[half])], objects[half], labels[half], mean=remember)
    average = sum(counts) / 2
    parts = [
        loss([(masks[half], logits[half])], objects[half], labels[half], mean=lambda _: average)[0] for half in halves
    ]
    whole, _ = loss([(masks, logits)], objects, labels)
    assert float(sum(parts)) / 2 == pytest.approx(float(whole), rel=1e-5)


def test_half_precision() -> None:
    """The loss is computed in fp32, under autocast too."""
    masks, logits, targets = batch_of()
    expected, _ = MaskLoss(points=0)([(masks.bfloat16().float(), logits.bfloat16().float())], *targets)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = MaskLoss(points=0)([(masks.bfloat16(), logits.bfloat16())], *targets)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_sampling_and_overlap() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    assert sample(maps, torch.tensor([[[0.625, 0.5]]])).item() == 6
    masks, points = torch.rand(5, 9, 7) > 0.5, torch.rand(200, 2)  # at the border, what lies outside is zero
    assert torch.allclose(sample_objects(masks, points), sample(masks[None].float(), points[None])[0], atol=1e-5)
    one, other = torch.tensor([[1, 1, 0, 0]]) > 0, torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]) > 0
    assert overlap(one, other).tolist() == [[pytest.approx(1 / 3), 0]]


@pytest.mark.parametrize("wrong", [{"points": -1}, {"oversample": 0.5}, {"importance": 2}, {"drop": 1.0}])
def test_mistakes(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        MaskLoss(**wrong)  # type: ignore[arg-type]
