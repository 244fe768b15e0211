"""`dense evaluate`: numbers and protocol printed and saved, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dense.backbone import load_backbone
from dense.cli import main
from tests.evaluate.images import folder
from tests.predict.models import model

BACKBONE = ["--backbone", "vit_tiny_patch16_224"]
for option in ("patch_size=8", "img_size=32", "embed_dim=32", "depth=4", "num_heads=4"):
    BACKBONE += ["--set", option]


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Options that name two small folders, one of them with a damaged image."""
    train, val = folder(tmp_path / "train", 6), folder(tmp_path / "val", 4, seed=1)
    (train / "red" / "0.png").write_bytes(b"")
    return ["--train", str(train), "--val", str(val), "--resize", "36", "--crop", "32", "--workers", "0"]


def results(folder: Path) -> dict[str, Any]:
    """Return the saved results.json."""
    return json.loads((folder / "results.json").read_text())


def test_knn(tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A randomly initialised backbone separates colours; protocol, versions, seed and skipped images are saved."""
    out = tmp_path / "out"
    command = ["evaluate", "knn", *BACKBONE, *pair, "--k", "3", "200", "--output", str(out), "--readout", "average"]
    assert main(command) == 0
    text, found = capsys.readouterr().out, results(out)
    assert "random initialisation (seed 0)" in text
    assert "could not be read: 1 of the images" in text
    assert "shorter side 36 bicubic (PIL, antialiased), centre crop 32" in text
    assert found["numbers"]["top1 k=3"] >= 0.8
    assert f"top1 k=3: {found['numbers']['top1 k=3']:.4f}" in text
    protocol = found["protocol"]
    assert protocol["settings"] == {"k": [3, 200], "temperature": 0.07, "similarity": "cosine", "bank": 17}
    assert (protocol["name"], protocol["features"], protocol["resolution"]) == ("knn", "average", 32)
    assert found["backbone"]["patch"] == 8
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(found["skipped"]) == 1
    assert main(command) == 0
    assert results(out)["numbers"] == found["numbers"]


def test_linear_and_a_saved_directory(tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A saved backbone is named by its folder; 52 heads are saved and the best printed; scenes stand in for images."""
    torch.manual_seed(1)
    saved = tmp_path / "saved"
    load_backbone(
        "vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=32, depth=4, num_heads=4
    ).save_pretrained(saved)
    command = ["evaluate", "linear", "--backbone", str(saved), "--output", str(tmp_path / "out"), "--batch-size", "8"]
    assert main([*command, *pair, "--steps", "40", "--no-augment"]) == 0
    found = results(tmp_path / "out")
    assert found["weights"] == str(saved)
    assert len(found["numbers"]["heads"]) == 52
    assert found["numbers"]["top1"] > 0.8
    assert found["protocol"]["settings"]["steps"] == 40
    scenes = ["--train", "scenes:train", "--val", "scenes:val", "--train-scenes", "10", "--val-scenes", "4"]
    assert main([*command, *scenes, "--recipe", "dino", "--epochs", "1", "--crop", "32", "--workers", "0"]) == 0
    found = results(tmp_path / "out")
    assert found["protocol"]["name"] == "linear-dino"
    assert found["protocol"]["view"] == "as rendered"
    assert list(found["numbers"]["heads"]) == ["last4 lr=0.001"]
    assert "top1: " in capsys.readouterr().out


def test_finetune_saves_what_it_made(tmp_path: Path, pair: list[str]) -> None:
    """The backbone opens again, and has moved."""
    out = tmp_path / "out"
    assert (
        main(["evaluate", "finetune", *BACKBONE, *pair, "--epochs", "1", "--batch-size", "8", "--output", str(out)])
        == 0
    )
    assert results(out)["protocol"]["settings"]["layer_decay"] == 0.75
    assert (out / "head.safetensors").is_file()
    torch.manual_seed(0)
    fresh = load_backbone("vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=32, depth=4, num_heads=4)
    tuned = load_backbone(out / "backbone")
    assert not torch.equal(tuned.model.patch_embed.proj.weight, fresh.model.patch_embed.proj.weight)


def test_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of the backbone, and of what must be beaten when asked."""
    command = ["evaluate", "probe", *BACKBONE, "--train-scenes", "8", "--val-scenes", "4", "--size", "32"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "segmentation_miou: " in text
    assert "random/" not in text
    assert main([*command, "--baselines", "--layers", "1,3", "--output", str(tmp_path)]) == 0
    found = results(tmp_path)
    numbers = found["numbers"]
    assert "pixels/depth_abs_rel" in numbers
    assert numbers["random/depth_abs_rel"] == numbers["depth_abs_rel"]
    assert main([*command, "--layers", "1,3", "--seed", "5", "--output", str(tmp_path)]) == 0
    assert results(tmp_path)["seed"] == 5
    assert results(tmp_path)["numbers"]["depth_abs_rel"] != numbers["depth_abs_rel"]


def test_mistakes_come_before_the_work(
    pair: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, and no backbone is opened for it."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work had begun")

    monkeypatch.setattr("dense.backbone.load_backbone", never)
    command = ["evaluate", "knn", *BACKBONE, *pair]
    val = command.index("--val") + 1
    cases = {
        "its own target": [*command[:val], command[command.index("--train") + 1], *command[val + 1 :]],
        "no such folder": [*command[:val], "nowhere", *command[val + 1 :]],
        "have no classes": [*command[:val], command[val] + "/red", *command[val + 1 :]],
        "only one of them is embedded scenes": [*command[:val], "scenes:val", *command[val + 1 :]],
        "does not fit images resized to 36": [*command, "--crop", "99"],
        "k is (0,)": [*command, "--k", "0"],
        "temperature is -1.0": [*command, "--temperature", "-1"],
        "--batch-size 0": [*command, "--batch-size", "0"],
        "--workers -1": [*command, "--workers", "-1"],
        "cannot write to /proc/nowhere": [*command, "--output", "/proc/nowhere"],
        "lr is 0.0": ["evaluate", "finetune", *BACKBONE, *pair, "--lr", "0"],
        "--drop-path 2.0": ["evaluate", "finetune", *BACKBONE, *pair, "--drop-path", "2"],
    }
    for message, wrong in cases.items():
        assert main(wrong) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("outputs", "measure", "words"),
    [
        (("labels",), "depth", "predicts classes; measure it with dense evaluate segmentation"),
        (("depth",), "segmentation", "predicts depth; measure it with dense evaluate depth"),
        (("depth", "labels"), "restoration", "predicts depth and classes; measure it with dense evaluate depth"),
    ],
)
def test_a_model_of_another_task(
    outputs: tuple[str, ...], measure: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The error names the right measure, and nothing is opened for it."""
    model(*outputs).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("dense.model.network.DenseModel.from_pretrained", None)
    assert main(["evaluate", measure, str(tmp_path / "model"), "--data", str(tmp_path)]) == 2
    assert f"{tmp_path / 'model'} {words} {tmp_path / 'model'}" in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong verbs and options name the nearest and end with status 2."""
    assert main(["evaluate"]) == 2
    assert main(["evaluate", "--help"]) == 0
    assert "dense evaluate VERB" in capsys.readouterr().out
    assert main(["evaluate", "linaer"]) == 2
    assert "Did you mean linear" in capsys.readouterr().err
    for arguments, message in (
        (["--bakbone", "x"], "Did you mean --backbone"),
        (["--backbone", "x", "--train", "a", "--val", "b", "--epochs", "1", "--steps", "1"], "not allowed with"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "linear", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
