"""Classes, instances and panoptic segments from queries, against transformers' processors of EoMT and Mask2Former."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EomtImageProcessor, Mask2FormerImageProcessor

from dense.model.queries import instances, panoptic, semantic

SIDE, SIZE, CLASSES, QUERIES = 48, (40, 60), 4, 12


def outputs(seed: int, patches: Any = None) -> SimpleNamespace:
    """Logits of two images as transformers' models return them: blobs that overlap, and certain classes."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, QUERIES, (2, 4, 4), generator=generator)
    own = owner[:, None] == torch.arange(QUERIES)[:, None, None]
    coarse = torch.randn(2, QUERIES, 4, 4, generator=generator) - 3 + 7 * own
    masks = torch.nn.functional.interpolate(coarse, size=(12, 12), mode="nearest")
    classes = 5 * torch.randn(2, QUERIES, CLASSES + 1, generator=generator)
    return SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=patches)


@pytest.fixture(scope="module")
def eomt() -> EomtImageProcessor:
    return EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})


def logits(found: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return found.masks_queries_logits, found.class_queries_logits


@pytest.mark.parametrize("seed", range(3))
def test_semantic(seed: int, eomt: EomtImageProcessor) -> None:
    """Scores of classes, computed at the network's input and resized to the image."""
    given = outputs(seed)
    theirs = eomt.post_process_semantic_segmentation(given, [SIZE, SIZE], return_segmentation_scores=True)
    ours = semantic(*logits(given), SIZE, through=(SIDE, SIDE))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.segmentation_scores, atol=1e-5, rtol=0)
        assert torch.equal(one.argmax(0), other.segmentation)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thresholds", [(0.8, 0.8), (0.3, 0.5)])
def test_panoptic(seed: int, thresholds: tuple[float, float], eomt: EomtImageProcessor) -> None:
    """Segments, their classes and scores; stuff merges, small remains of a mask are dropped."""
    given, size = outputs(seed), (SIDE, SIDE)
    theirs = eomt.post_process_panoptic_segmentation(
        given, [size, size], threshold=thresholds[0], overlap_mask_area_threshold=thresholds[1], stuff_classes=[0, 2]
    )
    ours = panoptic(*logits(given), size, [False, True, False, True], *thresholds)
    assert any(len(one.classes) for one in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.segments, other["segmentation"].long())
        assert one.classes.tolist() == [row["label_id"] for row in other["segments_info"]]
        assert one.scores.tolist() == pytest.approx([row["score"] for row in other["segments_info"]], abs=1e-6)


@pytest.mark.parametrize("seed", range(1))
def test_instances(seed: int, eomt: EomtImageProcessor) -> None:
    """The best class of each query, as EoMT's processor; and pairs of query and class, as Mask2Former's."""
    given, size = outputs(seed), (SIDE, SIDE)
    single = SimpleNamespace(**vars(given))
    single.class_queries_logits = given.class_queries_logits[..., -2:]  # one class, so that both rules are one
    theirs = eomt.post_process_instance_segmentation(single, [size, size], threshold=0.0)
    for one, other in zip(instances(*logits(single), size), theirs, strict=True):
        scores = sorted((row["score"] for row in other["segments_info"]), reverse=True)
        assert one.scores.tolist() == pytest.approx(scores, abs=1e-6)
        last = torch.full(size, -1.0)  # they paint one over the other, in the order of queries
        for row in other["segments_info"]:
            last[one.masks[(one.scores - row["score"]).abs().argmin()]] = row["id"]
        assert torch.equal(last, other["segmentation"])
    processor = Mask2FormerImageProcessor(num_labels=CLASSES)
    many = processor.post_process_instance_segmentation(
        given, threshold=0.0, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    for one, other in zip(instances(*logits(given), (384, 384), top=QUERIES), many, strict=True):
        rows = sorted(zip(other["segments_info"], other["segmentation"], strict=True), key=lambda row: -row[0]["score"])
        assert one.classes.tolist() == [row["label_id"] for row, _ in rows]
        assert one.scores.tolist() == pytest.approx([row["score"] for row, _ in rows], abs=1e-5)
        assert torch.equal(one.masks, torch.stack([mask for _, mask in rows]).bool())


def test_nothing_found() -> None:
    """Queries that mean no object give an empty image; empty masks are no instances; `top` is a limit."""
    masks, classes = torch.full((1, 3, 4, 4), -5.0), torch.zeros(1, 3, 3)
    classes[..., -1] = 20
    partition = panoptic(masks, classes, (8, 8), [True, False])[0]
    assert (partition.segments == -1).all()
    assert len(partition.classes) == 0
    assert instances(masks, classes, (8, 8))[0].masks.shape == (0, 8, 8)
    assert len(instances(-masks, classes, (8, 8), top=2)[0].scores) == 2
    assert semantic(masks, classes, (8, 8)).shape == (1, 2, 8, 8)
