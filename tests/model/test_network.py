"""A saved model opens strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dense.backbone import WeightsError
from dense.model.network import DenseModel, Inference
from tests.predict.models import model


def test_saved_and_opened(tmp_path: Path) -> None:
    network = model("depth", "labels", inference=Inference(resize=40))
    network.facts = {"seed": 3}
    network.save_pretrained(tmp_path)
    again, images = DenseModel.from_pretrained(tmp_path), torch.randn(1, 3, 33, 50)
    assert not again.training
    assert (again.classes, again.inference, again.facts) == (network.classes, network.inference, network.facts)
    for name, values in network(images).items():
        assert torch.equal(again(images)[name], values)


def test_features_from_their_tensors_are_the_features() -> None:
    """Also with sizes as lists, which pinned memory makes of tuples."""
    network, images = model("depth"), torch.randn(1, 3, 33, 50)
    features = network.features(images)
    restored = network.features_from([*features.maps, *features.prefix], [33, 50])  # type: ignore[arg-type]
    assert restored.image_size == (33, 50)
    assert torch.equal(network.decode(restored)["depth"], network.decode(features)["depth"])


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    held = load_file(folder / "model.safetensors") | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({k: v for k, v in held.items() if v is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"head__branches__depth__bias": None}, "branches.depth.bias"),
        ({"head__extra": torch.zeros(1)}, "extra"),
        ({"head__branches__depth__bias": torch.zeros(7)}, "branches.depth.bias"),
        ({"tail__x": torch.zeros(1)}, "neither backbone nor head"),
        ({"backbone__model__norm__bias": None}, "model.norm.bias"),
    ],
)
def test_wrong_tensors_raise(tmp_path: Path, tensors: dict[str, torch.Tensor | None], words: str) -> None:
    model("depth").save_pretrained(tmp_path)
    change(tmp_path, **tensors)
    with pytest.raises(ValueError, match=words):
        DenseModel.from_pretrained(tmp_path)


def test_degraded_files_raise(tmp_path: Path) -> None:
    model("depth").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "head"}))
    with pytest.raises(ValueError, match="'head'"):
        DenseModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="JSON"):
        DenseModel.from_pretrained(tmp_path)
