"""Degradations: what each does, their dependence on a seed, and plans of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import convolve

from dense.data.degrade import KINDS, Degrade, degrade
from dense.data.degrade.kinds import disc, filtered, known, line
from dense.data.scenes import render


def random_image(value: int | None = None) -> NDArray[np.uint8]:
    if value is not None:
        return np.full((48, 64, 3), value, np.uint8)
    return render(0, 1, (48, 64)).image


DEPTH = np.linspace(1, 30, 48 * 64, dtype=np.float32).reshape(48, 64)


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_determines_the_result(name: str) -> None:
    """A seed determines the result, and a higher level degrades more (of JPEG, a lower quality)."""
    image, kind = random_image(), KINDS[name]
    before = image.copy()
    levels = sorted({*kind.seen, *kind.unseen}, reverse=name == "jpeg")
    found = [degrade(image, {name: level}, 7, DEPTH) for level in levels]
    assert np.array_equal(found[0], degrade(image, {name: levels[0]}, (7,), DEPTH))
    assert np.array_equal(image, before)
    assert found[0].dtype == np.uint8
    assert found[0].shape == image.shape
    errors = [np.abs(f.astype(float) - image).mean() for f in found]
    assert errors[0] > 0.3
    assert errors[0] < errors[-1]
    assert not set(kind.seen) & set(kind.unseen)
    if name not in ("jpeg", "defocus"):  # which are not random
        assert not np.array_equal(found[0], degrade(image, {name: levels[0]}, 8, DEPTH))


def test_noise_has_its_level() -> None:
    assert degrade(random_image(128), {"noise": 25}, 0).astype(float).std() == pytest.approx(25, rel=0.03)


def test_haze_is_the_scattering_model() -> None:
    """A pixel at infinite depth shows the airlight, and every other a mixture of the image and the airlight."""
    depth = DEPTH.copy()
    depth[0] = np.inf
    image = random_image(20)
    hazy = degrade(image, {"haze": 0.1}, 3, depth).astype(float)
    air = hazy[0, 0]
    assert air.min() > 0.7 * 255
    expected = 20 * np.exp(-0.1 * depth)[..., None] + air * (1 - np.exp(-0.1 * depth)[..., None])
    np.testing.assert_allclose(hazy, expected, atol=1.01)


def test_unknown_depth_becomes_the_nearest_known() -> None:
    depth = np.full((3, 5), np.nan, np.float32)
    depth[0, 0], depth[2, 4] = 3, np.inf
    filled = known(depth)
    assert filled[1, 0] == 3
    assert np.isinf(filled[2, 3])
    with pytest.raises(ValueError, match="none is known in this image"):
        known(np.full((2, 2), np.nan, np.float32))


def test_blur_is_a_convolution() -> None:
    for kernel in (line(9, 30), line(1, 0), disc(2.5)):
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=0.02)  # no shift
        image = random_image().astype(np.float32) / 255
        ours = filtered(image, kernel)
        theirs = np.stack([convolve(image[..., c], kernel[::-1, ::-1], mode="mirror") for c in range(3)], -1)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    row = line(9, 0)
    assert row[4].sum() > 0.8
    assert disc(2.5)[3, 3] > disc(2.5)[0, 0] == 0


def test_rain_adds_light() -> None:
    assert (degrade(random_image(), {"rain": 2}, 0).astype(int) >= random_image().astype(int) - 1).all()


def test_jpeg_is_opencv() -> None:
    image = random_image()
    _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 10])
    decoded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(degrade(image, {"jpeg": 10}, 0), decoded[..., ::-1])


def test_low_light_loses_light() -> None:
    dark = degrade(random_image(200), {"low_light": 8}, 0).astype(float)
    assert dark.mean() == pytest.approx(200 / 8 ** (1 / 2.2), rel=0.02)
    assert dark.std() > 0.3


def test_degradations_follow_one_another() -> None:
    image = random_image()
    both = degrade(image, {"motion": 9, "jpeg": 10}, 0)
    assert np.array_equal(both, degrade(degrade(image, {"motion": 9}, 0), {"jpeg": 10}, 0))


def test_plan() -> None:
    plan = Degrade()
    assert set(plan.kinds) == {"rain", "noise", "motion", "defocus", "haze"}
    assert plan.needs_depth
    assert plan.labels()[:2] == ("rain", "noise")
    assert "noise_unseen" in plan.labels()
    drawn = [plan.draw((0, 0, i)) for i in range(200)]
    assert drawn == [plan.draw((0, 0, i)) for i in range(200)]
    assert {name for d in drawn for name in d} == set(plan.kinds)
    assert all(level in plan.kinds[name] for d in drawn for name, level in d.items())
    mixed = Degrade({"noise": [15.0], "jpeg": []}, together=2)
    assert not mixed.needs_depth
    assert mixed.kinds["jpeg"] == [10, 20, 40]
    assert {len(mixed.draw((0, i))) for i in range(50)} == {1, 2}
    assert Degrade({"noise": [35, 25]}).unseen == {"noise": [60]}  # a level of training is not unseen
    named = Degrade({"noise": [25]}, unseen={"noise": [], "jpeg": [5]})
    assert named.unseen == {"noise": [35, 60], "jpeg": [5]}
    assert Degrade({"noise": [25]}, unseen={}).labels() == ("noise",)


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"unknown degradation 'nois'.*noise"):
        Degrade({"nois": []})
    with pytest.raises(ValueError, match=r"noise=-1: expected a level of 0\.1 to 255"):
        Degrade({"noise": [-1]})
    with pytest.raises(ValueError, match="unseen noise=25 is a level of training too"):
        Degrade({"noise": [25]}, unseen={"noise": [25]})
    with pytest.raises(ValueError, match="together=3: expected 1 to 1"):
        Degrade({"noise": [25]}, together=3)
    with pytest.raises(ValueError, match="haze needs the depth"):
        degrade(random_image(), {"haze": 0.1}, 0)
