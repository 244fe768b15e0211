"""Published heads on the command line: predict, convert, export to transformers, and certificates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dense
from dense.backbone import WeightsError
from dense.model.network import DenseModel
from dense.published import load_published
from dense.published.export import export_huggingface
from tests.published import layouts, peers
from tests.runs import call


@pytest.fixture(scope="module")
def anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anything") / "depth_anything_v2.pth"
    torch.save(layouts.depth_anything(peers.depth_anything().state_dict()), path)
    return path


FACTS = ["--family", "depth_anything_v2", "--kind", "relative"]


def test_predict(anything: Path, tmp_path: Path) -> None:
    """A file and what it does not record, with the model first or behind --model."""
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    for place in ([str(anything)], ["--model", str(anything)]):
        done = call(
            ["predict", *place, str(tmp_path / "a.png"), *FACTS, "--resize", "28", "--output", str(tmp_path / "o")]
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "o/a_depth.json").read_text())["kind"] == "inverse_relative"
    done = call(["predict", str(anything), str(tmp_path / "a.png"), "--output", str(tmp_path / "other")])
    assert done.returncode == 1
    assert "family='depth_anything_v1'" in done.stderr
    done = call(["predict", str(anything), *FACTS])
    assert done.returncode == 2
    assert "IMAGES" in done.stderr
    done = call(
        ["predict", str(anything), "a.png", *FACTS[:2], "--set", "kin=relative", "--output", str(tmp_path / "o")]
    )
    assert done.returncode != 0


def test_convert_and_verify(anything: Path, tmp_path: Path) -> None:
    """Our directory, with a certificate of parity that records what was compared."""
    pytest.importorskip("transformers")
    done = call(["convert", str(anything), str(tmp_path / "own"), *FACTS, "--verify"])
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
    found = json.loads((tmp_path / "own/parity.json").read_text())
    assert found["equal"]
    assert found["peer"].startswith("transformers ")
    assert found["file"] == "depth_anything_v2.pth"
    assert len(found["sha256"]) == 64
    assert set(found["differences"]) == {"70x70", "28x28", "28x56"}
    assert max(found["differences"].values()) < 1e-5
    assert isinstance(dense.load(tmp_path / "own").model, DenseModel)
    done = call(["convert", str(tmp_path / "own"), str(tmp_path / "again"), "--verify"])
    assert done.returncode == 1
    assert "for files that others published" in done.stderr


def test_a_certificate_can_fail(anything: Path) -> None:
    """Other weights than those of the file are detected."""
    pytest.importorskip("transformers")
    from dense.published.parity import certify

    model = load_published(anything, family="depth_anything_v2", kind="relative")
    peer = peers.depth_anything()
    peer.head.conv3.bias.data += 0.01
    assert certify(anything, model).equal
    folder = anything.parent / "other"
    peer.save_pretrained(folder)
    model.facts["published"] = "hf_depth_anything"
    certificate = certify(folder, model)
    assert not certificate.equal
    assert "NOT EQUAL" in str(certificate)


@pytest.mark.parametrize("kind", ["dpt", "segmentation", "dinov2"])
def test_certificates_of_other_families(kind: str, tmp_path: Path) -> None:
    """DPT against transformers at square sizes; a head of the DINOv2 hub without its depth limits."""
    from dense.published.parity import certify

    if kind == "dinov2":
        config = peers.dinov2_config(apply_layernorm=False)
        peer = peers.dpt("DPTForDepthEstimation", width=256, add_projection=True, backbone_config=config)
        peer.head.head[4].bias.data += 3  # alive at every size
        vit = layouts.native_vit(peer.state_dict(), "backbone.")
        backbone = dense.load_backbone("dinov2_vits14", vit, embed_dim=64, depth=4, num_heads=1, img_size=70)
        torch.save(layouts.dinov2_dpt(peer.state_dict()), tmp_path / "file.pth")
        model = load_published(tmp_path / "file.pth", backbone=backbone, max_depth=10)
    elif kind == "dpt":
        peer = peers.dpt("DPTForDepthEstimation", layer_norm_eps=1e-6)
        torch.save(layouts.dpt(peer.state_dict()), tmp_path / "file.pth")
        model = load_published(tmp_path / "file.pth", kind="relative")
    else:
        peer = peers.dpt("DPTForSemanticSegmentation", batch_norm=True, num_labels=5, layer_norm_eps=1e-6)
        torch.save(layouts.dpt(peer.state_dict()), tmp_path / "file.pth")
        model = load_published(tmp_path / "file.pth")
    certificate = certify(tmp_path / "file.pth", model)
    assert certificate.equal, str(certificate)
    assert len(certificate.differences) >= 2


def test_certificates_of_backbones(tmp_path: Path) -> None:
    """A directory against transformers, files against timm."""
    library = pytest.importorskip("transformers")
    config = library.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=70, patch_size=14
    )
    peers.made(library.Dinov2Model(config)).save_pretrained(tmp_path / "hf")
    done = call(["convert", str(tmp_path / "hf"), str(tmp_path / "own"), "--verify"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "transformers" in json.loads((tmp_path / "own/parity.json").read_text())["peer"]
    tiny = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    for name in ("dinov2_vits14", "dinov3_vits16"):
        path = tmp_path / f"{name}.pth"
        dense.load_backbone(name, **tiny).export_official(path)
        sets = [word for k, v in tiny.items() for word in ("--set", f"{k}={v}")]
        done = call(["convert", str(path), str(tmp_path / name), "--backbone", name, *sets, "--verify"])
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / name / "parity.json").read_text())
        assert found["peer"].startswith("timm")
        assert max(found["differences"].values()) < 1e-5


def test_export_to_transformers(anything: Path, tmp_path: Path) -> None:
    """transformers opens our directory without missing or unexpected tensors and gives the same outputs."""
    library = pytest.importorskip("transformers")
    done = call(["convert", str(anything), str(tmp_path / "hf"), *FACTS, "--huggingface"])
    assert done.returncode == 0, done.stderr
    assert "DepthAnythingForDepthEstimation" in done.stdout
    opened, info = library.AutoModelForDepthEstimation.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    library.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    images = torch.randn(1, 3, 70, 70)
    model = load_published(anything, family="depth_anything_v2", kind="relative")
    with torch.no_grad():
        peers.close(model(images)[:, 0], opened.eval()(images).predicted_depth)
    own = load_published(anything, family="depth_anything_v2", kind="metric", max_depth=20)
    own.save_pretrained(tmp_path / "own")
    assert call(["convert", str(tmp_path / "own"), str(tmp_path / "metric"), "--huggingface"]).returncode == 0
    opened = library.AutoModelForDepthEstimation.from_pretrained(tmp_path / "metric").eval()
    with torch.no_grad():
        peers.close(own(images)[:, 0], opened(images).predicted_depth)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"readout": "add"}, "readout='ignore' and this model's head has 'add'"),
        ({"project": True}, "project=False"),
        (
            {"outputs": {"depth": {"name": "regression", "activation": "exp", "upsample": "image"}}},
            "activation='relu'",
        ),
        ({"outputs": {"depth": {"name": "bins"}}}, "bins"),
        ({"name": "linear"}, "only a DPT or an EoMT can be written"),
        ({"outputs": {"depth": {"name": "regression"}}}, "fusion_size='double' and this model's head has 'level'"),
        ({"reassemble": [None] * 4}, "transformers' DepthAnything projects every level"),
    ],
)
def test_options_that_transformers_lacks(change: dict[str, object], words: str, anything: Path, tmp_path: Path) -> None:
    """The error names the option."""
    import heads

    model = load_published(anything, family="depth_anything_v2", kind="relative")
    spec = model.head.spec() | change  # type: ignore[operator]
    if spec["name"] == "linear":
        spec = {"name": "linear", "in_channels": [64], "outputs": spec["outputs"]}
    model.head = heads.build(spec)
    with pytest.raises(WeightsError, match=words):
        export_huggingface(model, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("arguments", "norm", "words"), [({"mlp_ratio": 2.5}, True, "160"), ({}, "last", "norm='last'")]
)
def test_backbones_that_transformers_lacks(
    arguments: dict[str, float], norm: bool | str, words: str, tmp_path: Path
) -> None:
    import heads

    backbone = dense.load_backbone("dinov2_vits14", img_size=70, embed_dim=64, depth=4, num_heads=1, **arguments)
    spec = {"name": "dpt", "in_channels": [64] * 4, "width": 8, "fusion_size": "double"}
    head = heads.build(spec | {"outputs": {"depth": {"name": "regression"}}})
    with pytest.raises(WeightsError, match=words):
        export_huggingface(DenseModel(backbone, head, (0, 1, 2, 3), norm, "depth"), tmp_path / "hf")  # type: ignore[arg-type]


def test_zero_outputs_verify_nothing(tmp_path: Path) -> None:
    """Zeros are equal whatever the weights."""
    from dense.published.parity import certify

    peer = peers.depth_anything()
    peer.head.conv3.bias.data.fill_(-1000)
    folder = peers.directory(peer, tmp_path)
    with pytest.raises(WeightsError, match="zero everywhere"):
        certify(folder, load_published(folder))


def test_convert_of_own_directories(anything: Path, tmp_path: Path) -> None:
    """A directory of this project takes no facts, and is not overwritten in another layout."""
    own = tmp_path / "own"
    load_published(anything, family="depth_anything_v2", kind="relative").save_pretrained(own)
    for argv, words in (
        ([str(tmp_path / "o"), "--kind", "metric"], "records its kind"),
        ([str(own), "--huggingface"], "written over itself"),
    ):
        done = call(["convert", str(own), *argv])
        assert done.returncode == 1
        assert words in done.stderr
    assert isinstance(dense.load(own).model, DenseModel)


def test_convert_errors(anything: Path, tmp_path: Path) -> None:
    torch.save({"nonsense.weight": torch.zeros(1)}, tmp_path / "nonsense.pth")
    cases = {
        "resemble none of": ["convert", str(tmp_path / "nonsense.pth"), str(tmp_path / "o")],
        "choose one": ["convert", str(anything), str(tmp_path / "o"), "--official", "--huggingface"],
        "writes backbones alone": ["convert", str(anything), str(tmp_path / "o.pth"), *FACTS, "--official"],
        "add --official": ["convert", str(anything), str(tmp_path / "o.pth"), *FACTS],
    }
    for words, argv in cases.items():
        done = call(argv)
        assert done.returncode in (1, 2), words
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
