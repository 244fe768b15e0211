"""Frames, masks of objects, and the layout of DAVIS-2017."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data.labelled.sample import DataError
from dense.data.video import SceneClip, davis, list_frames, objects_of, read_objects, scene_clips
from tests.evaluate.davis import miniature


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.png", "f100.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "f1.png").write_bytes(b"")
    assert [path.name for path in list_frames(tmp_path)] == ["f9.png", "f10.png", "f100.png"]
    with pytest.raises(FileNotFoundError, match="no such folder of frames"):
        list_frames(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no frames in"):
        list_frames(tmp_path / "empty")


def test_objects() -> None:
    """255 is unknown beside other numbers, and an object alone."""
    assert objects_of(np.array([[0, 3, 255, 1]], np.uint8)) == [1, 3]
    assert objects_of(np.array([[0, 255]], np.uint8)) == [255]
    for wrong, message in (
        (np.zeros((2, 2), np.uint8), "no object"),
        (np.array([[0, 300]]), "300"),
        (np.ones(3), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            objects_of(wrong)


def test_masks(tmp_path: Path) -> None:
    """Palettes and grey, plain or stored as colours; colours, JPEG, damaged and missing files are refused."""
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    index = Image.fromarray(numbers).convert("P")
    index.save(tmp_path / "p.png")
    Image.fromarray(numbers).save(tmp_path / "l.png")
    Image.fromarray(np.stack([numbers] * 3, -1)).save(tmp_path / "grey.png")
    for name in ("p.png", "l.png", "grey.png"):
        assert np.array_equal(read_objects(tmp_path / name), numbers)
    Image.fromarray(np.stack([numbers, numbers, numbers + 1], -1)).save(tmp_path / "c.png")
    Image.fromarray(numbers).save(tmp_path / "j.jpg")
    Image.fromarray(numbers.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    (tmp_path / "d.png").write_bytes(b"nothing")
    for name, message in (
        ("c.png", "painted in colours"), ("j.jpg", "JPEG"), ("d.png", "not an image"), ("none.png", "no such mask"),
        ("deep.png", "0 to 1100"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_objects(tmp_path / name)


def test_davis(tmp_path: Path) -> None:
    """Sequences of the list, images with their masks; below DAVIS too."""
    root = miniature(tmp_path / "DAVIS")
    for given in (root, tmp_path):
        clips = davis(given)
        assert [(clip.name, len(clip)) for clip in clips] == [("right", 6), ("down", 6)]
    image, mask = next(iter(clips[0]))
    assert image.shape == (48, 64, 3)
    assert objects_of(mask) == [1, 2]


def test_davis_with_problems(tmp_path: Path) -> None:
    """All of them at once, each named."""
    root = miniature(tmp_path)
    (root / "Annotations/480p/right/00003.png").unlink()
    (root / "ImageSets/2017/val.txt").write_text("right\ngone\n")
    with pytest.raises(DataError) as error:
        davis(root)
    assert len(error.value.problems) == 2
    assert "right has an image without its mask, or the reverse, at frame 00003" in str(error.value)
    assert "gone" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing"):
        davis(root, "train")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        davis(tmp_path / "none")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "Annotations/480p/down/00000.png")
    (root / "ImageSets/2017/val.txt").write_text("down\n")
    with pytest.raises(DataError, match=r"00000\.png is"):
        next(iter(davis(root)[0]))


def test_clips_of_scenes() -> None:
    """Small objects are background; numbers of the first frame stay, no other comes."""
    clip = SceneClip(0, 2**40 + 5, 4, 64, least=0.02)
    frames = list(clip)
    assert len(frames) == len(clip) == 4
    first = frames[0][1]
    assert min((first == n).sum() for n in objects_of(first)) >= 0.02 * 64 * 64
    assert all(set(np.unique(mask)) <= set(np.unique(first)) | {0} for _, mask in frames)
    with pytest.raises(ValueError, match="Did you mean val"):
        scene_clips("vall", 2, 4, 64, 0)
    with pytest.raises(ValueError, match="at least 1 of 3 frames"):
        scene_clips("val", 2, 2, 64, 0)
