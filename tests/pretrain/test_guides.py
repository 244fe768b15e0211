"""Guides of metadata: their gradients, their heads, and runs that keep and forget columns."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import dense
from dense.data.metadata import Column
from pretrain.guides import MLPGuide, PrototypeGuide, scaled_gradients
from pretrain.network import NetworkOutput
from pretrain.recipe import GuideOptions, Recipe
from pretrain.terms import GuidesTerm, StepOutputs
from tests.pretrain.runs import command, run, write_config
from tests.runs import assert_same, in_processes, weights

CELL, PLATE = Column("cell", ("a", "b", "c"), (2, 2, 4), 8, 0.5), Column("plate", ("1", "2"), (4, 4), 8, 0.5)
DOSE = Column("dose", (), (), 4, 0.25, 0.0, 8.0, share=0.5)


def outputs(features: torch.Tensor, metadata: torch.Tensor, step: int = 0, teacher: Any = None) -> StepOutputs:
    crops = [torch.zeros(len(metadata), 3, 8, 8)] * 2
    return StepOutputs(
        NetworkOutput(None, features), teacher, None, crops, (1, 1), step, 1, measure=True, metadata=metadata
    )


def term(options: GuideOptions, *columns: Column, steps: int = 11) -> GuidesTerm:
    torch.manual_seed(0)
    made = GuidesTerm(options, columns, 6, 0)
    made.plan(steps)
    return made


def test_the_gradient_is_scaled_reversed_and_equalised() -> None:
    """Against gradients of each guide alone, by hand; dropout is off."""
    options = GuideOptions(["cell"], ["plate", "dose"], ["dose"], dropout=0, weights={"dose": 3.0})
    made = term(options, CELL, PLATE, DOSE)
    metadata = torch.tensor([[0, 1, 0.5], [2, 0, math.nan], [1, math.nan, 0.25], [2, 1, math.nan]])
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)  # 8 global, 2 local crops
    made(outputs(x, metadata, step=5)).backward()
    alone = []
    for place, (head, column) in enumerate(zip(made.heads, (CELL, PLATE, DOSE), strict=True)):
        y = x.detach()[:8].clone().requires_grad_()
        own = torch.cat([metadata[:, place]] * 2)
        rows = ~own.isnan()
        found = head.layers(y[rows])
        loss = (
            F.cross_entropy(found, own[rows].long(), reduction="sum")
            if column.classes
            else (found[:, 0] - own[rows]).square().sum()
        )
        (loss / (8 * column.known / 8)).backward()
        alone.append(y.grad)
    norms = torch.stack([g.norm() for g in alone])
    mean = norms.log().mean().exp()
    strength = 2 / (1 + math.exp(-10 * 5 / 11)) - 1
    expected = sum(f * mean / n * g for f, n, g in zip((1, -0.1, -0.3), norms, alone, strict=True))
    torch.testing.assert_close(x.grad[:8], strength * expected)
    assert not x.grad[8:].any()
    assert made.strength(0) == 0
    assert all(parameter.grad.any() for parameter in made.parameters())  # heads learn at full weight


def test_without_a_warm_up_of_their_own_guides_wait_for_that_of_the_learning_rate() -> None:
    made = GuidesTerm(GuideOptions(["cell"]), (CELL,), 6, warmup_steps=4)
    made.plan(14)
    assert [made.strength(s) for s in (0, 4)] == [0, 0]
    assert made.strength(9) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    own = GuidesTerm(GuideOptions(["cell"], warmup_steps=2), (CELL,), 6, warmup_steps=4)
    own.plan(14)
    assert own.strength(3) > 0
    with pytest.raises(ValueError, match=r"guides.warmup_steps=2: guides would never move .* 2 steps"):
        own.plan(2)


def test_a_batch_without_a_value_gives_no_gradient() -> None:
    made = term(GuideOptions(["cell"], ["plate"]), CELL, PLATE)
    x = torch.randn(4, 6, requires_grad=True)
    value = made(outputs(x, torch.full((2, 2), math.nan), step=5))
    value.backward()
    assert value == 0
    assert not x.grad.any()
    assert made.measurements == {}


def test_measurements_are_accuracies_beside_chance() -> None:
    made = term(GuideOptions(["cell", "dose"], numbers=["dose"]), CELL, DOSE)
    with torch.no_grad():
        for head, value in zip(made.heads, ((0.0, 0.0, 9.0), (0.5,)), strict=True):
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.copy_(torch.tensor(value))
    made(outputs(torch.randn(8, 6), torch.tensor([[2, 0.0], [2, math.nan], [0, 1.0], [math.nan, 0.5]])))
    found = {name: float(value) for name, value in made.measurements.items()}
    assert found == pytest.approx(
        {"guide_cell_accuracy": 2 / 3, "guide_cell_chance": 0.5, "guide_dose_error": 1 / 3, "guide_dose_chance": 0.25}
    )
    assert made.heads.training


def test_classes_can_count_the_same() -> None:
    made = MLPGuide(CELL, 6, GuideOptions(["cell"], balanced=True, dropout=0))
    tokens, targets = torch.randn(8, 6), torch.tensor([0, 0, 1, 1, 2, 2, 2, 2.0])
    losses, _ = made(tokens, targets)
    each = F.cross_entropy(made.layers(tokens), targets.long(), reduction="none")
    torch.testing.assert_close(losses.mean(), torch.stack([each[targets == c].mean() for c in range(3)]).mean())


def test_prototypes_follow_the_teacher() -> None:
    """The first step sets centroids; later ones move them and the spreads of classes with two rows or more."""
    guide = PrototypeGuide(CELL, 4, GuideOptions(["cell"], kind="prototypes", momentum=0.75))
    one, targets = F.normalize(torch.randn(5, 4), dim=1), torch.tensor([0, 0, 1, 1, 1.0])
    known = torch.tensor([True, True, True, True, False])
    guide.accumulate(3 * one, targets, known)
    guide.after_step()
    centroids = torch.stack([one[:2].mean(0), one[2:4].mean(0)])
    torch.testing.assert_close(guide.centroids[:2], centroids)
    assert guide.spreads.tolist() == pytest.approx([0.07] * 3)
    assert guide.seen.tolist() == [True, True, False]
    cosines = F.cosine_similarity(one[:, None], centroids[None], dim=2)
    losses, _ = guide(one, targets)
    torch.testing.assert_close(losses, F.cross_entropy(cosines / 0.07, targets.long(), reduction="none"))
    assert not guide(one, torch.full((5,), 2.0))[0].any()  # a class that was not seen
    guide.accumulate(one, torch.tensor([0, 0, 1, 2, 2.0]), torch.ones(5, dtype=torch.bool))
    guide.after_step()
    torch.testing.assert_close(guide.centroids[1], 0.75 * centroids[1] + 0.25 * one[2])
    rms = (one[:2] - centroids[0]).square().mean().sqrt()
    assert guide.spreads.tolist() == pytest.approx([0.75 * 0.07 + 0.25 * float(rms), 0.07, 0.07])


def test_equal_norms_leave_gradients_as_they_are() -> None:
    gradients = torch.randn(2, 3, 4)
    gradients[1] *= gradients[0].norm() / gradients[1].norm()
    torch.testing.assert_close(scaled_gradients(gradients, torch.ones(2), equalise=True), gradients)
    torch.testing.assert_close(scaled_gradients(2 * gradients, torch.zeros(2), equalise=True), 0 * gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["a"], "forget": ["a"]}, "guides: 'a' is named twice in keep and forget"),
        ({"keep": ["a"], "numbers": ["b"]}, r"guides.numbers: 'b' is not among .* \(a\)"),
        ({"keep": ["a"], "weights": {"a": -1.0}}, "guides.weights={'a': -1.0}"),
        ({"dropout": 1.0}, "guides.dropout=1.0"),
    ],
)
def test_options_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuideOptions(**options)


def test_prototypes_need_the_teacher() -> None:
    with pytest.raises(ValueError, match=r"guides\.kind=prototypes averages"):
        Recipe(guides=GuideOptions(["a"], kind="prototypes"), distill="runs/other")


# ---- whole runs


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images in two folders, and their metadata, in which three cells are empty."""
    folder = tmp_path_factory.mktemp("cells")
    random = np.random.default_rng(0)
    rows = []
    for number in range(16):
        name = f"{'ab'[number % 2]}/{number}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name)
        rows.append([name, "ab"[number % 2], f"plate {number // 6}", "" if number < 3 else f"{number / 2}"])
    with (folder / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "cell", "plate", "dose"], *rows])
    return folder


def options(cells: Path, **more: Any) -> dict[str, Any]:
    guides = {"keep": ["cell", "dose"], "forget": ["plate"], "numbers": ["dose"], "hidden": [16, 8]}
    return {
        "data.root": str(cells), "data.metadata": str(cells / "cells.csv"), "model.steps": 6,
        **{f"model.guides.{name}": value for name, value in guides.items()}, **more,
    }  # fmt: skip


def test_a_run_and_its_continuation(cells: Path, tmp_path: Path) -> None:
    """Two half runs equal a whole one; heads are in the checkpoint, not in the backbone; card and log name columns."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = run(write_config(whole, **options(cells)), whole / "run")
    assert done.returncode == 0, done.stderr
    assert "metadata to keep: dose: numbers from 1.5 to 7.5 of 13 images" in done.stdout + done.stderr
    names = [name for name in weights(whole / "run") if name.startswith("terms.guides.")]
    assert len(names) == 18
    backbone = dense.load_backbone(whole / "run/backbone")
    assert not [name for name in backbone.state_dict() if "guide" in name]
    facts = json.loads((whole / "run/facts.json").read_text())
    assert facts["forgets plate"].startswith("plate: 3 classes of 16 images; accuracy of its guide in training 0.")
    assert "forgets plate" in (whole / "run/backbone/README.md").read_text()
    metrics = (whole / "run/metrics.csv").read_text().splitlines()[0]
    for name in ("guides_loss", "guide_cell_accuracy", "guide_plate_chance", "guide_dose_error"):
        assert f"health/{name}" in metrics
    assert "guides_strength" in metrics
    config = write_config(halves, **options(cells), **{"trainer.max_steps": 3})
    assert run(config, halves / "run").returncode == 0
    done = run(write_config(halves, **options(cells)), halves / "run")
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert_same(halves / "run", whole / "run")
    other = tmp_path / "other.csv"
    other.write_text((cells / "cells.csv").read_text().replace("3.5", "4.5"))
    changed = write_config(halves, **options(cells, **{"data.metadata": str(other), "model.steps": 6}))
    assert "data.metadata" in run(changed, halves / "run").stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one(cells: Path, tmp_path: Path, strategy: str) -> None:
    """Losses count rows by their expected number, and norms are those of all processes."""
    plain = {"model.backbone.drop_path": 0.0, "model.guides.dropout": 0.0, "model.guides.views": "all"}
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(write_config(one, **options(cells, **plain)), one / "run").returncode == 0
    more = plain | {"data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": strategy}
    in_processes(command(write_config(two, **options(cells, **more)), two / "run")[3:], two)
    a, b = weights(one / "run"), weights(two / "run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)


def test_dinov2_from_a_saved_backbone_with_prototypes(cells: Path, tmp_path: Path) -> None:
    """The objective of DINOv2 and prototypes, in bf16, from the weights of a saved backbone, called from Python."""
    saved = tmp_path / "saved"
    dense.load_backbone(
        "vit_tiny_patch16_224", None, patch_size=8, img_size=32, depth=2, embed_dim=16, num_heads=2
    ).save_pretrained(saved)
    more = {
        "model.backbone.name": str(saved), "model.backbone.arguments": {}, "model.ibot.weight": 1.0,
        "model.koleo.weight": 0.1, "model.guides.kind": "prototypes", "trainer.precision": "bf16-mixed",
    }  # fmt: skip
    config = write_config(tmp_path, **options(cells, **more))
    found = dense.pretrain(str(config), data=cells, output=tmp_path / "run", **{"model.teacher.centering": "sinkhorn"})
    assert found.spec.dim == 16
    state = weights(tmp_path / "run")
    assert state["terms.guides.heads.0.seen"].all()
    assert state["terms.guides.heads.1.layers.0.weight"].shape == (16, 16)  # of numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.metadata": None}, "add --data.metadata FILE.csv"),
        ({"model.guides": {}}, "without a column in use; name some of cell, plate, dose in --model.guides.keep"),
        ({"model.guides.keep": ["cells"]}, "column 'cells' does not exist; its columns are cell, plate, dose. Did you"),
        ({"model.guides.warmup_steps": 6}, "guides.warmup_steps=6: guides would never move the backbone"),
    ],
)  # fmt: skip
def test_runs_that_cannot_start(cells: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = options(cells)
    if "model.guides" in changes:
        given = {name: value for name, value in given.items() if not name.startswith("model.guides")}
        changes = {}
    elif "model.guides.keep" in changes:
        changes = changes | {"model.guides.numbers": []}
    done = run(write_config(tmp_path, **(given | changes)), tmp_path / "run")
    assert done.returncode != 0
    assert message in done.stderr
