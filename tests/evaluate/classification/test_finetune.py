"""Fine-tuning: rates and decay against timm's own groups, and a backbone that learns."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from dense.backbone import Backbone, load_backbone
from dense.evaluate.classification.data import CenterCrop, RandomCrop, open_examples
from dense.evaluate.classification.finetune import Classifier, FineTuneRecipe, classification_accuracy, fine_tune
from dense.tasks.tuning import layer_numbers, parameter_groups
from tests.backbone.conftest import TINY, tiny
from tests.evaluate.images import folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", TINY),
        ("vit_small_patch14_reg4_dinov2", TINY | {"img_size": 28}),
        ("vit_small_patch16_dinov3", TINY),
        ("resnet10t", {}),
    ],
)
def test_groups_are_timms(name: str, arguments: dict[str, object]) -> None:
    """Learning rate and weight decay of every parameter, as timm gives them to the same model with a classifier."""
    model = timm.create_model(name, num_classes=3, **arguments)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = {
        names[parameter]: (0.01 * group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, 0.05, no_weight_decay_list=spared, layer_decay=0.6)
        for parameter in group["params"]
    }
    classifier = Classifier(load_backbone(name, **arguments).unfreeze(), 3)
    names = {p: n.removeprefix("backbone.model.") for n, p in classifier.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(classifier, 0.01, 0.6, 0.05)
        for parameter in group["params"]
    }
    for own in ("backbone.mask_token", "backbone.class_position"):
        if found.pop(own, None) is None:
            assert name == "resnet10t" or own.endswith("class_position")
    for name_, (lr, decay) in found.items():
        theirs = {"head.weight": "fc.weight", "head.bias": "fc.bias"}.get(name_, name_)
        theirs = theirs if theirs in wanted else name_
        assert (lr, decay) == (pytest.approx(wanted[theirs][0]), wanted[theirs][1]), name_
    assert len(found) == len(wanted)


def test_layers_of_a_vit(vit: Backbone) -> None:
    """By the formula: decay^(L + 1 - layer), everything before the first block being layer 0."""
    numbers = layer_numbers(vit)
    assert numbers["model.patch_embed.proj.weight"] == numbers["model.cls_token"] == numbers["model.pos_embed"] == 0
    assert [numbers[f"model.blocks.{i}.mlp.fc1.weight"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert numbers["model.norm.weight"] == 6
    groups = parameter_groups(Classifier(vit.unfreeze(), 3), 1.0, 0.5, 0.05)
    rates = sorted({group["lr"] for group in groups})
    assert rates == [0.5 ** (7 - layer) for layer in range(8)]
    registers = tiny("dinov2_vits14_reg", img_size=28)
    assert layer_numbers(registers)["class_position"] == 0


def test_schedule() -> None:
    """Up in a line to the full rate, down in a cosine to the least; a warm-up longer than training only rises."""
    recipe = FineTuneRecipe(epochs=10, warmup_epochs=2, lr=1e-3, min_lr=1e-5)
    factors = [recipe.factor(step, 5) for step in range(51)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1
    assert factors[30] == pytest.approx((1 + 0.01) / 2)
    assert factors[50] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert FineTuneRecipe(epochs=2, warmup_epochs=5).factor(9, 5) == 1
    for wrong in ({"layer_decay": 0.0}, {"epochs": 0}, {"lr": 0.0}, {"warmup_epochs": -1}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match="expected"):
            FineTuneRecipe(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("readout", ["class", "average", "last4_average"])
def test_the_classifier_reads_what_extraction_reads(vit: Backbone, readout: str) -> None:
    """Same vector for the head as for k-NN and linear evaluation."""
    from dense.evaluate import extract

    classifier = Classifier(vit, 4, readout).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    wanted = classifier.head(extract(vit, images, blocks=4).readout(readout))  # type: ignore[arg-type]
    torch.testing.assert_close(classifier(images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_colours_are_learnt(tmp_path: Path, precision: str) -> None:
    """Whole backbone trains, deep layers more than shallow ones; the same seed gives the same weights, and the global
    random state stays."""
    train, val = open_examples(str(folder(tmp_path / "train", 8)), str(folder(tmp_path / "val", 4, seed=1)))
    recipe = FineTuneRecipe(
        epochs=8, batch_size=8, lr=0.05, layer_decay=0.5, warmup_epochs=1, weight_decay=0.01, precision=precision
    )
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = load_backbone(
            "vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=32, depth=3, num_heads=4, drop_path_rate=0.1
        )
        torch.nn.init.ones_(backbone.mask_token)  # type: ignore[arg-type]
        start = {name: value.clone() for name, value in backbone.state_dict().items()}
        state = torch.get_rng_state()
        results.append(fine_tune(backbone, train, recipe, view=RandomCrop(32, scale=(0.5, 1.0)), seed=3))
        assert torch.equal(torch.get_rng_state(), state)
    classifier = results[0]
    assert not classifier.training
    found = classification_accuracy(classifier, val.batches(CenterCrop(36, 32), 5), (1, 2, 3))
    assert found[1] > 0.9
    assert found[1] <= found[2] <= found[3] == 1
    moved = {n: float((v - start[n]).abs().mean()) for n, v in classifier.backbone.state_dict().items()}
    depths = [moved[f"model.blocks.{i}.mlp.fc1.weight"] for i in range(3)]
    assert 0 < depths[0] < depths[1] < depths[2]
    assert moved["mask_token"] == 0
    for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="no images"):
        classification_accuracy(classifier, [])
