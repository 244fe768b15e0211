"""The commands and the Python of the pages run, shortened, with tiny files and models in place of yours.

docs/curate.md and the section on videos of docs/discovery.md have tests beside their verbs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dense
from dense.data.scenes import render
from tests.docs.pages import blocks, commands, page
from tests.published import layouts, peers
from tests.runs import call

pytestmark = pytest.mark.slow

CPU = {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1, "data.workers": 0}
SCENES = {"data.scenes": [8, 4], "data.scene_size": 32}
TINY_BACKBONE = {"model.backbone.name": "scenes_tiny", "model.backbone.weights": None, "data.crop_size": 32}
TINY_BODY = "{dim: 8, blocks: [1,1,1,1], heads: [1,1,2,2], refinement: 1, expansion: 2.0}"
PROJECTION = {"model.head.out_dim": 32, "model.head.hidden_dim": 32, "knn.train": None, "knn.val": None}
FEW = {
    "probe": ["--train-scenes", "20", "--val-scenes", "10"],
    "discovery": ["--scenes", "2", "--side", "32", "--steps", "2"],
    "video": ["--clips", "1", "--frames", "3", "--side", "32"],
}
STAND_INS = {"NAME": "dino_vits16", "FILE": "FILE.pth"}
NEEDED = (  # files of others
    "VOCdevkit/VOC2012", "LABELLED", "dinov2_vits14_reg4_pretrain.pth", "dinov2_vits14.pth",
    "NYU", "ADE", "DAVIS", "TRAIN", "CAMVID", "...", "dinov2_vits14_nyu_dpt_head.pth",
)  # fmt: skip
RAN = {  # commands of a page that run here
    "README": 5, "start": 7, "look": 3, "explore": 1, "weights": 4, "heads": 17, "published": 2, "restoration": 4,
    "pretraining": 6, "distil": 2, "scale": 3, "discovery": 4, "evaluation": 2, "export": 1, "results": 4,
}  # fmt: skip


def short_training(recipe: str) -> dict[str, Any]:
    """Options that make a run of a recipe for heads tiny."""
    options = CPU | {"model.init_args.steps": 2}
    if recipe.startswith("restoration"):
        tiny = {"data.scenes": [6, 1], "data.scene_size": 32, "data.patches": [[0, 16, 2]]}
        return options | tiny | {"model.init_args.head.body": TINY_BODY}
    if "scenes" in recipe:
        return options | SCENES
    return options | TINY_BACKBONE | {"data.batch_size": 2}


def short_pretraining(recipe: str) -> dict[str, Any]:
    """Options that make a run of a recipe for pretraining tiny."""
    options = CPU | PROJECTION | {"trainer.precision": "32-true", "model.steps": 2, "data.batch_size": 4}
    if "scenes" in recipe:
        return options | {"data.scenes": 16}
    patch = 14 if "vitg14" in recipe else 16
    options |= {"data.views.init_args.global_size": 4 * patch, "data.views.init_args.local_size": 2 * patch}
    student = f"{{patch_size: {patch}, depth: 1}}"
    return options | {"model.backbone.name": "vit_tiny_patch16_224", "model.backbone.arguments": student}


def as_words(options: dict[str, Any]) -> list[str]:
    """Options of a training on the command line."""
    return [f"--{name}={'null' if value is None else value}" for name, value in options.items()]


def shortened(line: str) -> list[str] | None:
    """The words of a command, tiny; None for one that needs files of others, or has a test beside its verb."""
    verb, *rest = [STAND_INS.get(word, word) for word in shlex.split(re.split(r" (?:>|\|) ", line)[0])[1:]]
    if any(word in NEEDED or word.startswith("/data/") for word in rest) or verb in ("track", "completion"):
        return None
    if verb == "train":
        recipe = rest[rest.index("--config") + 1]
        if re.search(r"_dino(v\d)?$", recipe):  # published backbones: test_pages parses their options
            return None
        return [verb, *["labelled" if word == "IMAGES" else word for word in rest], *as_words(short_training(recipe))]
    if verb == "pretrain":
        return [verb, *rest, *as_words(short_pretraining(rest[rest.index("--config") + 1]))]
    if verb == "evaluate":
        if (rest[0] == "video" and "scenes" not in rest) or rest[0] in ("instance", "panoptic"):  # of a model of masks
            return None
        scenes = ["--scenes", "3", "--size", "32"] if rest[0] in ("depth", "segmentation") else []
        scenes = ["--scenes", "1", "--size", "32"] if rest[0] == "restoration" else scenes
        words = ["labelled" if word in ("IMAGES", "FOLDER") else word for word in rest]
        few = ["--size", "48", "--patches", "200"] if rest[0] == "probe" and "--data" in rest else FEW.get(rest[0], [])
        return [verb, *words, *scenes, *few]
    small = ["--size", "48"]
    short_of = {"demo": small, "look": small, "explore": small, "discover": ["--size", "64"]}
    short = short_of.get(verb, [])
    if verb == "predict" and "depth_anything_v2_vits.pth" in rest:
        short = ["--resize", "28"]
    if verb == "export" and "--size" in rest:
        short = ["--size", "32", "48"]
    return [verb, *rest, *short]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, labelled images, a published backbone and a pretrained one."""
    root = tmp_path_factory.mktemp("materials")
    for folder in ("IMAGES", "FOLDER", "labelled/images", "labelled/masks", "labelled/depth"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        scene = render(0, number, (48, 64))
        for folder in ("IMAGES", "FOLDER", "labelled/images") if number < 8 else ("labelled/images",):
            Image.fromarray(scene.image).save(root / f"{folder}/{number}.png")
        Image.fromarray((scene.semantic % 2).astype(np.uint8)).save(root / f"labelled/masks/{number}.png")
        Image.fromarray((scene.depth.clip(0, 60) * 1000).astype(np.uint16)).save(root / f"labelled/depth/{number}.png")
    (root / "labelled/classes.yaml").write_text("[sky, ground]")
    (root / "labelled/depth.yaml").write_text("{kind: metric, scale: 1000}")
    Image.fromarray(render(0, 1, (48, 64)).image).save(root / "PHOTO.jpg")
    backbone = dense.load_backbone("dino_vits16")
    for name in ("FILE.pth", "dino_deitsmall16_pretrain.pth"):
        backbone.export_official(root / name)
    dense.load_backbone("scenes_tiny").save_pretrained(root / "runs/pretrained/backbone")
    return root


@pytest.fixture
def place(materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with these materials."""
    shutil.copytree(materials, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python calls of the verbs, shortened like their commands."""

    def tiny(real: Callable[..., Any], options: Callable[[str], dict[str, Any]]) -> Callable[..., Any]:
        def run(recipe: str, *, data: str, output: str, **chosen: Any) -> Any:
            kept = {name: value for name, value in chosen.items() if name not in ("backbone", "weights", "model.steps")}
            data = "labelled" if options is short_training and data == "IMAGES" else data
            return real(recipe, data=data, output=f"{output}-python", **kept | options(recipe))

        return run

    def evaluate(model: str, data: str, **options: Any) -> Any:
        few = {"scenes": 3, "size": 32} if data == "scenes" else {}
        real_model = f"{Path(model).parent}-python/model" if Path(f"{Path(model).parent}-python").is_dir() else model
        return real_evaluate(real_model, "scenes" if data == "scenes" else "labelled", **options | few)

    real_evaluate = dense.evaluate
    monkeypatch.setattr(dense, "train", tiny(dense.train, short_training))
    monkeypatch.setattr(dense, "pretrain", tiny(dense.pretrain, short_pretraining))
    monkeypatch.setattr(dense, "evaluate", evaluate)


def train(recipe: str, output: str) -> None:
    """A tiny run in the place of one of yours."""
    assert call(["train", "--config", recipe, "--output", output, *as_words(short_training(recipe))]).returncode == 0


@pytest.mark.parametrize("name", RAN)
def test_commands_run(name: str, place: Path) -> None:
    if name == "published":
        pytest.importorskip("transformers")
        torch.save(layouts.depth_anything(peers.depth_anything().state_dict()), "depth_anything_v2_vits.pth")
    if name in ("export", "published"):
        train("depth/scenes_linear", "RUN")
    ran, lines = 0, list(dict.fromkeys(commands(page(name))))
    for line in lines:
        words = shortened(line)
        if words is None or (words[:2] == ["convert", "RUN/model"]):  # a linear head: refused by transformers
            continue
        done = call(words)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran == RAN[name]


@pytest.mark.parametrize(
    "name", ["README", "start", "heads", "pretraining", "distil", "scale", "evaluation", "restoration"]
)
def test_python_runs(name: str, place: Path, short_calls: None) -> None:
    """In one namespace, top to bottom."""
    if name == "heads":
        train("segmentation/scenes_linear", "runs/scenes_head")
        train("depth/scenes_linear", "runs/scenes_depth")
        train("instance/scenes_eomt", "runs/objects")
    if name == "evaluation":
        train("depth/scenes_linear", "runs/few_depth")
    scope: dict[str, Any] = {"__name__": "__main__"}
    for code in blocks(page(name), "python"):
        if "dense.evaluate(backbone" in code or '"COCO"' in code:  # tests of the sweeps and of masks call it
            continue
        for long, short in {"epochs=100": "steps=1", "batch_size=64": "batch_size=4", "4096": "32"}.items():
            code = code.replace(long, short) if name == "pretraining" else code
        exec(code, scope)


def test_python_of_the_readme_prints_its_comments(capsys: pytest.CaptureFixture[str]) -> None:
    """The shapes in the comments of the block on features."""
    code = next(block for block in blocks(page("README"), "python") if "load_backbone" in block)
    exec(code, {})
    written = re.findall(r"print.*# .*?(\([\d, ]+\))", code)
    printed = capsys.readouterr().out.splitlines()
    assert len(written) == len(printed) == 3
    assert all(shape in line for shape, line in zip(written, printed, strict=True))


def test_python_of_weights_and_discovery_runs(place: Path) -> None:
    for name in ("weights", "discovery"):
        scope: dict[str, Any] = {}
        for code in blocks(page(name), "python"):
            if "dense.track" not in code:
                exec(code.replace("count=5)", "count=5, steps=2)"), scope)
    assert tuple(scope["labels"].shape) == (4, 300, 400)


def test_python_of_export_runs(place: Path) -> None:
    pytest.importorskip("onnxruntime")
    train("depth/scenes_linear", "RUN")
    assert call(["export", "RUN/model", "--output", "depth.onnx", "--size", "32", "48", "--raw"]).returncode == 0
    for code in blocks(page("export"), "python"):
        exec(code.replace("(518, 686)", "(32, 48)"), {})


def test_python_of_published_runs(place: Path) -> None:
    pytest.importorskip("transformers")
    torch.save(layouts.depth_anything(peers.depth_anything().state_dict()), "depth_anything_v2_vits.pth")
    for code in blocks(page("published"), "python"):
        exec(code.replace("kind=", "resize=28, kind="), {})
