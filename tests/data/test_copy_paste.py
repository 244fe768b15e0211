"""Objects pasted between images of a batch."""

from __future__ import annotations

import pytest
import torch

from dense.data.copy_paste import copy_paste
from dense.data.labelled.sample import Batch, Segments


def batch_of(crowd: bool = False) -> Batch:
    """A dark image with one object, a bright one with two."""
    images = torch.stack(
        [torch.full((3, 32, 40), 10, dtype=torch.uint8), torch.full((3, 32, 40), 200, dtype=torch.uint8)]
    )
    masks = torch.zeros(3, 32, 40, dtype=torch.bool)
    masks[0, 2:6, 2:6], masks[1, :16, :20], masks[2, 20:, 20:] = True, True, True
    valid = torch.ones(32, 40, dtype=torch.bool)
    flags = torch.tensor([False, crowd, crowd])
    return Batch(
        images,
        segments=(
            Segments(masks[:1], torch.tensor([4]), flags[:1], valid),
            Segments(masks[1:], torch.tensor([7, 8]), flags[1:], valid),
        ),
    )


def test_pixels_and_masks_move_together() -> None:
    """Bright pixels in the dark image are exactly those of pasted objects, and vice versa."""
    torch.manual_seed(0)
    for _ in range(20):
        found = copy_paste(batch_of(), 1.0)
        assert found.images is not None
        assert found.segments is not None
        for image, segments, own, names in zip(found.images, found.segments, (10, 200), ({4}, {7, 8}), strict=True):
            pasted = torch.tensor([c not in names for c in segments.classes.tolist()])
            assert pasted.any()
            assert torch.equal(image[0] != own, segments.masks[pasted].any(0))
            assert not (segments.masks[pasted].any(0) & segments.masks[~pasted].any(0)).any()
            assert segments.masks.flatten(1).any(1).all()
            assert len(segments.crowd) == len(segments.classes) == len(segments.masks)


def test_hidden_objects_are_gone() -> None:
    """Some objects of the dark image are hidden entirely by larger ones."""
    torch.manual_seed(0)
    counts = {len(copy_paste(batch_of(), 1.0, (1.0, 1.0)).segments[0].classes) for _ in range(40)}  # type: ignore[index]
    assert counts == {1, 2}


def test_nothing_to_paste() -> None:
    batch = batch_of(crowd=True)
    found = copy_paste(batch, 1.0)
    assert torch.equal(found.images[0], batch.images[0])  # type: ignore[index]
    assert torch.equal(copy_paste(batch_of(), 0.0).images, batch_of().images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs images and their objects"):
        copy_paste(Batch(), 1.0)
