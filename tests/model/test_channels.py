"""Models of images of five channels: every head, saved, predicted, exported, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from dense.backbone import WeightsError, load_backbone
from dense.export import export
from dense.memory import build_memory
from dense.model.guided import guided_filter
from dense.model.network import DenseModel, Inference
from dense.predict import Predictor
from dense.published.export import export_huggingface
from dense.published.restormer import load_body
from heads.restoration import Restormer
from tests.heads.conftest import randomise
from tests.memory.test_memory import Pairs, painted
from tests.predict.models import BACKBONE

FIVE = ("dapi", "actin", "er", "dna", "golgi")
BODY = {"dim": 8, "blocks": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "refinement": 1, "expansion": 2.0}
LABELS = {"labels": {"name": "classes", "count": 3}}
HEADS: dict[str, tuple[str, dict[str, Any], Any]] = {  # head -> task, spec, layers and norm
    "linear": ("segmentation", {"name": "linear", "in_channels": [16], "outputs": LABELS}, ((1,), True)),
    "dpt": (
        "depth",
        {"name": "dpt", "in_channels": [16] * 4, "width": 8, "reassemble": [8] * 4,
         "outputs": {"depth": {"name": "regression"}}},
        ((0, 1, 2, 3), True),
    ),
    "pyramid": (
        "segmentation",
        {"name": "pyramid", "in_channels": [16], "decoder": "fpn", "width": 8, "outputs": LABELS},
        ((3,), True),
    ),
    "stem": (
        "segmentation",
        {"name": "pyramid", "in_channels": [16], "decoder": "unet", "width": 8, "stem_width": 4, "stride2": "stem",
         "image_channels": 5, "decoder_options": {"decoder_channels": [8, 8, 8, 8, 8]}, "outputs": LABELS},
        ((3,), True),
    ),
    "restoration": (
        "restoration",
        {"name": "restoration", "in_channels": [16, 16], "body": BODY, "width": 8, "tokens": 16,
         "outputs": {"restored": {"name": "image", "count": 5}}},
        ((0, 1), True),
    ),
    "eomt": (
        "instance",
        {"name": "eomt", "in_channels": [16], "queries": 4, "blocks": 1, "upscales": 1,
         "outputs": {"masks": {"name": "masks", "count": 3}}},
        ((2,), False),
    ),
}  # fmt: skip


def model(name: str, rule: Any = "mean", **inference: Any) -> DenseModel:
    """A tiny random model of five channels."""
    torch.manual_seed(0)
    task, spec, (layers, norm) = HEADS[name]
    options = BACKBONE | {"depth": 4}
    backbone = load_backbone("vit_tiny_patch16_224", channels=FIVE, channels_from=rule, **options).freeze()
    made = DenseModel(backbone, heads.build(spec), layers, norm, task, None, Inference(**inference)).eval()
    randomise(made.head)
    return made


@pytest.mark.parametrize("rule", ["mean", "each"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head(name: str, rule: str, tmp_path: Path) -> None:
    """It computes maps of the image's size, is saved and opened, and refuses RGB with both numbers."""
    made = model(name, rule)
    made.save_pretrained(tmp_path)
    again, images = DenseModel.from_pretrained(tmp_path), torch.randn(2, 5, 64, 48)
    with torch.no_grad():
        maps, others = made.maps(images), again.maps(images)
    assert all(torch.equal(maps[n], others[n]) for n in maps)
    if name == "restoration":
        assert maps["restored"].shape == images.shape
    elif name != "eomt":
        assert maps[next(iter(maps))].shape[-2:] == (64, 48)
    with pytest.raises(ValueError, match=r"expected 5 channels \(dapi.*got 3"):
        made(torch.randn(1, 3, 64, 48))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule", "suffix"), [("stem", "mean", ".onnx"), ("eomt", "each", ".onnx"), ("dpt", "each", ".pt2")]
)
def test_exported_files_equal_the_model(name: str, rule: str, suffix: str, tmp_path: Path) -> None:
    """ONNX and torch.export, which `export` compares with the model on batches of one and three."""
    done = export(model(name, rule), tmp_path / f"{name}{suffix}", (64, 48), raw=True)
    assert max(done.difference.values()) < 1e-4
    assert done.metadata["channels"] == list(FIVE) and "5 channels" in done.metadata["input"]


def test_predictor() -> None:
    """Arrays of the model's channels, also in windows and with edges moved to the image's; others are refused."""
    made, image = model("linear", refine="guided"), np.random.default_rng(0).integers(0, 256, (40, 52, 5), np.uint8)
    assert Predictor.of(made)(image).labels.shape == (40, 52)  # type: ignore[union-attr]
    assert Predictor.of(made, window=32)(image).labels.shape == (40, 52)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"expected 5 channels \(dapi, actin.*got 3 in \(40, 52, 3\)"):
        Predictor.of(made)(image[..., :3])
    with pytest.raises(ValueError, match=r"uint8 array \(H, W, 5\) of dapi.*got uint8 \(40, 52\)"):
        Predictor.of(made)(image[..., 0])


def test_restored_channels_are_saved(tmp_path: Path) -> None:
    """Beside a picture of some channels, an array holds all channels."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 5), np.uint8)
    restored: Any = Predictor.of(model("restoration"))(image)
    assert restored.values.shape == image.shape
    picture, array = restored.save(tmp_path / "cell", image)
    assert picture.name == "cell_restored.png" and np.array_equal(np.load(array), restored.values)


def test_one_channel() -> None:
    """One channel goes through everything that resizes images, too."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", channels=("grey",), **BACKBONE).freeze()
    head = heads.build(HEADS["linear"][1])
    made = DenseModel(backbone, head, (1,), True, "segmentation", None, Inference(resize=32, refine="guided")).eval()
    prediction: Any = Predictor.of(made)(np.zeros((40, 52, 1), np.uint8))
    assert prediction.labels.shape == (40, 52)


def test_memory_of_five_channels() -> None:
    """A memory without training reads and remembers five channels."""
    items = [painted(i, (10, 40, 20, 50)) for i in range(2)]
    items = [(np.concatenate([image, image[..., :2]], -1), mask) for image, mask in items]
    backbone = load_backbone("vit_tiny_patch16_224", channels=FIVE, **BACKBONE).freeze()
    made = build_memory(backbone, Pairs(items), patches=60, augment=1)  # type: ignore[arg-type]
    prediction: Any = Predictor.of(made)(items[0][0])
    assert prediction.labels.shape == items[0][1].shape


def test_guided_filter_of_any_number_of_channels() -> None:
    """Equal channels filter as one does, with the penalty shared among them; three are computed as ever."""
    torch.manual_seed(0)
    grey, values = torch.rand(1, 1, 20, 24, dtype=torch.float64), torch.rand(1, 2, 20, 24, dtype=torch.float64)
    one = guided_filter(grey, values, 3, eps=1e-3)
    for count in (3, 5):
        several = guided_filter(grey.expand(-1, count, -1, -1), values, 3, eps=1e-3 * count)
        assert torch.allclose(several, one, atol=1e-8)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    """transformers, and a published body of three channels."""
    with pytest.raises(WeightsError, match=r"transformers read red, green and blue.*reads dapi"):
        export_huggingface(model("dpt"), tmp_path)
    torch.save(Restormer(**{**BODY}).state_dict(), tmp_path / "body.pth")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="restores images of 3 channels and the body of 5"):
        load_body(model("restoration").head.body, tmp_path / "body.pth")
