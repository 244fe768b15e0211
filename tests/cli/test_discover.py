"""`dense discover`: files, folders and videos to masks, annotations and sheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dense import console
from dense.cli import main
from dense.data.labelled import open_labelled
from dense.discover.writing import annotation
from dense.media.draw import CAPTION, captioned, legend, palette, sheet
from dense.media.inputs import SizedImage, batches, resize_for_backbone
from dense.media.video import Video, VideoWriter
from tests.cli.test_evaluate import BACKBONE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two images of different sizes and an unreadable one."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for path, size in ((root / "a.png", (40, 50)), (root / "deep" / "b.png", (61, 33))):
        image = np.full((*size, 3), 30, np.uint8)
        image[8:24, 10:28] = (220, 60, 30)
        Image.fromarray(image).save(path)
    (root / "c.jpg").write_bytes(b"")
    return root


def run(folder: Path, out: Path, *options: str) -> int:
    """Run the verb on small images."""
    return main(["discover", str(folder), *BACKBONE, "--size", "32", "--out", str(out), *options])


@pytest.mark.parametrize(
    "method", ["attention", "lost", "tokencut", "maskcut", "spectral", "kmeans", "cocluster", "stego"]
)
def test_every_method(folder: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of the images' own sizes, matching annotations, one sheet; the unreadable image is named."""
    out = tmp_path / "out"
    assert (
        run(
            folder,
            out,
            "--method",
            method,
            "--maps",
            *(["--count", "3"] if method in ("cocluster", "stego") else []),
            *(["--steps", "20"] if method == "stego" else []),
        )
        == 0
    )
    assert "c.jpg is empty" in capsys.readouterr().err
    saved = json.loads((out / "annotations.json").read_text())
    assert [i["file_name"] for i in saved["images"]] == ["a.png", "deep/b.png"]
    assert saved["info"]["method"] == method
    sheet = np.array(Image.open(out / "sheet.png"))
    assert sheet.shape == (160 + CAPTION + 8, 4 * 164 + 4, 3)
    ends = [4 + round(160 * one["height"] / max(one["height"], one["width"])) for one in saved["images"]]
    names = [
        (sheet[end:, left : left + 160] < 100).any()
        for end, left in zip((ends[0], ends[0], ends[1], ends[1]), (4, 168, 332, 496), strict=True)
    ]
    assert names == [True, False, True, False]  # directly below the images, not below what was found
    for image in saved["images"]:
        stem = Path(image["file_name"]).with_suffix("")
        index = np.array(Image.open(out / f"{stem}_mask.png"))
        assert index.shape == (image["height"], image["width"])
        covered = sum(a["area"] for a in saved["annotations"] if a["image_id"] == image["id"])
        assert covered == (index.size if method in ("spectral", "kmeans", "cocluster", "stego") else (index > 0).sum())
        assert (out / f"{stem}_overlay.png").is_file()


def test_masks_become_objects_to_train_on(folder: Path, tmp_path: Path) -> None:
    """The annotations are data of one class, in which nothing is a crowd."""
    assert run(folder, tmp_path / "out", "--method", "maskcut") == 0
    source = open_labelled(folder, "all", targets=("masks",), annotations=tmp_path / "out/annotations.json")
    assert (len(source), source.classes) == (2, ("object",))
    segments = source.read(0).segments
    assert segments is not None
    assert len(segments.classes) >= 1
    assert not segments.crowd.any()


def test_saved_classes_apply_to_other_images(folder: Path, tmp_path: Path) -> None:
    """A second run with the classes of the first gives the same labels."""
    assert run(folder, tmp_path / "a", "--method", "cocluster", "--count", "3") == 0
    file = tmp_path / "a" / "classes.safetensors"
    assert run(folder / "a.png", tmp_path / "b", "--method", "cocluster", "--classes", str(file)) == 0
    first, second = (np.array(Image.open(tmp_path / name / "a_mask.png")) for name in "ab")
    assert np.array_equal(first, second)
    assert run(folder, tmp_path / "c", "--method", "cocluster", "--classes", str(file), "--count", "3") == 1


def test_similarity(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Similarity to a point of the first image; points outside raise."""
    assert run(folder, tmp_path / "out", "--method", "similarity", "--point", "20,10") == 0
    assert Image.open(tmp_path / "out" / "deep" / "b_similarity.png").size == (33, 61)
    assert run(folder, tmp_path / "other", "--method", "similarity", "--point", "60,10") == 1
    assert "outside the image, which is 50 wide and 40 high" in capsys.readouterr().err
    (folder / "a.png").write_bytes(b"")
    assert run(folder, tmp_path / "out", "--method", "similarity", "--point", "20,10") == 1
    assert "--point is in the first image, which cannot be read" in capsys.readouterr().err


def test_predictions_are_no_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run into a folder among the images reads the same images as the first."""
    for _ in range(2):
        assert run(folder, folder / "out", "--method", "kmeans") == 0
    assert len(json.loads((folder / "out" / "annotations.json").read_text())["images"]) == 2
    with pytest.raises(SystemExit):
        run(folder, folder)
    assert "the folder for predictions; choose another --out" in capsys.readouterr().err


def test_progress_counts_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not batches, and those that cannot be read too."""
    monkeypatch.setattr(console, "EVERY", 0)
    assert run(folder, tmp_path / "out", "--refine", "none", "--batch", "2") == 0
    counted = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("images:")]
    assert counted == ["images: 2 of 3", "images: 3 of 3"]


def test_videos(tmp_path: Path) -> None:
    """The output is a video of the same length."""
    path = tmp_path / "video.mp4"
    writer = VideoWriter(path, 10.0)
    for i in range(5):
        frame = np.full((48, 64, 3), 40, np.uint8)
        frame[10:30, 5 + 4 * i : 25 + 4 * i] = (200, 80, 40)
        writer.add(frame)
    writer.close()
    assert run(path, tmp_path / "out", "--refine", "none", "--batch", "2") == 0
    frames = list(Video(tmp_path / "out" / "video_discovered.mp4"))
    assert len(frames) == 5
    assert frames[0].shape == (48, 64, 3)
    with pytest.raises(SystemExit):
        run(path, tmp_path / "other", "--method", "similarity", "--point", "3,4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "tokencu"], "Did you mean tokencut"),
        (["--method", "lost", "--tau", "0.3"], "--tau is for tokencut"),
        (["--method", "kmeans", "--steps", "5"], "--steps is for stego"),
        (["--method", "similarity"], "needs --point X,Y"),
        (["--method", "similarity", "--point", "3;4"], "expected X,Y"),
        (["--method", "attention", "--what", "key"], "attention has none"),
        (["--batch", "0"], "1 or more images"),
    ],
)
def test_wrong_usage(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 2 and the error says what was expected."""
    with pytest.raises(SystemExit) as stopped:
        run(folder, tmp_path / "out", *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_captions() -> None:
    """Names of any script are drawn; the middle of a long one is left out, and its end is not."""
    cell = np.zeros((20, 90, 3), np.uint8)
    drawn = {
        name: captioned(cell, name)[20:] for name in ("", "a.jpg", "größe.jpg", "x" * 80 + "1.jpg", "x" * 80 + "2.jpg")
    }
    assert {one.shape for one in drawn.values()} == {(CAPTION, 90, 3)}
    assert (drawn[""] == 255).all()
    assert len({one.tobytes() for one in drawn.values()}) == 5
    assert (drawn["x" * 80 + "1.jpg"][:, -1] == 255).all()


def test_sheets_and_legends() -> None:
    """A row is as high as its highest cell; a legend takes as many lines as it needs."""
    cells = [np.zeros((height, 30, 3), np.uint8) for height in (10, 20, 6)]
    drawn = sheet([cells[:2], cells[2:]], gap=2)
    assert drawn.shape == (2 + 20 + 2 + 6 + 2, 2 + 30 + 2 + 30 + 2, 3)
    assert [(drawn[row, :, 0] == 0).sum() for row in (2, 12, 22, 24, 30)] == [60, 30, 0, 30, 0]
    colours = palette(12)
    names = [(f"class {i}", colours[i]) for i in range(12)]
    wide, narrow = legend(names, 2000), legend(names, 150)
    assert (wide.shape[1], narrow.shape[1]) == (2000, 150)
    assert len(narrow) > 3 * len(wide)
    for picture in (wide, narrow):
        assert all((picture == colour).all(-1).any() for colour in colours)


def test_run_lengths() -> None:
    """COCO counts down the columns and starts with the background."""
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[0, 2] = True
    found: dict[str, Any] = annotation(mask)
    assert found["segmentation"] == {"size": [3, 4], "counts": [4, 3, 5]}
    assert found["bbox"] == [1, 0, 2, 3]
    assert annotation(np.ones((2, 2), bool))["segmentation"]["counts"] == [0, 4]


def test_images_are_resized_to_whole_patches() -> None:
    """A batch holds consecutive images of one size."""
    sizes = [(40, 50), (80, 100), (40, 41), (40, 50)]
    seen = [resize_for_backbone(np.zeros((*size, 3), np.uint8), Path(str(i)), 32, 8) for i, size in enumerate(sizes)]
    assert [one.resized.shape[:2] for one in seen] == [(32, 40), (32, 40), (32, 32), (32, 40)]
    assert [len(batch) for batch in batches(seen, 4)] == [2, 1, 1]
    assert resize_for_backbone(np.zeros((5, 5, 3), np.uint8), Path("x"), 0, 8).resized.shape[:2] == (8, 8)
    assert isinstance(seen[0], SizedImage)
