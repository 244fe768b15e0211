"""The command line: lazy, quick, and kind about mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dense
from dense.backbone import load_backbone
from dense.cli import VERBS, main
from dense.cli.trainings import TRAININGS, ShortHelp
from dense.suggest import did_you_mean, nearest

TINY = ["--set", "embed_dim=32", "--set", "depth=2", "--set", "num_heads=4"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`dense ...` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "dense", *arguments], capture_output=True, text=True, check=False)


def status(arguments: list[str]) -> int:
    """The exit status of `dense ...` in this process."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def test_help_is_quick_and_imports_no_torch() -> None:
    """The best of three takes less than a second; every verb has a line; nothing heavy is imported."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert min(times) < 1.0
    for verb, (_, line) in VERBS.items():
        assert any(row.split()[:1] == [verb] and line in row for row in done.stdout.splitlines())
    code = "import sys; from dense.cli import main; main(['--help'])\n"
    code += "assert not {'torch', 'numpy', 'timm'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_verbs_take_backbones_of_the_hugging_face_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published id, and one that only the hub knows, of which a recipe with automatic values asks the description."""
    saved, image = tmp_path / "saved", str(tmp_path / "image.png")
    load_backbone("dinov2_vits14", img_size=28, depth=4, embed_dim=32, num_heads=2).save_pretrained(saved)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *words, **options: str(saved))
    for number, name in enumerate(("facebook/dinov2-small", "someone/net")):
        words = ["features", image, "--backbone", name, "--weights", "hub", "--output", str(tmp_path / f"f{number}")]
        assert status(words) == 0
    words = ["train", "--config", "depth/small_data", "--data.root", "scenes", "--data.scenes=[4, 2]"]
    words += ["--data.scene_size", "32", "--data.workers", "0", "--model.steps", "1", "--trainer.accelerator", "cpu"]
    words += ["--model.backbone.weights", "hub", "--model.backbone.name"]
    assert status([*words, "someone/net", "--output", str(tmp_path / "run")]) == 0
    assert status([*words, "no/net", "--model.backbone.weights", "null", "--output", str(tmp_path / "wrong")]) == 1
    wrong = "no such directory: no/net; if it is a Hugging Face id, download it with weights 'hub'"
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("alone", [True, False])
def test_one_of_a_group_leaves_without_taking_python_down(tmp_path: Path, alone: bool) -> None:
    """It keeps its status, its output and what atexit registered; nothing is destroyed under the group's threads."""
    code = "import atexit, sys, torch.distributed as group\nfrom dense import cli\n"
    code += "class Held:\n  def __del__(self): print('destroyed', flush=True)\nheld = Held()\n"
    code += "atexit.register(print, 'the end')\ncli.main = lambda: print('done') or 3\n"
    if not alone:
        code += f"group.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)\n"
    code += "cli.process()\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.split("\n") == ["done", "the end", *(["destroyed"] if alone else []), ""]


@pytest.mark.parametrize(("verb", "recipe"), [("train", "depth/scenes_linear"), ("pretrain", "pretrain/small_data")])
def test_short_help_of_trainings(verb: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It fits on a few screens, names every recipe and only keys that there are, and imports no torch."""
    code = f"import sys; from dense.cli import main; main(['{verb}', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 90
    recipes = ShortHelp(verb).recipes()
    assert len(recipes) > 10
    for name, words in recipes.items():
        assert f"  {name} " in done.stdout
        assert len(words) > 10
    assert status([verb, "--config", recipe, "--data.root", "X", "--print_config"]) == 0
    keys = yaml.safe_load(capsys.readouterr().out)
    keys["model"] = keys["model"].get("init_args", keys["model"])
    for option in TRAININGS[verb][2]:
        if option.startswith("--show-views"):  # instead of a run, hence no key of its recipe
            continue
        place = keys
        for part in option.split()[0].removeprefix("--").split("."):
            assert part in place, option
            place = place[part]
    assert status([verb, "--help_all"]) == 0
    assert "--trainer.strategy" in capsys.readouterr().out


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version; nothing at all prints the help and fails."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dense {dense.__version__}\n"
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["featurs"], "Did you mean features"),
        (["features", "x.jpg", "--backbone", "dino_vits16", "--outptu", "y"], "Did you mean --output"),
        (["features", "x.jpg", "--backbone", "dino_vits16", "--output", "y", "--norm", "flase"], "Did you mean false"),
        (["convert", "--official"], "source"),
        (["anomaly", "predict", "x"], "a fitted model is applied by dense predict MODEL IMAGES"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong verb, option or choice names the nearest one."""
    assert status(arguments) == 2
    assert message in capsys.readouterr().err


def test_no_traceback_in_a_process_of_its_own() -> None:
    """The installed command behaves the same."""
    done = run("features", "x.jpg", "--outptu", "y")
    assert done.returncode == 2
    assert "Did you mean --output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`dense VERB --help` works."""
    assert status([verb, "--help"]) == 0
    assert f"dense {verb}" in capsys.readouterr().out


def test_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Maps of good images are written, bad ones are listed, and none at all is an error."""
    images = tmp_path / "pictures"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(images / "a.png")
    (images / "b.jpg").write_bytes(b"")
    out = tmp_path / "out"
    command = ["features", str(images), "--backbone", "dino_vits16", "--output", str(out), "--layers", "0,1", *TINY]
    assert main(command) == 0
    arrays = np.load(out / "a.npz")
    assert arrays["map_1"].shape == (32, 4, 5)
    assert arrays["prefix_0"].shape == (1, 32)
    facts = json.loads((out / "features.json").read_text())
    assert facts["layers"] == [0, 1]
    assert facts["weights"] == "random initialisation (seed 0)"
    assert len(facts["skipped"]) == 1
    assert "empty (0 bytes)" in capsys.readouterr().out
    (images / "a.png").unlink()
    assert main(command) == 1
    assert "none of 1 images could be read" in capsys.readouterr().err
    (images / "b.jpg").unlink()
    assert main(command) == 1
    assert "no images in" in capsys.readouterr().err


def test_features_of_twins_and_specks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of one name keep their own files; one that is too small is skipped."""
    folders = [tmp_path / name / "a" for name in "pqr"]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 50 * i, np.uint8)).save(folder / "x.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "speck.png")
    out = tmp_path / "out"
    sources = [str(f / "x.png") for f in folders] + [str(tmp_path / "speck.png")]
    assert main(["features", *sources, "--backbone", "dino_vits16", "--output", str(out), *TINY]) == 0
    assert sorted(p.name for p in out.glob("*.npz")) == ["x.npz", "x_2.npz", "x_3.npz"]
    facts = json.loads((out / "features.json").read_text())
    assert facts["images"]["x_3.npz"] == sources[2]
    assert "smaller than one patch" in capsys.readouterr().out
    command = ["features", *sources, "--backbone", "dino_vits16", "--output", str(tmp_path / "other")]
    assert status([*command, "--layers", "1x"]) == 2
    assert "expected last, last4, even4, default, or indices" in capsys.readouterr().err
    assert status([*command, "--set", "paddin=resize"]) == 2
    assert "Did you mean padding" in capsys.readouterr().err
    assert status([*command, "--set", "num_heads=5"]) == 1


def test_features_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before the backbone is made: a file where the folder should be, and nothing that was asked for."""
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    command = ["features", str(image), "--backbone", "dino_vits16", *TINY]
    assert status([*command, "--output", str(image)]) == 1
    assert status([*command, "--output", str(tmp_path / "out"), "--format", "none"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "choose another --output" in first
    assert "add --pca" in second
    for words in (["--pca-foreground"], ["--pca-colours", "hue"]):  # either means --pca
        out = tmp_path / words[0]
        assert status([*command, "--output", str(out), "--format", "none", *words]) == 0
        assert (out / "a_pca.png").is_file()
        assert "the weights are random" in capsys.readouterr().out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An official file becomes a directory and returns unchanged; errors are one line."""
    import torch

    from tests.backbone.official_files import dinov2

    state = dinov2(32, 2, registers=4)
    torch.save(state, tmp_path / "official.pth")
    source, folder, back = str(tmp_path / "official.pth"), str(tmp_path / "folder"), str(tmp_path / "back.pth")
    assert main(["convert", source, folder, "--backbone", "dinov2_vits14_reg", *TINY]) == 0
    assert "recognised as dinov2_registers" in capsys.readouterr().out
    assert main(["convert", folder, back, "--official"]) == 0
    again = torch.load(back, weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)
    assert main(["convert", source, folder]) == 1
    assert "--backbone" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.pth"), folder, "--backbone", "dino_vits16"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_suggestions() -> None:
    """Near names are found whatever their case and dashes; far ones are not."""
    assert nearest("Vit-Small", ["vit_small", "vit_base", "resnet50"])[0] == "vit_small"
    assert did_you_mean("outptu", ["output"]) == " Did you mean output?"
    assert did_you_mean("xyzzy", ["output"]) == ""
