"""`dense track`: videos and folders to masks, overlays and a sheet; the section on videos of docs/discovery.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data import scenes
from dense.discover.run_tracking import FrameSamples, draw_objects, overlays
from dense.media.draw import CAPTION
from dense.media.video import Video, VideoWriter
from tests.backbone.conftest import tiny
from tests.cli.test_evaluate import BACKBONE
from tests.discover.videos import squares
from tests.runs import Done, call


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return a video of six frames, with the mask of the first one beside it."""
    images, masks = squares(6, (48, 64), [(0, 2), (0, 1)])
    writer = VideoWriter(tmp_path / "video.mp4", 10.0)
    for image in images:
        writer.add(image)
    writer.close()
    Image.fromarray(masks[0]).convert("P").save(tmp_path / "first.png")
    return tmp_path / "video.mp4"


def run(video: Path, *options: str, mask: Path | None = None) -> Done:
    """Run the verb on small frames."""
    mask = mask or video.parent / "first.png"
    out = video.parent / "out"
    return call(["track", str(video), "--mask", str(mask), *BACKBONE, "--size", "32", "--out", str(out), *options])


def test_a_video(clip: Path) -> None:
    """One mask with a palette per frame, a video, a sheet, and all settings; the output names them."""
    done, out = run(clip, "--topk", "3", "--overlays"), clip.parent / "out"
    assert done.returncode == 0, done.stderr
    assert f"2 objects in 6 frames: masks in {out / 'masks'}, {out / 'sheet.png'}" in done.stdout
    assert "the weights are random" in done.stdout
    masks = sorted((out / "masks").iterdir())
    assert [path.name for path in masks] == [f"{i:05d}.png" for i in range(6)]
    for path in masks:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("P", (64, 48))
            assert set(np.unique(np.array(image))) <= {0, 1, 2}
    assert np.array_equal(np.array(Image.open(masks[0])), np.array(Image.open(clip.parent / "first.png")))
    assert len(list((out / "overlays").iterdir())) == 6
    assert [frame.shape for frame in Video(out / "video_tracked.mp4")] == [(48, 64, 3)] * 6
    assert Video(out / "video_tracked.mp4").rate == 10
    assert Image.open(out / "sheet.png").width > 4 * 200
    saved = json.loads((out / "tracked.json").read_text())
    assert (saved["objects"], saved["settings"]["topk"], saved["settings"]["size"]) == ([1, 2], 3, 32)
    assert saved["input_size"][0] == 32


def test_a_folder(clip: Path) -> None:
    """Masks have the names of the frames."""
    folder = clip.parent / "frames"
    folder.mkdir()
    for i, frame in enumerate(Video(clip)):
        Image.fromarray(frame).save(folder / f"f{8 + i}.png")
    done = run(folder, "--no-film", "--protocol", "v3")
    assert done.returncode == 0, done.stderr
    out = clip.parent / "out"
    assert {path.name for path in (out / "masks").iterdir()} == {f"f{i}.png" for i in range(8, 14)}
    assert not (out / "frames_tracked.mp4").exists()
    assert not (out / "overlays").exists()
    (folder / "f9.png").write_bytes(b"")
    done = run(folder, "--overwrite")
    assert done.returncode == 1
    assert "f9.png is empty" in done.stderr


def test_mistakes(clip: Path) -> None:
    """Each error is one line, and no video is written."""
    root = clip.parent
    (root / "bad.mp4").write_bytes(b"no video")
    writer = VideoWriter(root / "one.mp4", 10.0)
    writer.add(np.zeros((48, 64, 3), np.uint8))
    writer.close()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(root / "none.png")
    Image.fromarray(np.ones((40, 64), np.uint8)).save(root / "small.png")
    for video, options, mask, message in (
        ("none.mp4", [], "first.png", "no such video"),
        ("bad.mp4", [], "first.png", "is not a video that OpenCV can read"),
        ("one.mp4", [], "first.png", "has 1 frames: expected 2 or more"),
        ("video.mp4", [], "none.png", "holds no object"),
        ("video.mp4", [], "gone.png", "no such mask"),
        ("video.mp4", [], "small.png", "frame 0 is 48x64, not 40x64"),
        ("video.mp4", ["--topk", "0"], "first.png", "topk=0"),
    ):
        done = run(root / video, *options, mask=root / mask)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list((root / "out").glob("*.mp4"))
    assert run(clip, "--protocl", "v1").returncode == 2


def test_overlays() -> None:
    """One drawn frame per frame."""
    images, masks = squares(3, (48, 64))
    found = list(overlays(tiny("dino_vits16"), iter(images), masks[0], size=0))
    assert [one.shape for one in found] == [(48, 64, 3)] * 3
    assert np.array_equal(found[0], draw_objects(images[0], masks[0]))
    assert not np.array_equal(found[0], images[0])
    assert np.array_equal(draw_objects(images[0], masks[0] * 0), (images[0] * 0.6).astype(np.uint8))


@pytest.mark.parametrize(("frames", "kept"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 2, 4]), (19, [0, 8, 16])])
def test_the_sheet_spreads(frames: int, kept: list[int]) -> None:
    """Frames are evenly spaced over a video of unknown length, with at most four in memory."""
    spread = FrameSamples(4)
    for i in range(frames):
        spread.add(np.full((10, 20, 3), i, np.uint8), f"{i:05d}")
        assert len(spread.kept) <= 4
    assert [int(image[0, 0, 0]) for image in spread.kept] == kept
    assert spread.kept[0].shape == (120 + CAPTION, 240, 3)
    assert (spread.kept[0][120:] < 100).any()  # the frame's name


# ---- docs/discovery.md

PAGE = Path(__file__).parents[2] / "docs/discovery.md"
SECTION = PAGE.read_text().split("## Objects followed through a video")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)


def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands on scenes, shortened."""
    monkeypatch.chdir(tmp_path)
    Path("FRAMES").mkdir()
    writer = VideoWriter("VIDEO.mp4", 10)
    for i, frame in enumerate(scenes.clip(0, 5, 3, (48, 64))):
        Image.fromarray(frame.image).save(f"FRAMES/{i}.png")
        writer.add(frame.image)
        if not i:
            Image.fromarray(frame.instance.astype(np.uint8)).save("FIRST.png")
    writer.close()
    ran = 0
    for line in (line for language, block in BLOCKS if not language for line in block.splitlines()):
        words = shlex.split(line.replace("dino_vits16 --weights FILE", "scenes_tiny"))[1:]
        if "DAVIS" in words:
            continue
        short = ["--clips", "1", "--frames", "3", "--side", "32"] if words[0] == "evaluate" else ["--size", "48"]
        done = call([*words, *short])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 3


def test_documented_python_runs() -> None:
    scope: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, scope)
    assert tuple(scope["masks"].shape) == (4, 96, 96)  # type: ignore[attr-defined]
