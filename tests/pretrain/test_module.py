"""The module by itself: modes, schedules, and the multi-crop forward."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dense.training.fit import differences
from pretrain.health import TrainingFailed
from pretrain.module import DINO
from pretrain.recipe import BackboneOptions, HeadOptions, OptimOptions, TeacherOptions

TINY = BackboneOptions(
    "vit_tiny_patch16_224",
    {"patch_size": 8, "img_size": 32, "depth": 3, "embed_dim": 16, "num_heads": 2},
    drop_path=0.5,
)


def make(**options: object) -> DINO:
    """A tiny module."""
    return DINO(TINY, HeadOptions(32, 32, 8), **options)  # type: ignore[arg-type]


def crops() -> list[torch.Tensor]:
    """Two global and three local views of 4 images."""
    generator = torch.Generator().manual_seed(0)
    sizes = [32, 32, 16, 16, 16]
    return [torch.randint(0, 256, (4, 3, s, s), dtype=torch.uint8, generator=generator) for s in sizes]


def test_modes() -> None:
    """The student is in training mode with drop path from the start; the teacher never is, and has no gradients."""
    module = make()
    assert all(m.training for m in module.student.modules())
    assert not any(m.training for m in module.teacher.network.modules())
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert len({float(module.student(crops()).logits.sum()) for _ in range(4)}) > 1
    assert len({float(module.teacher(crops()[:2]).logits.sum()) for _ in range(4)}) == 1


def test_crops_run_together_as_they_would_alone() -> None:
    """Logits and features are those of single crops, crop-major."""
    module = make()
    module.eval()
    with torch.no_grad():
        logits, features, *_ = module.student(crops())
        alone = [module.student([crop]) for crop in crops()]
    torch.testing.assert_close(logits, torch.cat([a.logits for a in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, torch.cat([a.features for a in alone]), rtol=1e-4, atol=1e-5)


def test_plan() -> None:
    """Schedules of a run: scaled lr, warm-up in epochs, and the published ends."""
    module = make(epochs=10, optim=OptimOptions(lr=5e-4, warmup_epochs=2), teacher=TeacherOptions(momentum=0.996))
    plan = module.plan(images=1024, total_batch=128)
    assert (plan.steps, plan.steps_per_epoch) == (80, 8)
    assert plan.lr(15) == pytest.approx(2.5e-4)
    assert plan.lr(0) == 0
    assert plan.weight_decay(0) == pytest.approx(0.04)
    assert plan.momentum(80) == 1.0
    with pytest.raises(ValueError, match="fewer than one total batch of 2048"):
        module.plan(images=1024, total_batch=2048)


def test_a_warm_up_longer_than_the_run() -> None:
    """Ten epochs of warm-up in a run of one step."""
    plan = make(steps=1).plan(images=64, total_batch=64)
    assert plan.steps == 1
    assert plan.lr(0) == 0


def test_a_failure_of_another_process_ends_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharded checkpoint is on the first process alone; the others must not wait for it once it has found NaN."""
    decisions: list[bool] = []

    def reduce(decision: bool, all: bool) -> bool:
        decisions.append(decision)
        return True

    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=reduce), global_step=3)
    monkeypatch.setattr(DINO, "trainer", trainer, raising=False)
    with pytest.raises(TrainingFailed, match="another process"):
        make().on_save_checkpoint({"state_dict": {}})
    with pytest.raises(TrainingFailed, match="Step 3: NaN or infinity in w"):
        make().on_save_checkpoint({"state_dict": {"w": torch.tensor(float("nan"))}})
    assert decisions == [False, True]


def test_differences_name_leaves() -> None:
    """Nested settings are compared leaf by leaf."""
    assert differences({"optim": {"lr": 1, "clip": 3}}, {"optim": {"lr": 2, "clip": 3}}) == ["optim.lr: 1 now, 2 then"]


def test_plan_of_dinov2() -> None:
    """Square-root scaling, epochs of a fixed number of steps, and a constant rate after the warm-up."""
    optim = OptimOptions(lr=4e-3, lr_scaling="sqrt", warmup_epochs=2)
    plan = make(epochs=10, steps_per_epoch=5, optim=optim).plan(images=10_000, total_batch=256)
    assert (plan.steps, plan.steps_per_epoch) == (50, 5)
    assert plan.lr(9) == pytest.approx(2e-3)
    constant = OptimOptions(lr=1e-3, lr_scaling="none", lr_schedule="constant", warmup_epochs=2)
    plan = make(epochs=10, steps_per_epoch=5, optim=constant).plan(images=10_000, total_batch=256)
    assert [plan.lr(s) for s in (0, 9, 30, 49)] == pytest.approx([0, 1e-3, 1e-3, 1e-3])


def test_activation_checkpointing_changes_no_gradient() -> None:
    """Blocks that are computed again in the backward pass give the same gradients."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        module = DINO(replace(TINY, drop_path=0.0, grad_checkpointing=again), HeadOptions(32, 32, 8))
        module.student(crops()).logits.square().mean().backward()
        assert module.student.backbone.grad_checkpointing is again
        found.append([p.grad for p in module.student.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("rule", ["mean", "each"])
def test_five_channels(rule: str) -> None:
    """Student and teacher see five channels, with masked patches; three are refused."""
    module = DINO(replace(TINY, channels=5, channels_from=rule), HeadOptions(32, 32, 8))
    module.eval()
    images = [torch.cat([crop, crop[:, :2]], 1) for crop in crops()]
    masks = torch.zeros(8, 16, dtype=torch.bool)
    masks[:, :3] = True
    found = module.student(images, masks, patch_indices=torch.arange(5))
    assert found.logits.shape == (20, 32) and found.patch_logits.shape == (5, 32)
    assert module.teacher(images[:2]).logits.shape == (8, 32)
    assert module.backbone.spec.each_channel == (rule == "each")
    alone = torch.cat([module.student([crop]).features for crop in images])
    torch.testing.assert_close(module.student(images).features, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected 5 channels.*got 3"):
        module.student(crops())


def test_patch_steps_come_after_those_of_the_heads() -> None:
    """Of two stages the second must have steps."""
    with pytest.raises(ValueError, match=r"patch_steps=2: expected 0, or more than head_warmup_steps=3"):
        replace(TINY, head_warmup_steps=3, patch_steps=2)
