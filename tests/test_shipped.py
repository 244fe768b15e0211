"""The backbones of the package: they open, are small, and their features exceed random initialisation."""

from __future__ import annotations

from argparse import Namespace

import pytest

import dense
from dense.backbone.weights.names import SHIPPED, shipped
from dense.cli.parser import weights_in_words
from dense.evaluate.probe import SceneProbe

NAMES = {"photos_tiny": (14, 384, 3), "scenes_tiny": (8, 128, 6)}


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_by_name(name: str) -> None:
    backbone = dense.load_backbone(name, frozen=True)
    assert backbone.spec.class_token
    assert (backbone.spec.patch, backbone.spec.dim, backbone.spec.depth) == NAMES[name]
    assert sum(p.numel() for p in backbone.parameters()) < 6e6
    assert sorted(shipped()) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_a_card(name: str) -> None:
    folder = SHIPPED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    card = (folder / "README.md").read_text()
    for fact in (f"dense pretrain --config pretrain/{name}", "seed 0", "random"):
        assert fact in card


@pytest.fixture(scope="module")
def probe() -> SceneProbe:
    return SceneProbe(train=100, val=60, size=112)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_patches_exceed_random_initialisation(name: str, probe: SceneProbe) -> None:
    """On scenes outside pretraining; the table in its card has larger sets and the range over seeds."""
    backbone = dense.load_backbone(name, frozen=True)
    pretrained, baselines = probe(backbone), probe.baselines(backbone)
    assert pretrained["segmentation_miou"] > baselines["random/segmentation_miou"] + 0.005
    assert pretrained["segmentation_miou"] > baselines["pixels/segmentation_miou"]
    assert pretrained["depth_abs_rel"] < baselines["random/depth_abs_rel"] - 0.02
    assert pretrained["depth_abs_rel"] < baselines["pixels/depth_abs_rel"]


def test_results_do_not_call_it_random() -> None:
    """Saved results name the origin of the weights."""
    assert weights_in_words(Namespace(weights=None, backbone="scenes_tiny", seed=0)) == "scenes_tiny"
    unknown = Namespace(weights=None, backbone="vit_tiny_patch16_224", seed=0)
    assert weights_in_words(unknown) == "random initialisation (seed 0)"
