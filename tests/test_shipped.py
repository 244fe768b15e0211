"""The backbones that come with the package: they open, are small, and know more than the networks they began as."""

from __future__ import annotations

from argparse import Namespace

import pytest

import dense
from dense.backbone.weights.names import SHIPPED, shipped
from dense.cli.parser import weights_in_words
from dense.evaluate.probe import SceneProbe

NAMES = ("scenes_stem", "scenes_tiny")


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_by_name(name: str) -> None:
    backbone = dense.load_backbone(name, frozen=True)
    assert backbone.spec.class_token
    assert (backbone.spec.patch, backbone.spec.dim, backbone.spec.depth) == (8, 128, 6)
    assert sorted(shipped()) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_told_about(name: str) -> None:
    folder = SHIPPED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    card = (folder / "README.md").read_text()
    for fact in (f"dense pretrain --config pretrain/{name}", "seed 0", "random"):
        assert fact in card


@pytest.mark.parametrize("name", NAMES)
def test_its_patches_know_more_than_random_ones(name: str) -> None:
    """On scenes that pretraining never saw; the table in its card has larger sets and the spread over seeds."""
    probe = SceneProbe(train=150, val=100, size=96)
    backbone = dense.load_backbone(name, frozen=True)
    known, fresh = probe(backbone), probe.baselines(backbone)
    assert known["segmentation_miou"] > fresh["random/segmentation_miou"] + 0.005
    assert known["segmentation_miou"] > fresh["pixels/segmentation_miou"]
    assert known["depth_abs_rel"] < fresh["random/depth_abs_rel"] - 0.02
    assert known["depth_abs_rel"] < fresh["pixels/depth_abs_rel"]


def test_results_do_not_call_it_random() -> None:
    """Saved results say where the weights came from."""
    assert weights_in_words(Namespace(weights=None, backbone="scenes_tiny", seed=0)) == "scenes_tiny"
    unknown = Namespace(weights=None, backbone="vit_tiny_patch16_224", seed=0)
    assert weights_in_words(unknown) == "random initialisation (seed 0)"
