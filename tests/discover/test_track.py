"""Tracking from frames to masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dense
from dense.backbone import Backbone
from dense.discover import Source, Tracking, tracking, tracking_source
from dense.discover.track import labels_on_grid
from dense.metrics.video import contour_accuracy, region_similarity
from tests.backbone.conftest import tiny, token_backbone  # noqa: F401
from tests.discover.videos import colours, squares


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return a backbone whose features are not used when the source is `colours`."""
    return tiny("dino_vits16", patch_size=4)


def j_and_f(found: list[torch.Tensor], masks: list[NDArray[np.uint8]], number: int) -> float:
    """Return the mean J and F over all frames but the first."""
    a, b = torch.stack(found[1:]) == number, torch.from_numpy(np.stack(masks[1:])) == number
    return float((region_similarity(a, b) + contour_accuracy(a, b)).mean() / 2)


@pytest.mark.parametrize("protocol", ["v1", "v3"])
def test_moving_squares_by_their_colours(backbone: Backbone, protocol: str) -> None:
    """Four objects move in different directions."""
    images, masks = squares(8, steps=[(0, 3), (1, 2), (2, 1), (0, -2)])
    found = list(dense.track(backbone, images, masks[0], protocol, colours, size=0))  # type: ignore[arg-type]
    assert np.array_equal(found[0].numpy(), masks[0])
    assert {(tuple(one.shape), one.dtype) for one in found} == {((64, 96), torch.uint8)}
    for number in range(1, 5):
        assert j_and_f(found, masks, number) > 0.85


def test_steps_of_whole_patches_are_exact(backbone: Backbone) -> None:
    """Numbers are those of the mask; frames may be tensors."""
    images, masks = squares(10, steps=[(4, 4)])
    frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    found = dense.track(backbone, frames, masks[0] * 77, source=colours, size=0)  # type: ignore[arg-type]
    for labels, mask in zip(found, masks, strict=True):
        assert (labels.numpy() != mask * 77).mean() < 0.005  # corners of the square, which are blended
        assert set(labels.unique().tolist()) == {0, 77}


def test_an_object_that_leaves_disappears(backbone: Backbone) -> None:
    """No other object takes its number."""
    images, masks = squares(14, steps=[(0, -4), (0, 2)])
    found = list(dense.track(backbone, images, masks[0], source=colours, size=0))  # type: ignore[arg-type]
    assert (masks[-1] == 1).sum() == 0
    assert (found[-1] == 1).sum() == 0
    assert j_and_f(found, masks, 2) > 0.85


def test_every_family(token_backbone: Backbone) -> None:  # noqa: F811
    """Sizes that are no multiples of a patch; registers and the class token are left out."""
    images, masks = squares(3, (50, 75))
    for protocol in ("v1", "v3"):
        found = list(dense.track(token_backbone, images, masks[0], protocol, size=64))
        assert [tuple(one.shape) for one in found] == [(50, 75)] * 3
        assert all(set(one.unique().tolist()) <= {0, 1} for one in found)


def test_pyramids() -> None:
    """The deepest map is used; a ResNet has no norm over it."""
    pyramid = dense.load_backbone("resnet18")
    assert tracking_source(pyramid.spec) == Source("token", norm=False)
    images, masks = squares(3)
    assert len(list(dense.track(pyramid, images, masks[0], size=0))) == 3


def test_frames_are_read_one_at_a_time(backbone: Backbone) -> None:
    """A frame is read when its mask is requested, except for the second, which is read with the first."""
    images, masks = squares(9)
    read = 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal read
        for image in images:
            read += 1
            yield image

    for given, _ in enumerate(dense.track(backbone, frames(), masks[0], source=colours, size=0), 1):  # type: ignore[arg-type]
        assert read == max(2, given)


def test_sizes_of_the_protocols() -> None:
    """DINO cuts 854 down to 832; DINOv3 has 60 patches, each side rounded; also for portrait videos."""
    assert tracking("v1", 16).input_size((480, 854), 16) == (480, 832)
    assert tracking("v1", 8).input_size((854, 480), 8) == (832, 480)
    assert tracking("v3", 16).input_size((480, 854), 16) == (960, 1712)
    assert tracking("v3", 14).input_size((480, 854), 14) == (840, 1498)
    assert tracking("v3", 14, size=960).input_size((480, 854), 14) == (966, 1708)
    assert tracking("v1", 14).input_size((480, 854), 14) == (476, 826)
    assert tracking("v1", 16, size=0).input_size((50, 75), 16) == (48, 80)
    assert tracking("v1", 8, size=32).input_size((30, 40), 8) == (32, 32)
    assert tracking("v1", 16).input_size((1000, 1333), 16) == (480, 576)  # 639.84 is cut down, not rounded up to 640
    v3 = tracking("v3", 16, topk=3)
    assert (v3.shape, v3.temperature, v3.topk, v3.context, v3.neighbourhood, v3.decide) == (
        "circle",
        0.2,
        3,
        7,
        12,
        "own",
    )
    with pytest.raises(ValueError, match="expected auto, v1 or v3"):
        tracking("v2", 16)


def test_small_objects_enlarge_the_input() -> None:
    """By their area, at most twofold; not where the size is given, and never in the published protocols."""
    auto = tracking("auto", 16)
    assert auto == replace(tracking("v1", 16), across=auto.across)
    size, wide = (480, 854), (480, 832)
    across = 16 * auto.across * (854 / 832) ** 0.5
    assert auto.input_size(size, 16) == auto.input_size(size, 16, across**2) == wide
    assert auto.input_size(size, 16, (across / 1.5) ** 2) == (720, 1248)
    assert auto.input_size(size, 16, 1) == (960, 1664)
    for settings in (tracking("v1", 16), tracking("auto", 16, size=480)):
        assert settings.input_size(size, 16, 1) == wide
    assert tracking("v1", 16, across=3).input_size((480, 480), 16, 24**2) == (960, 960)
    assert tracking("auto", 16, size=240, across=3).across == 3
    images, masks = squares(3, (48, 64), steps=[(0, 1)])
    seen: list[tuple[int, ...]] = []

    def source(model: Backbone, frames: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(frames.shape[-2:]))
        return colours(model, frames)

    for across, times in ((1, 1), (100, 2)):
        backbone = tiny("dino_vits16", patch_size=4)
        found = list(dense.track(backbone, images, masks[0], source=source, size=0, across=across))  # type: ignore[arg-type]
        assert len(found) == 3
        assert seen[-1] == (48 * times, 64 * times)


def test_small_objects_keep_a_patch() -> None:
    """Labels are taken at the centres of patches, but no object is lost."""
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[:8, :8], mask[8:11, 13:16] = 1, 9
    labels = labels_on_grid(mask, torch.tensor([0, 1, 9]), (2, 2))
    assert labels.argmax(1)[0].tolist() == [[1, 0], [0, 2]]
    assert (labels.sum(1) == 1).all()
    whole = labels_on_grid(torch.ones(16, 16, dtype=torch.uint8), torch.tensor([0, 1]), (2, 2))
    assert not whole[0, 0].any()  # an absent background gets no patch


def test_an_object_that_is_everywhere_stays(backbone: Backbone) -> None:
    """No background appears, neither in the first frame nor by normalising labels to 0..1."""
    images, masks = squares(4)
    for labels in dense.track(backbone, images, np.full_like(masks[0], 3), source=colours, size=0):  # type: ignore[arg-type]
        assert labels.unique().tolist() == [3]


def test_normalising_raises_weak_labels() -> None:
    """By the published rule an object of a tenth wins over the remaining background."""
    soft = torch.tensor([[[[1.0, 0.9]], [[0.0, 0.1]]]])
    assert Tracking(size=0).assign(soft, (1, 2), (1, 2)).tolist() == [[[0, 1]]]
    assert Tracking(size=0, normalise=False).assign(soft, (1, 2), (1, 2)).tolist() == [[[0, 0]]]
    gone = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    assert Tracking(size=0).assign(gone, (1, 2), (3, 4)).tolist() == [[[0] * 4] * 3]


def test_errors(backbone: Backbone) -> None:
    """Each is one line."""
    images, masks = squares(3)

    def run(frames: list[NDArray[np.uint8]], mask: NDArray[np.integer], **changes: object) -> None:
        list(dense.track(backbone, frames, mask, source=colours, **({"size": 0} | changes)))  # type: ignore[arg-type]

    for frames, mask, message in (
        (images, masks[0][:50], "frame 0 is 64x96, not 50x96 .height x width., the mask's size"),
        ([*images, images[0][:40]], masks[0], "frame 3 is 40x96, not 64x96"),
        (images, masks[0] * 0, "holds no object"),
        (images, np.stack([masks[0]] * 3, -1), "expected a mask of shape"),
        (images[:1], masks[0], "the video has 1 frames: expected 2 or more"),
        ([], masks[0], "has 0 frames"),
        ([p / 2.0 for p in images], masks[0], "in uint8"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            run(frames, mask)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="size=-1"):
        run(images, masks[0], size=-1)
    with pytest.raises(TypeError, match="topp"):
        run(images, masks[0], topp=3)
