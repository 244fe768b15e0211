"""`dense look`: one sheet per image or video, and what bad input gives."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dense
from dense.cli import main
from dense.data.scenes import Scenes
from dense.explore.look import SIDE, Looking, sample
from dense.media.video import VideoWriter
from tests.predict.models import model

SHEET = (2 * (SIDE + 24 + 8) + 8, 3 * (SIDE + 8) + 8)  # of a square image: H, W


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one of them in a sub-folder with a name that needs care, and one that cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    scenes = Scenes("val", 2, 64, seed=0)
    (root / "deep").mkdir()
    Image.fromarray(scenes[0].image).save(root / "a.png")
    Image.fromarray(scenes[1].image).save(root / "deep" / "Bär 'n' \"b\".jpg")
    (root / "c.jpg").write_bytes(b"")
    return root


def test_one_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sheet in the folder where the command runs, its path, the backbone, and the next command."""
    monkeypatch.chdir(tmp_path)
    assert main(["look", str(folder / "a.png"), "--size", "48"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a_look.png"
    assert said[1] == "backbone: scenes_tiny"
    assert said[2].startswith(f"next: dense explore {folder / 'a.png'} --output page.html")
    assert Image.open("a_look.png").size[::-1] == SHEET
    assert [path.name for path in tmp_path.iterdir()] == ["a_look.png"]
    given = ["--backbone", "scenes_tiny", "--channels", "3", "--levels", "0", "200", "--set", "padding=floor"]
    assert main(["look", str(folder / "a.png"), "--output", "b", *given, "--set", "norm=false"]) == 0
    repeated = "--channels 3 --levels 0 200 --set padding=floor --set norm=false"
    assert capsys.readouterr().out.splitlines()[-1].split("    #")[0].endswith(f"--backbone scenes_tiny {repeated}")


def test_folders_and_points(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image of a folder but earlier sheets; similarity in a seventh cell; unreadable files are listed."""
    Image.new("RGB", (9, 9)).save(folder / "old_look.png")
    assert main(["look", str(folder), "--size", "32", "--point", "30,20", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "c.jpg is empty" in told.err
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert written == ["a_look.png", "deep/Bär 'n' \"b\"_look.png"]
    assert Image.open(tmp_path / "a_look.png").width == 4 * (SIDE + 8) + 8


def test_a_video_is_one_sheet(tmp_path: Path) -> None:
    """Of evenly spaced frames, a row each."""
    scenes = Scenes("val", 5, 64, seed=0)
    with VideoWriter(tmp_path / "clip.mp4", 5) as writer:
        for i in range(5):
            writer.add(scenes[i].image)
    assert main(["look", str(tmp_path / "clip.mp4"), "--size", "32", "--output", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "clip_look.png").height == 4 * (SIDE + 24 + 8) + 8


def test_frames_of_videos_in_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evenly spaced, beside the images, with their times; a line says how many, and one is no video."""
    (tmp_path / "in").mkdir()
    shutil.copy(folder / "a.png", tmp_path / "in")
    (tmp_path / "in/broken.mp4").write_bytes(b"no video")
    scenes = Scenes("val", 8, 64, seed=0)
    with VideoWriter(tmp_path / "in/clip.mp4", 5) as writer:
        for i in range(8):
            writer.add(scenes[i].image)
    page = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "in"), "--output", str(page), "--size", "32", "--most", "5"]) == 0
    told = capsys.readouterr()
    assert "clip.mp4: 4 of 8 frames, evenly spaced" in told.out
    assert "broken.mp4 is not a video" in told.err
    names = re.findall(r'"name":"([^"]*)"', page.read_text())
    assert names == ["a.png", *(f"clip.mp4 {time} s" for time in (0.2, 0.6, 1.0, 1.4))]


def test_wrong_usage(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    for argv, status, words in (
        ([str(tmp_path / "none")], 1, "no images in"),
        ([str(folder / "c.jpg")], 1, f"dense look: error: {folder / 'c.jpg'} is empty"),
        ([str(folder / "c.jpg"), str(tmp_path / "d.jpg")], 1, "dense look: error: nothing was written, of 2 images"),
        ([str(folder / "a.png"), "--point", "640,2", "--size", "32"], 1, "lies outside the image"),
        ([str(folder / "a.png"), "--most", "0"], 2, "expected 0 or more pixels"),
        ([str(folder / "a.png"), "--size", "100000"], 1, "a.png: --size 100000 makes it 100000x100000, and the"),
    ):
        try:
            assert main(["look", *argv, "--output", str(tmp_path)]) == status
        except SystemExit as end:
            assert end.code == status
        assert words in capsys.readouterr().err


def test_the_call(folder: Path, tmp_path: Path) -> None:
    """An image for notebooks; the same pixels from an array; frames of a video in a row each."""
    found = dense.look(folder / "a.png", "scenes_tiny", size=32)
    assert found.size[::-1] == SHEET
    again = dense.look(np.asarray(Image.open(folder / "a.png")), dense.load_backbone("scenes_tiny"), size=32)
    assert np.array_equal(np.asarray(found)[: 8 + SIDE], np.asarray(again)[: 8 + SIDE])  # above the names
    with VideoWriter(tmp_path / "clip.mp4", 5) as writer:
        for scene in Scenes("val", 5, 64, seed=0):
            writer.add(scene.image)
    rows = dense.look(str(tmp_path / "clip.mp4"), "scenes_tiny", size=32)
    assert rows.height == 4 * (SIDE + 24 + 8) + 8


def test_a_backbone_without_attention_or_class_token() -> None:
    """Its sheet has no class attention, and objects are those in the middle."""
    image = Scenes("val", 1, 64, seed=0)[0].image
    assert Looking(dense.load_backbone("resnet18"), size=128).sheet([image]).shape[1] == SHEET[1]


def test_samples_are_spread_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(range(5000), 4) == [0, 1250, 2500, 3750]
    assert "5000 images, of which 4 are taken" in capsys.readouterr().err
    assert sample([1, 2], 4) == [1, 2]


@pytest.mark.slow
def test_many_and_large_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """5,000 images are sampled, and 40 megapixels are only another image, for a page and for a sheet."""
    many, large = tmp_path / "many", tmp_path / "large.jpg"
    many.mkdir()
    Image.fromarray(Scenes("val", 1, 32, seed=0)[0].image).save(many / "0000.png")
    for number in range(1, 5000):
        (many / f"{number:04}.png").hardlink_to(many / "0000.png")
    Image.new("RGB", (8000, 5000), (90, 120, 30)).save(large)
    page = tmp_path / "page.html"
    assert main(["explore", str(many), str(large), "--output", str(page), "--most", "3", "--size", "32"]) == 0
    assert "5001 images, of which 3 are taken" in capsys.readouterr().err
    assert main(["explore", str(large), "--output", str(page), "--size", "32", "--no-attention"]) == 0
    assert page.stat().st_size < 200_000
    assert main(["look", str(large), "--output", str(tmp_path), "--size", "32"]) == 0
    assert (tmp_path / "large_look.png").is_file()


def test_titles_and_next_commands_of_pages(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name that was given, or that of the saved directory; commands with what is known."""
    dense.load_backbone("scenes_tiny").save_pretrained(tmp_path / "mine/backbone")
    model("labels", count=14).save_pretrained(tmp_path / "streets")
    command = ["explore", str(folder / "a.png"), "--output", str(tmp_path / "page.html"), "--size", "32"]
    for options, title in (
        ([], "Features of scenes_tiny"),
        (["--backbone", str(tmp_path / "mine/backbone")], "Features of mine/backbone"),
        (["--backbone", "dino_vits16"], "Features of dino_vits16"),
        (["--model", str(tmp_path / "streets")], "Predictions and features of streets"),
    ):
        assert main([*command, "--no-attention", *options]) == 0
        assert f"<title>{title}</title>" in (tmp_path / "page.html").read_text()
        told = capsys.readouterr().out
    streets = f"next: dense evaluate segmentation {tmp_path / 'streets'} --data"
    assert f"{streets} LABELLED" in told
    place = [*command[2:], "--no-attention"]
    scenes = ["explore", str(tmp_path / "streets"), "scenes", *place, "--most", "1", "--split", "test"]
    assert main(scenes) == 0
    assert f"{streets} scenes --split test" in capsys.readouterr().out
    (tmp_path / "data/depth").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "data/images")
    assert main(["explore", str(tmp_path / "data"), *place, "--backbone", "scenes_tiny"]) == 0
    named = "--model.backbone.name scenes_tiny --model.backbone.weights null"
    told = capsys.readouterr().out
    assert f"--config depth/small_data --data.root {tmp_path / 'data'} --output runs/mine {named}" in told


def test_bad_input_of_explore(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without images, nothing readable, a wrong name of the page; a sample of many, one of them corrupt."""
    page = tmp_path / "page.html"
    (tmp_path / "none").mkdir()
    for argv, words in (([str(tmp_path / "none")], "no images in"), ([str(folder / "c.jpg")], "c.jpg is empty")):
        assert main(["explore", *argv, "--output", str(page)]) == 1
        assert words in capsys.readouterr().err
        assert not page.exists()
    for argv, words in (
        (["--output", str(tmp_path / "page.png")], "expected the name of a page"),
        (["--split", "val"], "--split is of a model's labelled images"),
        (["--val-ratio", "0.2"], "--val-ratio is of a model's labelled images"),
    ):
        with pytest.raises(SystemExit):
            main(["explore", str(folder), *argv])
        assert words in capsys.readouterr().err
    assert main(["explore", str(folder / "a.png"), "--size", "100000", "--output", str(page)]) == 1
    assert "at most 100 megapixels; choose a smaller --size" in capsys.readouterr().err
    page.write_text("<!doctype html>\n<title>Mine</title>")
    assert main(["explore", str(folder), "--output", str(page)]) == 1
    assert f"{page} exists and is not a page of dense explore" in capsys.readouterr().err
    assert "Mine" in page.read_text()
    page.unlink()
    assert main(["explore", str(folder), "--output", str(page), "--most", "2", "--size", "32", "--no-attention"]) == 0
    told = capsys.readouterr()
    assert "of which 2 are taken" in told.err
    assert f"wrote {page}" in told.out
    assert '"attention":null' in page.read_text()
    assert '<body class="loading">' in page.read_text()  # hides empty controls until the script is done
    assert main(["explore", str(folder / "a.png"), "--output", str(page), "--size", "32"]) == 0  # replaces its own


def test_a_split_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is an error where it was asked for: masks are no photographs."""
    model("labels").save_pretrained(tmp_path / "model")
    for kind in ("images", "masks"):
        (tmp_path / "data/train" / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / f"data/train/{kind}/a.png")
    command = ["explore", str(tmp_path / "model"), str(tmp_path / "data"), "--output", str(tmp_path / "page.html")]
    assert main([*command, "--split", "all"]) == 1
    assert "no images of split all" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
