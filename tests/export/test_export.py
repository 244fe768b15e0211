"""`dense export`: files that other runtimes open compute what the model does, at the sizes that they promise."""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import heads
from dense.backbone import Backbone, load_backbone
from dense.cli import main
from dense.export import Exported, export
from dense.export.files import compare
from dense.export.network import ExportNetwork
from dense.model.network import DenseModel, Inference
from tests.heads.conftest import randomise
from tests.heads.test_eomt import model_of
from tests.predict.models import model

DEPTH = {"depth": {"name": "regression", "activation": "exp"}}
LABELS = {"labels": {"name": "classes", "count": 3}}
CLASSES = ("wall", "floor", "ceiling")
# name -> backbone, its options, head, outputs, options of the export, sizes at which the file is asked
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = {
    "class token, depth": ("dino_vits16", {}, "linear", DEPTH, {}, [(50, 66)]),
    "registers, DPT, joint, raw": ("dinov2_vits14_reg", {"depth": 4}, "dpt", DEPTH | LABELS, {"raw": True}, [(50, 66)]),
    "rotary, labels, dynamic": (
        "dinov3_vits16", {}, "linear", LABELS, {"dynamic": True}, [(64, 32), (48, 96), (80, 32)],
    ),
    "pyramid, depth": ("test_resnet", {}, "linear", DEPTH, {}, [(50, 66)]),
}  # fmt: skip
SCRATCH = tempfile.TemporaryDirectory()  # goes when the process does
TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def trained(name: str, options: dict[str, Any], head: str, outputs: dict[str, Any], task: Any = "joint") -> DenseModel:
    """A tiny random model; its position table was learned on another grid than any here."""
    torch.manual_seed(0)
    backbone = load_backbone(name, **({} if "resnet" in name else TINY | options))
    layers = tuple(range(backbone.spec.depth))
    if backbone.spec.kind == "pyramid":
        layers = backbone.spec.layers[:2]
    channels = [backbone.spec.width_of(n) for n in layers]
    decoder = {"width": 8, "readout": "project"} if head == "dpt" else {}
    built = heads.build({"name": head, "in_channels": channels, "outputs": outputs, **decoder})
    classes = CLASSES if "labels" in outputs else None
    model = DenseModel(backbone, built, layers, backbone.spec.norm, task, classes).eval()
    randomise(model)
    return model


def onnx_predictions(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """The file in onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda x: dict(zip(names, map(torch.from_numpy, session.run(names, {"images": x.numpy()})), strict=True))


@functools.cache
def written(case: str, suffix: str) -> tuple[DenseModel, Exported]:
    """A case and its file, made once."""
    name, options, head, outputs, how, sizes = CASES[case]
    model = trained(name, options, head, outputs)
    file = Path(SCRATCH.name) / f"{list(CASES).index(case)}{suffix}"
    return model, export(model, file, sizes[0], **how)


FILES = [(case, ".onnx") for case in CASES] + [("class token, depth", ".pt2")]
FIRST = [FILES[0], FILES[-1]]


@pytest.mark.parametrize(
    ("case", "suffix"), [f if f in FIRST else pytest.param(*f, marks=pytest.mark.slow) for f in FILES]
)
def test_files_prediction_as_the_model(case: str, suffix: str) -> None:
    """At every promised size, for one image and for two, and from raw pixels where asked."""
    model, done = written(case, suffix)
    run = onnx_predictions(done.path) if suffix == ".onnx" else torch.export.load(done.path).module()
    assert max(done.difference.values()) < 1e-4
    for batch, size in [(b, s) for s in CASES[case][-1] for b in (1, 2)]:
        pixels = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
        normalised = model.backbone.normalise(pixels)
        with torch.no_grad():
            expected = model(normalised)
            predictions = run(pixels.float() if CASES[case][4].get("raw") else normalised)
        if isinstance(expected, Tensor):
            expected = {next(iter(model.outputs)): expected}
        assert list(predictions) == list(expected) == list(done.difference)
        for output, values in expected.items():
            assert predictions[output].shape == (batch, values.shape[1], *size)
            assert values.std() > 1e-3  # a constant would prove nothing
            torch.testing.assert_close(predictions[output], values, atol=1e-4 * float(values.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "case", [c if (c, ".onnx") in FIRST else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_onnx_is_plain_and_describes_itself(case: str) -> None:
    """No resize but bilinear ones, named axes, all facts, and nothing of the machine that wrote it."""
    model, done = written(case, ".onnx")
    file = onnx.load(done.path)
    onnx.checker.check_model(file)
    assert {n.domain for n in file.graph.node} == {""}
    modes = {a.s for n in file.graph.node if n.op_type == "Resize" for a in n.attribute if a.name == "mode"}
    assert modes <= {b"linear"}
    assert not any(a.name == "antialias" and a.i for n in file.graph.node for a in n.attribute)
    assert [i.name for i in file.graph.input] == ["images"]
    axes = [d.dim_param or d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim]
    dynamic, size = CASES[case][4].get("dynamic"), CASES[case][-1][0]
    assert axes == ["batch", 3, *(("height", "width") if dynamic else size)]
    facts = {p.key: p.value for p in file.metadata_props}
    assert json.loads(facts["size"]) == list(size)
    assert json.loads(facts["mean"]) == list(model.backbone.spec.mean)
    assert facts["task"] == "joint"
    assert facts["input"].startswith("RGB, 0 to 255") == bool(CASES[case][4].get("raw"))
    measured = ("metric", "m") if "depth" in case or "joint" in case else (None, None)
    assert (facts.get("depth_kind"), facts.get("depth_unit")) == measured
    assert json.loads(facts.get("classes", "[]")) == list(model.classes or ())
    assert b"site-packages" not in done.path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamic"), [("rope, patch 16", True), ("registers, patch 14", False)])
def test_mask_queries(name: str, dynamic: bool, tmp_path: Path) -> None:
    """Queries and masked attention are in the file, at any size on rotary positions."""
    model = model_of(name, masking=[1.0, 0.0])
    patch = model.backbone.spec.patch
    written = export(model, tmp_path / "model.onnx", (3 * patch, 4 * patch), dynamic=dynamic)
    assert max(written.difference.values()) < 1e-4
    assert written.metadata["outputs"] == ["mask_logits", "class_logits"]
    assert written.metadata["kind"] == "instance"
    assert written.metadata["classes"] == ["0", "1", "2"]


def test_models_of_squares(tmp_path: Path) -> None:
    """Padding is left to the user of the file, which is of one square; the metadata name it."""
    model = model_of("rope, patch 16")
    model.inference = Inference(longer=48, square=True)
    written = export(model, tmp_path / "model.pt2")
    assert written.metadata["size"] == [48, 48]
    assert written.metadata["square"] == "images are padded below and at the right to a square of black"
    with pytest.raises(ValueError, match=r"size=\(32, 48\): .* give a square, such as --size 48 48"):
        export(model, tmp_path / "model.pt2", (32, 48))


def test_positions_are_baked() -> None:
    """The table of the file has the grid of the file, and the model keeps its own."""
    model = trained("dinov2_vits14_reg", {}, "linear", DEPTH)
    before = model.backbone.model.pos_embed.clone()
    baked = ExportNetwork(model).at((50, 66))
    assert baked.backbone.model.pos_embed.shape[1] == 4 * 5
    torch.testing.assert_close(model.backbone.model.pos_embed, before)
    program = torch.export.export(baked.requires_grad_(False), (torch.zeros(1, 3, 50, 66),))
    assert not [n for n in program.graph.nodes if "bicubic" in str(n.target)]


def test_a_run_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A saved directory becomes a .pt2 file with its metadata; the folder around it is recognised."""
    trained("dino_vits16", {}, "linear", DEPTH, "depth").save_pretrained(tmp_path / "run" / "model")
    file = tmp_path / "made" / "a.pt2"
    command = ["export", str(tmp_path / "run" / "model"), "--output", str(file), "--size", "32", "48"]
    assert main(command) == 0
    message = capsys.readouterr().out
    assert "images -> depth" in message
    assert "equal to the model" in message
    extra = {"metadata.json": ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra["metadata.json"])["task"] == "depth"
    assert main([*command, "--layers", "0"]) == 1
    assert "saved with a trained model" in capsys.readouterr().err
    command[1] = str(tmp_path / "run")  # stands for its model
    assert main(command) == 0


def test_a_bare_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of the chosen layers, with the names that `dense features` writes."""
    file = tmp_path / "a.pt2"
    sets = [word for k, v in (TINY | {"depth": 2}).items() for word in ("--set", f"{k}={v}")]
    assert main(["export", "dinov3_vits16", "--output", str(file), "--size", "32", "48", "--layers", "0,1", *sets]) == 0
    assert "randomly initialised" in capsys.readouterr().out
    backbone("dinov3_vits16").save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), "--size", "32", "48", "--layers", "last", "--output"]
    assert main([*command, str(tmp_path / "b.pt2")]) == 0
    assert "random" not in capsys.readouterr().out
    assert main([*command, str(file / "b.pt2")]) == 1
    assert "choose another --output" in capsys.readouterr().err
    predictions = torch.export.load(file).module()(torch.randn(4, 3, 32, 48))
    shapes = {name: tuple(values.shape) for name, values in predictions.items()}
    assert shapes == {n: s for i in (0, 1) for n, s in ((f"map_{i}", (4, 16, 2, 3)), (f"prefix_{i}", (4, 5, 16)))}


@functools.cache
def backbone(name: str, **options: Any) -> Backbone:
    return load_backbone(name, **TINY, **options)


@pytest.mark.parametrize(
    ("name", "settings", "size", "options", "message"),
    [
        ("dinov2_vits14", {}, (56, 56), {"dynamic": True}, "one file per size, or use a backbone with rotary"),
        ("dinov3_vits16", {}, (50, 66), {"dynamic": True}, r"multiple of 16, at least 32; use \(48, 64\)"),
        ("dinov3_vits16", {}, (16, 64), {"dynamic": True}, r"use \(32, 64\)"),
        ("dinov2_vits14", {"padding": "resize"}, (50, 66), {}, r"antialiased bicubic.*\(56, 70\)"),
        ("dinov2_vits14", {}, (10, 66), {}, "smaller than one patch"),
        ("dinov2_vits14", {}, (0, 66), {}, "expected a height and a width"),
        ("dinov2_vits14", {}, (56, 56), {"opset": 20}, "opset=20 is of ONNX"),
        ("dinov2_vits14", {}, (56, 56), {"layers": (7,)}, "layer 7 does not exist"),
    ],
)
def test_errors_say_what_to_do(
    name: str, settings: dict[str, Any], size: tuple[int, int], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export(backbone(name, **settings), tmp_path / "a.pt2", size, **options)
    assert not (tmp_path / "a.pt2").exists()


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        (Inference(), "the model has no working size; give height and width"),
        (Inference(longer=64), "working size only the longer side is known, 64; give height and width"),
        (Inference(resize=48), "working size only the shorter side is known, 48; give height and width"),
    ],
)
def test_a_model_without_a_size(inference: Inference, words: str, tmp_path: Path) -> None:
    network = model("labels")
    network.inference = inference
    with pytest.raises(ValueError, match=words):
        export(network, tmp_path / "a.pt2")


def test_wrong_paths_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export(backbone("dinov3_vits16"), tmp_path / "a.pth", (32, 32))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        export(tmp_path / "nothing", tmp_path / "a.pt2", (32, 32))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(RuntimeError, match=r"needs onnxruntime: pip install 'dino-dense\[export\]'"):
        export(backbone("dinov3_vits16"), tmp_path / "a.onnx", (32, 32))


def test_a_wrong_file_is_named_with_its_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the number, and the file stays for whoever wants to see why."""
    network = ExportNetwork(backbone("dinov3_vits16"), layers="last").eval()

    def off(images: Tensor) -> dict[str, Tensor]:
        return {name: values * 1.01 for name, values in network(images).items()}

    with pytest.raises(RuntimeError, match=r"map_0 differs from the model's by 1\.0e-02"):
        compare(network, off, [(1, (32, 32))], Path("a.onnx"))
    with pytest.raises(RuntimeError, match=r"differs .* by nan"):
        compare(network, lambda x: {n: v * np.nan for n, v in network(x).items()}, [(1, (32, 32))], Path("a.onnx"))
    with pytest.raises(RuntimeError, match="2 images of 32x32 it does not run: only one"):
        compare(network, _one_image, [(2, (32, 32))], Path("a.onnx"))
    monkeypatch.setattr("dense.export.files.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="was written, but"):
        export(nn.Module.eval(backbone("dinov3_vits16")), tmp_path / "a.pt2", (32, 32))
    assert (tmp_path / "a.pt2").exists()


def _one_image(images: Tensor) -> dict[str, Tensor]:
    raise ValueError("only one")
