"""Clips: a camera past a scene, whose masks and depth agree from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest

from dense.data.scenes import clip, render


def test_first_frame_is_the_scene_and_the_path_is_the_clips_own() -> None:
    """A pure function of (seed, index); more frames are a slower camera on the same path."""
    for index in (3, 2**40 + 1):
        frames, again = list(clip(5, index, 5, (40, 56))), list(clip(5, index, 9, (40, 56)))
        first = render(5, index, (40, 56))
        assert np.array_equal(frames[0].image, first.image)
        assert np.array_equal(frames[0].instance, first.instance)
        for one, other in zip(frames, again[::2], strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.instance, other.instance)
        assert not np.array_equal(frames[0].instance, frames[-1].instance)
    assert len(list(clip(0, 0, 1, 24))) == 1
    with pytest.raises(ValueError, match="frames is 0"):
        next(clip(0, 0, 0))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_frames_are_of_one_world(index: int) -> None:
    """Points of one frame, put into the next by its camera, meet the same solid at the same depth unless hidden."""
    first, second = (list(clip(1, index, 9, 96))[i] for i in (0, 1))
    points = first.camera.backproject(first.depth)[first.valid]  # N, 3
    numbers = first.instance[first.valid]
    seen = (points - second.camera.position) @ second.camera.rotation
    places = seen @ second.camera.intrinsics(96, 96).T
    column, row = np.floor(places[:, :2] / places[:, 2:]).astype(int).T
    inside = (row >= 0) & (row < 96) & (column >= 0) & (column < 96)
    assert inside.mean() > 0.8
    row, column, depth, numbers = row[inside], column[inside], seen[inside, 2], numbers[inside]
    there = np.abs(second.depth[row, column] - depth) < 0.05 * depth
    assert there.mean() > 0.85  # the rest is hidden, or at an outline
    assert (second.instance[row, column] == numbers)[there].mean() > 0.98
