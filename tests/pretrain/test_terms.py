"""The terms of the objective."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.data import ViewBatch
from pretrain.losses import DINOLoss, GramLoss
from pretrain.module import DINO
from pretrain.recipe import BackboneOptions, GramOptions, HeadOptions, IBOTOptions, KoLeoOptions, TeacherOptions
from pretrain.terms import GramTerm

ARGUMENTS = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}
TINY = BackboneOptions("vit_tiny_patch16_224", ARGUMENTS, drop_path=0.0)
HEAD = HeadOptions(24, 16, 8)


def crops(seed: int = 0) -> list[torch.Tensor]:
    """Two global and two local views of 3 images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 3, s, s), dtype=torch.uint8, generator=generator) for s in (32, 32, 16, 16)]


class Plan:
    """The attributes of trainer and plan that a forward pass uses."""

    steps_per_epoch, world_size, global_rank = 10, 1, 0


def outputs_of(module: DINO, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the outputs of a module for a micro-batch, without a trainer."""
    monkeypatch.setattr(DINO, "_plan", Plan())
    monkeypatch.setattr(DINO, "trainer", Plan(), raising=False)
    module._total_batch = 3
    return module.run_networks(ViewBatch(crops(), torch.arange(3), torch.zeros(0), []), 0, 0)


def test_the_objective_is_the_sum_of_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the terms, the masks and their weights; each term has targets with a state of its own."""
    module = DINO(
        TINY, HEAD, TeacherOptions(centering="sinkhorn"), koleo=KoLeoOptions(0.1), steps=10,
        ibot=IBOTOptions(1.0, HeadOptions(40, 16, 8), centering="center", temperature=0.07),
    )  # fmt: skip
    assert list(module.terms) == ["dino", "ibot", "koleo"]
    outputs = outputs_of(module, monkeypatch)
    terms: dict[str, Any] = dict(module.terms.items())
    targets = terms["dino"].targets.centering(outputs.teacher.logits, 0.04)
    torch.testing.assert_close(terms["dino"](outputs), DINOLoss()(outputs.student.logits, targets))
    assert outputs.masked.masks.any(1).sum() == 3  # half of 6 crops
    torch.testing.assert_close(outputs.masked.weights.sum(), torch.tensor(3.0))
    assert terms["ibot"].targets.temperature(5, 10) == 0.07
    assert float(terms["ibot"](outputs).detach()) > 0
    terms["ibot"].after_step()
    assert float(terms["ibot"].targets.center.abs().sum()) > 0
    one, two = outputs.student.features[:6].chunk(2)
    loss = terms["koleo"].loss
    torch.testing.assert_close(terms["koleo"](outputs), loss(one) + loss(two))


def test_temperatures_move_by_epoch_or_by_step() -> None:
    module = DINO(TINY, HEAD, TeacherOptions(warmup_temperature=0.04, temperature=0.07, warmup_temperature_epochs=3),
                  ibot=IBOTOptions(1.0, temperature_moves="step"))  # fmt: skip
    by_epoch, by_step = (module.terms[n].targets for n in ("dino", "ibot"))
    assert [by_epoch.temperature(s, 4) for s in (0, 3, 4, 8, 99)] == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])  # type: ignore[operator, union-attr]
    assert [by_step.temperature(s, 4) for s in (0, 11, 99)] == pytest.approx([0.04, 0.07, 0.07])  # type: ignore[operator, union-attr]
    assert by_step.temperature(1, 4) == pytest.approx(0.04 + 0.03 / 11)  # type: ignore[operator, union-attr]


def test_the_gram_teacher_may_have_larger_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features are reduced to the student's grid; those of the same crops are compared directly."""
    module = DINO(TINY, HEAD, gram=GramOptions(1.0, start=1), steps=10)
    outputs = outputs_of(module, monkeypatch)
    term = module.terms["gram"]
    assert isinstance(term, GramTerm)
    assert float(term(outputs)) == 0  # before `start`
    assert term.weight(0) == 0
    outputs = outputs._replace(step=1, measure=True)
    term.before_step(1, module.backbone)
    teacher = module.backbone(module.student._images(crops()[:2]), layers="last", norm=True).maps[-1].flatten(2).mT
    torch.testing.assert_close(term(outputs), GramLoss()(outputs.student.patches, teacher))
    assert term.measurements["gram_drift"] == term(outputs).detach().sqrt()
    large = [torch.zeros(3, 3, 64, 64, dtype=torch.uint8)] * 2
    assert term._targets(outputs._replace(gram_crops=large)).shape == (6, 16, 16)


@pytest.mark.parametrize("tokens", ["masked", "unmasked"])
def test_the_gram_anchor_may_count_some_patches(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = DINO(TINY, HEAD, ibot=IBOTOptions(1.0), gram=GramOptions(1.0, start=1, tokens=tokens), steps=10)
    outputs = outputs_of(module, monkeypatch)._replace(step=1)
    term: Any = module.terms["gram"]
    mask = outputs.masked.masks if tokens == "masked" else ~outputs.masked.masks
    torch.testing.assert_close(term(outputs), GramLoss()(outputs.student.patches, term._targets(outputs), mask))
    everything = GramLoss()(outputs.student.patches, term._targets(outputs))
    assert term(outputs).item() != everything.item()
