"""Images laid over one another: which parts agree, and how well."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._planted import COPIES
from dense.curate.alignment import WHOLE, Alignment, Keypoints, align
from tests.curate.pools import scene

IMAGE = scene(4, 200)
PART = IMAGE[30:170, 10:170]
BOX = (0.05, 0.15, 0.85, 0.85)


@pytest.mark.parametrize("name", [name for name in COPIES if "cropped" not in name])
def test_a_copy_covers_the_whole_image(name: str) -> None:
    found = align(Keypoints(IMAGE), Keypoints(COPIES[name](IMAGE)))
    assert found.correlation > 0.9
    assert found.mirrored == (name == "mirrored")
    assert np.allclose(found.boxes, (WHOLE, WHOLE), atol=0.03)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_has_a_place_in_either_direction(mirrored: bool) -> None:
    """The boxes are those of the crop in the image and of the image in the crop; a mirrored crop has its own place."""
    part = np.ascontiguousarray(PART[:, ::-1]) if mirrored else PART
    for first, second, order in ((IMAGE, part, 1), (part, IMAGE, -1)):
        found = align(Keypoints(first), Keypoints(second))
        assert found.correlation > 0.95
        assert found.mirrored == mirrored
        assert np.allclose(found.boxes[::order], (BOX, WHOLE), atol=0.03)


def test_two_crops_share_what_both_show() -> None:
    found = align(Keypoints(IMAGE[:, :140]), Keypoints(IMAGE[:, 50:]))
    assert found.correlation > 0.95
    assert np.allclose(found.boxes, ((50 / 140, 0, 1, 1), (0, 0, 90 / 150, 1)), atol=0.04)


@pytest.mark.parametrize(
    "other",
    [
        scene(5, 200),
        np.full((200, 200, 3), 90, np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
    ],
    ids=["another scene", "one colour", "noise", "one pixel"],
)
def test_others_do_not_agree(other: np.ndarray) -> None:
    assert align(Keypoints(IMAGE), Keypoints(other)).correlation < 0.5
    assert align(Keypoints(other), Keypoints(IMAGE)).correlation < 0.5
    assert Alignment().correlation == 0
