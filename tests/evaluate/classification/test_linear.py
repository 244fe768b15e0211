"""Linear heads: each one of a grid is what PyTorch's own layers and optimiser would have made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.evaluate import Pooled
from dense.evaluate.classification.data import CenterCrop, RandomCrop, open_examples
from dense.evaluate.classification.features import Summary
from dense.evaluate.classification.linear import (
    GRID,
    HeadGrid,
    LinearRecipe,
    compare,
    dino_recipe,
    dinov2_recipe,
    fit_heads,
    linear_evaluation,
    repeat,
)
from tests.evaluate.images import folder


def data(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and labels that a linear head can partly tell."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=rng)
    return torch.randn(n, 12, generator=rng) + 0.8 * F.one_hot(labels, 12), labels


@pytest.mark.parametrize("anneal", ["epoch", "step"])
def test_every_head_is_pytorchs(anneal: str) -> None:
    """Weights after two epochs equal those of nn.Linear with torch's SGD and cosine, for each learning rate."""
    features, labels = data()
    pooled = Pooled({Summary("average", 0, True): features}, labels)
    rates = (0.03, 0.4, 2.0)
    recipe = LinearRecipe("x", ("average",), rates, batch_size=20, epochs=3, anneal=anneal)  # type: ignore[arg-type]
    steps, per_epoch = recipe.length(60)
    assert (steps, per_epoch) == (9, 3)
    with pytest.raises(ValueError, match="expected one of them, 1 or more"):
        LinearRecipe("x", ("average",), rates, steps=0)
    batches = [pooled[part] for _ in range(3) for part in torch.arange(60).split(20)]
    grid = fit_heads(batches, recipe, 5, steps, per_epoch, seed=4)["average"]
    fresh = HeadGrid(12, 5, rates, seed=4)
    assert float(fresh.weight.std()) == pytest.approx(0.01, rel=0.2)
    for number, rate in enumerate(rates):
        head = nn.Linear(12, 5)
        with torch.no_grad():
            head.weight.copy_(fresh.weight[number])
            head.bias.zero_()
        sgd = torch.optim.SGD(head.parameters(), rate * 20 / 256, momentum=0.9, weight_decay=0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3 if anneal == "epoch" else 9, eta_min=0)
        for step, batch in enumerate(batches):
            sgd.zero_grad()
            F.cross_entropy(head(batch.readout("average")), batch.labels).backward()
            sgd.step()
            if anneal == "step" or step % 3 == 2:
                cosine.step()
        torch.testing.assert_close(grid.weight[number], head.weight.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(grid.bias[number, :, 0], head.bias.detach(), rtol=1e-3, atol=1e-5)
        right = (head(features).argmax(1) == labels).double().mean()
        assert grid.accuracy(features, labels)[number] == pytest.approx(float(right))
    assert grid.accuracy(features, labels, 9) == [1.0] * 3


def test_published_recipes(vit: Backbone, resnet: Backbone) -> None:
    """52 heads and 12,500 steps; 100 epochs, last four class tokens up to ViT-S."""
    v2 = dinov2_recipe(vit.spec)
    assert len(v2.readouts) * len(v2.learning_rates) == 52
    assert v2.length(1_281_167) == (12_500, 10_009)
    assert len(GRID) == 13
    assert (GRID[0], GRID[-1]) == (1e-5, 0.1)
    v1 = dino_recipe(vit.spec)
    assert (v1.readouts, v1.learning_rates, v1.epochs, v1.batch_size) == (("last4",), (0.001,), 100, 128)
    assert dino_recipe(replace(vit.spec, dim=768)).readouts == ("class_average",)
    assert dino_recipe(resnet.spec).readouts == dinov2_recipe(resnet.spec).readouts == ("average",)
    assert v1.length(50) == (100, 1)
    with pytest.raises(ValueError, match="one of them"):
        replace(v1, steps=3)


def test_the_best_head_leads() -> None:
    """Among readouts and rates, the one that is best on validation images, the smaller rate on a tie."""
    features, labels = data(400)
    noise = torch.randn(400, 1, 12, generator=torch.Generator().manual_seed(9))
    pooled = Pooled({Summary("class", 0, True): noise[:, 0], Summary("average", 0, True): features}, labels)
    recipe = LinearRecipe("x", ("class", "average"), (1e-6, 1.0, 1.0), batch_size=40, steps=120)
    train, val = pooled[:300], pooled[300:]
    result = compare(fit_heads(repeat(train, 40), recipe, 5, 120, 7), val, recipe)
    assert result.readout == "average"
    assert result.learning_rate == 1.0
    assert len(result.heads) == 4  # equal rates share a name
    assert result.top1 == max(result.heads.values()) > result.heads["class lr=1"] + 0.1
    assert result.top1 <= result.top5 == 1.0
    equal = HeadGrid(12, 5, (1.0, 2.0))
    equal.weight[1] = equal.weight[0]
    tied = compare({"average": equal}, val, LinearRecipe("x", ("average",), (1.0, 2.0), steps=1))
    assert tied.learning_rate == 1.0


def test_kept_features_are_all_seen_each_pass() -> None:
    """Whole batches without repetition within a pass."""
    pooled = Pooled({Summary("average", 0, True): torch.arange(10.0).view(10, 1)}, torch.arange(10))
    batches = repeat(pooled, 5)
    passes = [
        torch.cat([next(batches).readout("average"), next(batches).readout("average")]).flatten().tolist()
        for _ in range(3)
    ]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert passes[0] != passes[1]
    assert len(next(repeat(pooled, 4))) == 4
    assert len(next(repeat(pooled, 99))) == 10


@pytest.mark.parametrize("augment", [True, False])
def test_statistics_stay(tmp_path: Path, resnet: Backbone, augment: bool) -> None:
    """Batch norms in training mode neither mix images nor learn from them."""
    train, val = open_examples(str(folder(tmp_path / "train", 4)), str(folder(tmp_path / "val", 1)))
    recipe = replace(dinov2_recipe(resnet.spec), steps=2, batch_size=4, augment=augment)
    before = {name: value.clone() for name, value in resnet.train().state_dict().items()}
    linear_evaluation(resnet, train, val, recipe, train_view=RandomCrop(32), val_view=CenterCrop(32, 32))
    assert resnet.training
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


@pytest.mark.parametrize("augment", [True, False])
def test_colours_are_learnt(tmp_path: Path, vit: Backbone, augment: bool) -> None:
    """End to end on images: three colours by a frozen random backbone, which stays as it was."""
    train, val = open_examples(str(folder(tmp_path / "train", 10)), str(folder(tmp_path / "val", 4, seed=1)))
    (tmp_path / "train" / "red" / "3.png").write_bytes(b"damaged")
    vit.train()
    before = [p.clone() for p in vit.parameters()]
    recipe = replace(dinov2_recipe(vit.spec), steps=30, batch_size=16, augment=augment)
    result = linear_evaluation(vit, train, val, recipe, train_view=RandomCrop(32), val_view=CenterCrop(36, 32), seed=1)
    assert result.top1 > 0.9
    assert len(result.heads) == 52
    assert min(result.heads.values()) < 0.8  # rates matter
    assert len(train.skipped) == 1
    assert all(module.training for module in vit.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, vit.parameters(), strict=True))
