"""`dense predict` on files, folders and videos, and on what cannot be read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from dense.cli import main
from dense.data.scenes import render
from dense.media.video import Video, VideoError, VideoWriter
from tests.predict.models import model
from tests.runs import Done, call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model("depth", "labels").save_pretrained(folder)
    return folder


def photo(path: Path, index: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(0, index, (24, 32)).image).save(path)
    return path


def video(path: Path, frames: int = 3, size: tuple[int, int] = (32, 48)) -> Path:
    writer = VideoWriter(path, 10)
    for index in range(frames):
        writer.add(render(0, index, size).image)
    writer.close()
    return path


def predict(model: Path, *inputs: Path | str, output: Path) -> Done:
    return call(["predict", str(model), *map(str, inputs), "--output", str(output)])


def test_folders_keep_their_shape_and_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/sub/b.jpg")
    (tmp_path / "in/c.png").write_bytes(b"no image")
    video(tmp_path / "in/film.mp4")
    (tmp_path / "in/bad.mp4").write_bytes(b"no video")
    done = predict(saved, tmp_path / "in", output=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "wrote predictions for 3 of 5" in done.stdout
    assert "c.png" in done.stderr
    assert "bad.mp4" in done.stderr
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    ends = ("depth.npy", "depth.png", "depth.json", "labels.png", "scores.png", "overlay.png")
    own = {"film_predicted.mp4", ".dense-predict.jsonl"}
    assert names == {f"{stem}_{end}" for stem in ("a", "sub/b") for end in ends} | own
    assert np.load(tmp_path / "out/a_depth.npy").shape == (24, 32)
    assert len(list(Video(tmp_path / "out/film_predicted.mp4"))) == 3


def test_predictions_are_no_inputs(saved: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    for _ in range(2):
        assert "1 of 1" in predict(saved, tmp_path, output=tmp_path / "answers").stdout
    done = predict(saved, tmp_path / "a.png", output=tmp_path)
    assert done.returncode == 2
    assert "all images lie in" in done.stderr


def test_the_run_of_a_model_stands_for_it(saved: Path, tmp_path: Path) -> None:
    """In every verb that takes a model."""
    shutil.copytree(saved, tmp_path / "run/model")
    done = predict(tmp_path / "run", photo(tmp_path / "a.png"), output=tmp_path / "out")
    assert (done.returncode, (tmp_path / "out/a_labels.png").is_file()) == (0, True)
    assert f"next: dense explore {tmp_path / 'run/model'} " in done.stdout
    done = call(["evaluate", "restoration", str(tmp_path / "run"), "--data", str(tmp_path)])
    assert f"{tmp_path / 'run/model'} predicts depth and classes" in done.stderr
    with (
        pytest.raises(ValueError, match="opened"),
        patch("dense.export.write.open_model", side_effect=ValueError("opened")) as opened,
    ):
        main(["--debug", "export", str(tmp_path / "run"), "--output", str(tmp_path / "a.onnx")])
    assert opened.call_args.args[0] == str(tmp_path / "run/model")


def test_numbers_alone(saved: Path, tmp_path: Path) -> None:
    done = call(
        ["predict", str(saved), str(photo(tmp_path / "a.png")), "--output", str(tmp_path / "o"), "--no-overlay"]
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "o").glob("*overlay*"))


def test_names_that_clash(saved: Path, tmp_path: Path) -> None:
    a, b = photo(tmp_path / "a.png"), photo(tmp_path / "a.jpg")
    done = predict(saved, a, b, output=tmp_path / "out")
    assert done.returncode == 1
    assert "same file" in done.stderr
    videos = [video(tmp_path / folder / "x.mp4") for folder in ("one", "two")]
    assert "same file" in predict(saved, *videos, output=tmp_path / "out").stderr
    assert "1 of 1" in predict(saved, a, a, output=tmp_path / "out").stdout


def test_bad_input_is_one_line(saved: Path, tmp_path: Path) -> None:
    a = photo(tmp_path / "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        "no such directory": predict(tmp_path / "no/model", a, output=tmp_path / "o"),
        "config.json": predict(empty, a, output=tmp_path / "o"),
        "no such image, folder or video": predict(saved, tmp_path / "b.png", output=tmp_path / "o"),
        "no images in": predict(saved, empty, output=tmp_path / "o"),
        "another --output": predict(saved, a, output=a),
        "no device": call(["predict", str(saved), str(a), "--device", "cuda:99"]),
        "fp32": call(["predict", str(saved), str(a), "--precision", "fp8"]),
        "--stride": call(["predict", str(saved), str(a), "--strid", "3"]),
        "stride=3": call(["predict", str(saved), str(a), "--stride", "3", "--output", str(tmp_path / "o")]),
    }
    for words, done in cases.items():
        assert done.returncode in (1, 2), words
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "bad.png").write_bytes(b"")
    assert predict(saved, tmp_path / "bad.png", output=tmp_path / "o").returncode == 1


def test_videos(tmp_path: Path) -> None:
    for size in ((32, 48), (33, 47)):
        path = video(tmp_path / "deep" / f"{size[1]}.mp4", 4, size)
        read = Video(path)
        assert read.rate == pytest.approx(10)
        frames = list(read)
        assert [f.shape for f in frames] == [(size[0] + size[0] % 2, size[1] + size[1] % 2, 3)] * 4
        seen = frames[0][: size[0], : size[1]].astype(float)
        assert np.abs(seen - render(0, 0, size).image).mean() < 25
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(VideoError, match="OpenCV"):
        Video(tmp_path / "text.mp4")


@pytest.mark.slow
def test_what_was_left_out_comes_when_it_is_used() -> None:
    """torch.compile, RoI pooling of torchvision and NaFlexViT of timm, after a prediction's imports."""
    code = "import dense.backbone, torch, torchvision, timm\n"
    code += "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).sum() == 4\n"
    code += "boxes = torch.tensor([[0, 0.0, 0, 4, 4]])\n"
    code += "assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)\n"
    code += "model = timm.create_model('naflexvit_base_patch16_gap', depth=1, embed_dim=32, num_heads=2)\n"
    code += "assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predictions_of_other_settings_are_not_mixed(saved: Path, tmp_path: Path) -> None:
    """Other images are added; another size is refused, or replaces what was written."""
    for name in ("a.png", "b.png"):
        assert predict(saved, photo(tmp_path / name), output=tmp_path / "out").returncode == 0
    argv = ["predict", str(saved), str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--resize", "16"]
    done = call(argv)
    assert done.returncode == 1
    assert "other settings (resize: 16 now, None then)" in done.stderr
    assert call([*argv, "--overwrite"]).returncode == 0
    assert not list((tmp_path / "out").glob("b_*"))
