"""The demo: one self-contained report, of embedded scenes or of own images, and its errors."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data.scenes import clip, render
from dense.demo.disparity import TRUTH
from dense.demo.one_shot import OTHER, one_shot
from dense.demo.photographs import CREDITS
from dense.demo.report import Command, Gallery, Section, Table, chart, page
from dense.media.video import VideoWriter
from dense.training.curves import round_ticks
from tests.data.scientific_files import labelled
from tests.runs import Done, call

FEW = [
    "--object-steps",
    "2",
    "--restoration-steps",
    "2",
    "--pretraining-steps",
    "2",
    "--measured",
    "1",
    "--shown",
    "1",
    "--size",
    "48",
]
TINY = [*FEW, "--steps", "2", "--scenes", "8", "4"]
NONE = ["--steps", 0, "--object-steps", 0, "--restoration-steps", 0, "--pretraining-steps", 0]
VOID = {"meta", "img", "br", "line", "circle", "path"}


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images = 0
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(folder: Path) -> Reader:
    """Read a report, which refers to no other file but the page of its images."""
    text = (folder / "report.html").read_text()
    found = Reader(text)
    assert "explore.html" in found.addresses
    assert (folder / "explore.html").is_file()
    known = ("data:image/webp;base64,", "#", "explore.html")
    assert all(address.startswith(known) for address in found.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    return found


def demo(*arguments: object) -> Done:
    """Run `dense demo` in this process."""
    return call(["demo", *map(str, arguments)])


# ---- the report


def test_a_page_holds_everything_it_was_given() -> None:
    """In the order pictures, curves, numbers, commands; all text is escaped."""
    image = np.zeros((8, 12, 3), np.uint8)
    part = Section(
        "Heads",
        galleries=[Gallery("Depth <b>", "words", [{"a & b": image}])],
        charts=[chart("loss", {"x<y": ([0, 1], [2, 1])})],
        tables=[Table("T", ("h",), [("<script>",)])],
        commands=["dense demo --images 'my images'"],
        own=[Command("Do:", "dense train")],
        seconds=3,
    )
    found = Reader(page("Title", "words", [part, Section("Empty")], {"seed": "0"}))
    words = "|".join(found.words)
    assert found.images == 1
    assert "script" not in found.open
    for text in ("Depth <b>", "a & b", "<script>", "dense demo --images 'my images'", "3 s", "seed"):
        assert text in words
    order = [words.index(f"|{name}|") for name in ("Pictures", "Curves", "Numbers")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (5.0, 5.0), (0.0, 0.0), (1e-6, 3e-6), (2.0, 2000.0)]
)
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    """Few and evenly spaced."""
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_charts_omit_values_that_are_not_finite() -> None:
    """Without any points there is no chart."""
    assert chart("loss", {"a": ([], [])}) == ""
    drawn = chart("loss", {"a": ([0, 1, 2], [1.0, math.nan, 3.0])}, {"chance": 2.0})
    assert "nan" not in drawn
    assert drawn.count("L") == 1
    assert "chance" in drawn


# ---- own images


def test_own_images(tmp_path: Path) -> None:
    """The report names damaged files; a second run replaces the first."""
    folder = tmp_path / "my images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(render(0, i, (40 + 8 * i, 56)).image).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no image")
    for _ in range(2):
        done = demo("--images", folder, "--output", tmp_path / "out", "--size", 48)
        assert done.returncode == 0, done.stderr
    assert f"open {tmp_path / 'out/report.html'}" in done.stdout
    found = read(tmp_path / "out")
    words = " ".join(found.words)
    assert found.images == 2 * 6
    assert "Not read: " in words
    assert f"dense discover '{folder}' --backbone scenes_tiny --method tokencut" in words
    assert "Features of scenes_tiny" in words


def test_own_numbers(tmp_path: Path) -> None:
    """Images of 12 bits and two channels, by options that the commands of the report repeat."""
    folder = labelled(tmp_path / "cells", 2) / "images"
    declared = ["--channels", "dapi", "actin", "--levels", 0, 4095]
    done = demo("--images", folder, "--output", tmp_path / "out", "--size", 48, *declared)
    assert done.returncode == 0, done.stderr
    assert "--backbone scenes_tiny --levels 0 4095 --channels dapi actin" in " ".join(read(tmp_path / "out").words)
    done = demo("--output", tmp_path / "other", *declared)
    assert done.returncode == 2 and "channels dapi, actin; levels 0 to 4095; add --images FOLDER" in done.stderr


def test_a_video_is_tracked(tmp_path: Path) -> None:
    """Frames, then the objects of the first frame in all of them."""
    writer = VideoWriter(tmp_path / "video.mp4", 10)
    for scene in clip(0, 3, 6, 64):
        writer.add(scene.image)
    writer.close()
    done = demo("--images", tmp_path / "video.mp4", "--output", tmp_path / "out", "--size", 64, "--shown", 2)
    assert done.returncode == 0, done.stderr
    words = " ".join(read(tmp_path / "out").words)
    assert "frame 5" in words
    assert "dense track" in words
    assert (tmp_path / "out/first.png").is_file()


def test_own_images_have_their_own_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the working directory has its name as title."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(0, 1, (40, 56)).image).save("a.png")
    done = demo("--images", ".", "--size", 48)
    assert done.returncode == 0, done.stderr
    assert tmp_path.name in read(tmp_path / "runs/own").words
    assert not (tmp_path / "runs/demo").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such"),
        (lambda path: path.mkdir(), "no images in"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"x")), "none of the images"),
    ],
)
def test_unreadable_inputs_are_errors(make: object, message: str, tmp_path: Path) -> None:
    """The error is one line."""
    make(tmp_path / "own")  # type: ignore[operator]
    done = demo("--images", tmp_path / "own", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# ---- scenes


@pytest.mark.parametrize(
    "wrong",
    [
        ["--shown", "0"],
        ["--scenes", "1", "4"],
        ["--steps", "-1"],
        ["--restoration-steps", "-1"],
        ["--step", "3"],
    ],
)
def test_invalid_options(wrong: list[str], tmp_path: Path) -> None:
    """They end with the status of wrong usage."""
    assert demo(*wrong, "--output", tmp_path / "out").returncode == 2


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    """A folder with other files, and one with another demo."""
    (tmp_path / "letter.txt").write_text("dear")
    done = demo("--output", tmp_path)
    assert done.returncode == 1
    assert "holds no demo" in done.stderr
    (tmp_path / "demo.json").write_text(json.dumps({"seed": 7}))
    assert "holds a demo with another" in demo("--output", tmp_path).stderr
    Image.fromarray(render(0, 1, (40, 56)).image).save(tmp_path / "a.png")
    done = demo("--images", tmp_path / "a.png", "--output", tmp_path)
    assert done.returncode == 1
    assert "holds the demo of embedded scenes" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_photographs_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of scikit-image, which is not imported, with their credits; other sections can be left out."""
    (tmp_path / "packages/skimage/data").mkdir(parents=True)
    (tmp_path / "packages/skimage/__init__.py").write_text("raise ImportError")
    for number, name in enumerate(CREDITS):
        Image.fromarray(render(0, number, (40, 56)).image).save(tmp_path / "packages/skimage/data" / name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    done = demo(*TINY, *NONE, "--shown", 2, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out")
    words = " ".join(found.words)
    assert found.images == 2 * 6
    for text in ("astronaut.png: Eileen Collins, NASA, public domain", "CorLoc", "dense explore"):
        assert text in words
    assert "Pretraining" not in words


def test_without_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says how to get them, and embedded scenes are in their place."""
    monkeypatch.setattr("dense.demo.photographs.CREDITS", {})
    done = demo(*TINY, *NONE, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "scikit-image, which is not installed" in done.stdout
    assert "Embedded scenes" in read(tmp_path / "out").words


@pytest.mark.slow
def test_a_tiny_demo(tmp_path: Path) -> None:
    """All sections; the same command works again, and one with other settings is refused."""
    command = [*TINY, "--output", tmp_path / "out"]
    for _ in range(2):
        done = demo(*command)
        assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out")
    words = " ".join(found.words)
    assert found.images == 6 + 4 + 4 + 3 + 3
    for text in (
        "random initialisation",
        "abs_rel",
        "mIoU",
        "k-NN accuracy",
        "entropy of targets",
        "noisy",
        "torch",
        "seed",
        "Timings",
    ):
        assert text in words
    assert sum("dense train --config" in line for line in found.words) == 2 + 1 + 1 + 1 + 2
    assert "another restoration_steps" in demo(*command, "--restoration-steps", 3).stderr


@pytest.mark.slow
def test_the_heads_of_the_demo(tmp_path: Path) -> None:
    """The heads of `make demo`, on fewer scenes: classes are better than by random initialisation, depth no worse."""
    done = demo(*FEW, *NONE, "--steps", 50, "--scenes", 100, 24, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    read(tmp_path / "out")

    def number(kind: str, name: str) -> float:
        return json.loads((tmp_path / "out" / f"head_{kind}" / "results.json").read_text())["numbers"][f"val/{name}"]

    assert number("pretrained", "labels_miou") > number("random", "labels_miou")
    assert number("pretrained", "depth_abs_rel") < 1.05 * number("random", "depth_abs_rel")


def test_one_annotated_image(tmp_path: Path) -> None:
    """The object of the left photograph of a pair is found in the right one, by both methods."""
    truth = np.ones((96, 128), np.float32)
    truth[32:80, 40:96] = 9
    truth[:8] = np.inf
    for name, shift in (("motorcycle_left.png", 0), (OTHER, 8)):
        near = np.roll(truth == 9, -shift, 1)[..., None]
        noise = np.random.default_rng(shift).integers(0, 60, (96, 128, 3))
        Image.fromarray((noise + np.where(near, (180, 20, 20), (20, 20, 160))).astype(np.uint8)).save(tmp_path / name)
    np.savez(tmp_path / TRUTH, truth)
    left = tmp_path / "motorcycle_left.png"
    part = one_shot(left, ["--backbone", "scenes_tiny"], tmp_path, 96)
    assert list(part.galleries[0].rows[0]) == ["annotated", "knn", "insid3"]
    assert len(part.commands) == 2
    labels = np.asarray(Image.open(tmp_path / "near_knn/motorcycle_right_labels.png"))
    assert (labels == np.roll(truth == 9, -8, 1)).mean() > 0.9
