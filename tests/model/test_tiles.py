"""Tiles of large images: objects that are cut are put together, others stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.model.inference import starts
from dense.model.network import Inference
from dense.model.queries import Found, Partition, instances, panoptic
from dense.model.tiles import Cropped, Pieces, merge_instances, merge_partitions, search

SIZE, WINDOW, STEP = (60, 100), 40, 26


def discs() -> Tensor:
    """Masks (N, H, W) of discs in an image: on a corner of tiles, across several, in one alone, at a border."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    places = [(30, 33, 9), (30, 70, 20), (8, 8, 5), (52, 50, 7), (12, 55, 5)]
    return torch.stack([(y - a) ** 2 + (x - b) ** 2 <= r * r for a, b, r in places])


CLASSES = torch.tensor([0, 1, 1, 0, 1])


def tiles() -> list[tuple[int, int]]:
    return [(y, x) for y in starts(SIZE[0], WINDOW, STEP) for x in starts(SIZE[1], WINDOW, STEP)]


def cut(masks: Tensor, place: tuple[int, int]) -> Tensor:
    y, x = place
    return masks[:, y : y + WINDOW, x : x + WINDOW]


def test_instances_that_tiles_cut_are_one() -> None:
    """The masks of the whole image come back, with the best score of their parts."""
    masks, found = discs(), []
    for number, place in enumerate(tiles()):
        part = cut(masks, place)
        there = part.flatten(1).any(1)
        found.append(Found(part[there], CLASSES[there], torch.full((int(there.sum()),), 0.5 + 0.01 * number)))
    merged = merge_instances(tiles(), [Pieces.of(one) for one in found], SIZE)
    assert len(merged.classes) == len(masks)
    assert bool((merged.scores[:-1] >= merged.scores[1:]).all())
    for mask, label in zip(merged.masks, merged.classes, strict=True):
        equal = (masks == mask).flatten(1).all(1)
        assert int(equal.sum()) == 1
        assert CLASSES[equal] == label
    best = max(0.5 + 0.01 * n for n, place in enumerate(tiles()) if cut(masks, place)[1].any())
    assert float(merged.scores[0]) == pytest.approx(best)


def test_neighbours_stay_apart() -> None:
    """Another class at the same place, and objects that only touch."""
    half = torch.zeros(2, 40, 40, dtype=torch.bool)
    half[0, :20, 20:], half[1, 20:, 20:] = True, True
    first = Found(half, torch.tensor([0, 0]), torch.tensor([0.9, 0.8]))
    second = Found(half.roll(-20, -1), torch.tensor([0, 1]), torch.tensor([0.7, 0.6]))
    merged = merge_instances([(0, 0), (0, 20)], [Pieces.of(first), Pieces.of(second)], (40, 60))
    assert merged.classes.tolist() == [0, 0, 1]
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    none = Pieces.of(Found(half[:0], CLASSES[:0], torch.zeros(0)))
    assert merge_instances([(0, 0)], [none], (40, 40)).masks.shape == (
        0,
        40,
        40,
    )


def test_partitions() -> None:
    """Objects are put together, stuff of one class is one segment of the image, no pixel is lost."""
    masks = discs()
    whole = torch.full(SIZE, -1)
    whole[:25], whole[25:] = 5, 6  # stuff
    for number, mask in enumerate(masks):
        whole[mask] = number
    classes, things = torch.tensor([*CLASSES.tolist(), 2, 3]), (True, True, False, False)
    found = []
    for y, x in tiles():
        there, segments = whole[y : y + WINDOW, x : x + WINDOW].unique(return_inverse=True)
        found.append(Partition(segments, classes[there], torch.full((len(there),), 0.9)))
    merged = merge_partitions(tiles(), found, SIZE, things)
    assert len(merged.classes) == len(classes)
    assert torch.equal(merged.classes[merged.segments], classes[whole])
    for number in range(len(classes)):
        assert len(merged.segments[whole == number].unique()) == 1


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
@pytest.mark.parametrize("square", [False, True])
def test_a_network_in_tiles_finds_what_it_finds_whole(kind: str, square: bool) -> None:
    """A network that reads masks from the pixels, also of images and tiles that are padded to squares."""
    masks, sizes = discs(), list[Any]()
    image = torch.zeros(3, *SIZE)
    for number, mask in enumerate(masks):
        image[0, mask] = number + 1

    def network(images: Tensor) -> dict[str, Tensor]:
        sizes.append(tuple(images.shape[-2:]))
        logits = torch.where(images[:, :1] == torch.arange(1, 6)[:, None, None], 9.0, -9.0)  # 1, Q, h, w
        certain = torch.where(logits.flatten(2).amax(-1) > 0, 9.0, 0.0)
        classes = torch.zeros(1, 5, 3)
        classes[0, torch.arange(5), CLASSES], classes[..., -1] = certain[0], 9 - certain
        return {"mask_logits": logits, "class_logits": classes}

    def find(masks: Tensor, classes: Tensor, size: Any, through: Any, part: Any) -> Any:
        if kind == "panoptic":
            return panoptic(masks, classes, size, (True, True), through=through, part=part)[0]
        return instances(masks, classes, size, through=through, part=part)[0]

    whole = search(network, image, SIZE, Inference(square=square), find, (True, True), least=0.5)
    assert sizes == [(max(SIZE), max(SIZE)) if square else SIZE]
    tiled = Inference(window=WINDOW, stride=STEP, square=square)
    parts = search(network, image, SIZE, tiled, find, (True, True), least=0.5)
    assert len(whole.classes) == len(parts.classes) == 5
    if kind == "panoptic":
        assert torch.equal(
            whole.classes[whole.segments] * (whole.segments >= 0), parts.classes[parts.segments] * (parts.segments >= 0)
        )
    else:
        assert {tuple(m.flatten().tolist()) for m in whole.masks} == {tuple(m.flatten().tolist()) for m in parts.masks}
    large = search(network, image, (120, 200), tiled, find, (True, True), least=0.5)
    assert (large.segments if kind == "panoptic" else large.masks).shape[-2:] == (120, 200)


def test_parts_may_have_less_than_the_least_score() -> None:
    """An object has the score of its best part, and keeps the parts of which their tiles are less certain."""
    mask = torch.zeros(40, 66, dtype=torch.bool)
    mask[10:20, 5:60] = True

    def network(images: Tensor) -> dict[str, Tensor]:
        sure = 0.9 if not images[0, 0, :, 0].any() else 0.3  # less where the object begins outside of the tile
        return {"mask_logits": images[:, :1] * 18 - 9, "class_logits": torch.tensor([[[sure, 1 - sure]]]).log()}

    def find(masks: Tensor, classes: Tensor, size: Any, through: Any, part: Any) -> Found:
        return instances(masks, classes, size, through=through, part=part)[0]

    image, tiles = mask[None].float().expand(3, -1, -1), Inference(window=WINDOW, stride=STEP)
    found = search(network, image, (40, 66), tiles, find, least=0.5)
    assert [int(one.sum()) for one in found.masks] == [int(mask.sum())]
    assert float(found.scores[0]) == pytest.approx(0.9, abs=1e-3)
    assert not len(search(network, image, (40, 66), tiles, find, least=0.95).scores)


def test_masks_of_tiles_keep_what_objects_cover() -> None:
    """Any part of them is that of the whole masks; an empty mask is kept too."""
    random = np.random.default_rng(0)
    masks = torch.zeros(4, 30, 40, dtype=torch.bool)
    for mask in masks[:3]:
        top, left = (int(n) for n in random.integers(0, 20, 2))
        mask[top : top + 7, left : left + 9] = torch.from_numpy(random.random((7, 9)) < 0.5)
    cropped = Cropped(masks)
    assert sum(part.numel() for _, part in cropped.parts) <= 3 * 63
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(int(n) for n in random.integers(0, side, 2)) for side in (30, 40))
        assert torch.equal(cropped.within(top, left, bottom, right), masks[:, top:bottom, left:right])
