"""DAVIS' protocol on targets known by hand, on a miniature of its files, and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dense.data.video import davis, scene_clips
from dense.discover import Tracking
from dense.evaluate.video import Score, evaluate_video, repeat_first
from tests.backbone.conftest import tiny
from tests.cli.test_evaluate import BACKBONE
from tests.discover.videos import colours, squares
from tests.evaluate.davis import miniature
from tests.runs import call


def test_first_and_last_frames_do_not_count() -> None:
    """Perfect between them; objects that come later and unknown pixels are no matter."""
    masks = squares(5, (48, 64), [(0, 2), (0, 1)])[1]
    wrong = np.zeros_like(masks[0])
    targets = [torch.from_numpy(one) for one in (wrong, *masks[1:4], wrong)]
    ground_truths = [mask.copy() for mask in masks]
    ground_truths[2][40:, :10], ground_truths[3][:, 60:] = 3, 255
    score = Score()
    score.add("a", targets, ground_truths)
    assert score.numbers() == {
        "j_and_f": 1.0, "j_mean": 1.0, "j_recall": 1.0, "j_decay": 0.0, "f_mean": 1.0, "f_recall": 1.0, "f_decay": 0.0,
    }  # fmt: skip
    targets[3] = torch.from_numpy(wrong)
    score.add("b", targets, ground_truths)
    assert score.numbers()["j_mean"] == pytest.approx(5 / 6)
    assert score.clips() == {"a": 1.0, "b": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="has 2 frames: expected 3 or more"):
        Score().add("c", targets[:2], ground_truths[:2])


def test_objects_weigh_alike() -> None:
    """Three objects of two clips, one of which is lost: two thirds, not three quarters."""
    two, one = (squares(4, (48, 64), steps)[1] for steps in ([(0, 1), (0, 1)], [(0, 1)]))
    score = Score()
    score.add("two", [torch.from_numpy(np.where(mask == 1, 1, 0)) for mask in two], two)
    score.add("one", [torch.from_numpy(mask) for mask in one], one)
    assert score.numbers()["j_and_f"] == pytest.approx(2 / 3)


def test_a_miniature_of_davis(tmp_path: Path) -> None:
    """Colours follow the squares, through JPEG; the first mask does not."""
    clips = davis(miniature(tmp_path))
    found = evaluate_video(tiny("dino_vits16", patch_size=4), clips, Tracking(size=0), colours)  # type: ignore[arg-type]
    still = repeat_first(clips)
    assert found.numbers()["j_and_f"] > 0.9
    assert still.numbers()["j_and_f"] < 0.7
    assert list(found.clips()) == ["right", "down"]
    assert sum(map(len, found.objects.values())) == 3


def test_clips_of_scenes_are_followed_by_scenes_tiny() -> None:
    """Better than the first mask left in place."""
    import dense

    clips = scene_clips("val", 2, 6, 64, 0)
    found = evaluate_video(dense.load_backbone("scenes_tiny", frozen=True), clips, Tracking(size=128, multiple=0))
    assert found.numbers()["j_and_f"] > repeat_first(clips).numbers()["j_and_f"] + 0.1


def test_the_verb(tmp_path: Path) -> None:
    """On both kinds of data; what decided the numbers is printed and saved."""
    out, root = tmp_path / "out", miniature(tmp_path / "davis")
    done = call(["evaluate", "video", *BACKBONE, "--data", str(root), "--size", "48", "--output", str(out)])
    assert done.returncode == 0, done.stderr
    saved = json.loads((out / "results.json").read_text())
    assert set(saved["numbers"]["clips"]) == {"right", "down"}
    assert 0 <= saved["numbers"]["j_and_f"] <= 1
    settings = saved["protocol"]["settings"]
    assert (settings["context"], settings["neighbourhood"], settings["topk"], settings["temperature"]) == (
        7,
        12,
        5,
        0.1,
    )
    assert saved["protocol"]["val"].endswith("val (2 clips, 12 frames)")
    assert "video-v1 of vit_tiny" in done.stdout
    scenes = ["--data", "scenes", "--clips", "1", "--frames", "3", "--side", "32", "--protocol", "v3", "--topk", "3"]
    done = call(["evaluate", "video", *BACKBONE, *scenes, "--baselines", "--output", str(out)])
    assert done.returncode == 0, done.stderr
    saved = json.loads((out / "results.json").read_text())
    assert {"j_and_f", "random weights j_and_f", "first mask j_and_f"} <= set(saved["numbers"])
    assert saved["numbers"]["j_and_f"] == saved["numbers"]["random weights j_and_f"]  # both of seed 0
    assert (saved["protocol"]["settings"]["shape"], saved["protocol"]["settings"]["topk"]) == ("circle", 3)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data", "NOWHERE"], 1, "no such folder: NOWHERE"),
        (["--data", "."], 1, "val.txt is missing"),
        (["--data", "scenes", "--clips", "0"], 1, "at least 1 of 3 frames"),
        (["--data", "scenes", "--temperature", "0"], 1, "expected a positive number"),
        (["--data", "scenes", "--protocol", "v2"], 2, "invalid choice: 'v2'"),
        (["--data", "scenes", "--neighborhood", "3"], 2, "Did you mean --neighbourhood"),
    ],
)
def test_mistakes(options: list[str], status: int, message: str) -> None:
    done = call(["evaluate", "video", *BACKBONE, *options])
    assert done.returncode == status
    assert message in done.stderr
