"""DINO as a LightningModule: what happens in a step, and what moves after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.training.metrics_file import MetricsFile
from pretrain.centering import Center, Centering, SinkhornKnopp
from pretrain.head import ProjectionHead
from pretrain.health import Diagnosis, HealthMonitor, TargetStatistics, measure
from pretrain.losses import DINOLoss
from pretrain.network import MultiCropNetwork
from pretrain.optim import build_optimizer, clip_gradients_, drop_gradients_, parameter_groups, set_hyperparameters
from pretrain.pictures import Batch
from pretrain.recipe import (
    BackboneOptions,
    HeadOptions,
    HealthOptions,
    OptimOptions,
    Recipe,
    TeacherOptions,
    differences,
)
from pretrain.schedules import Cosine, Linear, linear_lr, teacher_temperature
from pretrain.teacher import Teacher


class Schedules(NamedTuple):
    """Functions of the optimiser step (the temperature: of the epoch), and the length of the run."""

    lr: Cosine
    weight_decay: Cosine
    momentum: Cosine
    temperature: Linear
    steps: int
    steps_per_epoch: int


class DINO(pl.LightningModule):
    """Self-distillation with no labels.

    Schedules, the teacher and the centre move once per optimiser step, whatever the number of micro-batches. Each
    micro-batch seeds its own random numbers (drop path) from the run's seed, so a resumed run repeats an uninterrupted
    one bit for bit.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021.
    """

    def __init__(
        self,
        backbone: BackboneOptions = BackboneOptions(),
        head: HeadOptions = HeadOptions(),
        teacher: TeacherOptions = TeacherOptions(),
        optim: OptimOptions = OptimOptions(),
        health: HealthOptions = HealthOptions(),
        epochs: float = 100,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        """Build student and teacher.

        Args:
            backbone: which network learns.
            head: the projection head.
            teacher: how the teacher follows and makes targets.
            optim: optimiser and schedules.
            health: when health is measured and what a failure does.
            epochs: length of the run in passes over the pictures.
            steps: length of the run in optimiser steps, instead of epochs.
            seed: of the weights and of drop path.
        """
        super().__init__()
        self.recipe = Recipe(backbone, head, teacher, optim, health, epochs, steps, seed)
        torch.manual_seed(self.recipe.seed)
        network = student_backbone(self.recipe)
        self.student = MultiCropNetwork(network, ProjectionHead(network.spec.dim, **asdict(head)))
        self.teacher = Teacher(self.student, self.recipe.teacher.mode)
        self.center: Centering = (
            SinkhornKnopp()
            if self.recipe.teacher.centering == "sinkhorn"
            else Center(head.out_dim, self.recipe.teacher.center_momentum)
        )
        self.loss = DINOLoss(self.recipe.teacher.student_temperature)
        self.statistics = TargetStatistics(head.out_dim)
        self.monitor = HealthMonitor(head.out_dim, health.warmup_steps, health.patience)
        self.diagnoses: list[Diagnosis] = []
        self.schedules: Schedules | None = None
        self.micro_batch = 0

    @property
    def backbone(self) -> Backbone:
        """The product: the teacher's backbone."""
        return self.teacher.network.backbone  # type: ignore[return-value]

    # ---- length and schedules

    def plan(self, pictures: int, total_batch: int) -> Schedules:
        """Schedules for `pictures` a pass in batches of `total_batch` (over all processes and micro-batches)."""
        if pictures < total_batch:
            raise ValueError(
                f"{pictures} pictures are fewer than one total batch of {total_batch}; lower data.batch_size"
            )
        recipe, optim, teacher = self.recipe, self.recipe.optim, self.recipe.teacher
        per_epoch = pictures // total_batch
        steps = recipe.steps or round(recipe.epochs * per_epoch)
        if steps < 1:
            raise ValueError(f"epochs={recipe.epochs} of {per_epoch} steps is no training; raise epochs or steps")
        warmup = min(round(optim.warmup_epochs * per_epoch), steps)
        return Schedules(
            lr=Cosine(linear_lr(optim.lr, total_batch), optim.min_lr, steps, warmup),
            weight_decay=Cosine(optim.weight_decay, optim.final_weight_decay, steps),
            momentum=Cosine(teacher.momentum, teacher.final_momentum, steps),
            temperature=teacher_temperature(
                teacher.warmup_temperature, teacher.temperature, teacher.warmup_temperature_epochs
            ),
            steps=steps,
            steps_per_epoch=per_epoch,
        )

    def setup(self, stage: str) -> None:
        """Plan the run when the data and the number of processes are known."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        total = data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.schedules = self.plan(len(data.dataset), total)
        loop = self.trainer.fit_loop.epoch_loop
        if loop.max_steps == -1 or loop.max_steps > self.schedules.steps:
            loop.max_steps = self.schedules.steps

    def on_train_start(self) -> None:
        """Continue the metrics where the run continues."""
        for logger in self.trainer.loggers:
            if isinstance(logger, MetricsFile) and self.trainer.is_global_zero:
                logger.start(self.trainer.global_step)

    @property
    def _plan(self) -> Schedules:
        if self.schedules is None:
            raise RuntimeError("the run is not planned yet; fit it with a Trainer, or call plan()")
        return self.schedules

    @property
    def epoch(self) -> int:
        """Passes over the pictures that are complete."""
        return self.trainer.global_step // self._plan.steps_per_epoch

    # ---- a step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        step = self.trainer.global_step
        self.trainer.datamodule.bad.add(batch.bad)  # type: ignore[attr-defined]
        torch.manual_seed(hash((self.recipe.seed, step, self.micro_batch, self.trainer.global_rank)) & (2**63 - 1))
        self.micro_batch += 1
        teacher_logits, _ = self.teacher(batch.views[:2])  # 2*B, K
        targets = self.center(teacher_logits, self._plan.temperature(self.epoch))  # 2*B, K
        self.center.accumulate(teacher_logits)
        student_logits, features = self.student(batch.views)  # V*B, K and V*B, D
        loss = self.loss(student_logits, targets)
        if step % self.recipe.health.every == 0 and self.micro_batch == 1:
            self._examine(step, loss, targets, features[: len(targets)])
        return loss

    def _examine(self, step: int, loss: Tensor, targets: Tensor, features: Tensor) -> None:
        values = measure(self.statistics, loss, targets, features.detach(), getattr(self.center, "center", None))
        diagnosis = self.monitor.update(step, values)
        seen = {f"health/{k}" if k != "loss" else "loss": v for k, v in self.monitor.history[-1].items() if k != "step"}
        plan = self._plan
        schedule = {
            "lr": plan.lr(step),
            "weight_decay": plan.weight_decay(step),
            "teacher_momentum": plan.momentum(step),
            "teacher_temperature": plan.temperature(self.epoch),
            "epoch": step / plan.steps_per_epoch,
        }
        for logger in self.trainer.loggers:
            logger.log_metrics(seen | schedule, step=step)
        if diagnosis is not None:
            self.diagnoses.append(diagnosis)
            warnings.warn(str(diagnosis), stacklevel=2)
            if self.recipe.health.on_failure == "stop" or diagnosis.kind == "not_finite":
                self.trainer.should_stop = True

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Hold still what must stand still, then clip as the recipe says."""
        step, optim = self.trainer.global_step, self.recipe.optim
        if step < optim.freeze_last_layer_epochs * self._plan.steps_per_epoch:
            drop_gradients_(self.student.head.prototypes)  # type: ignore[arg-type]
        if step < self.recipe.backbone.head_warmup_steps:
            drop_gradients_(self.student.backbone.parameters())
        clip_gradients_(self.student.parameters(), optim.clip, optim.clip_mode)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Write this step's learning rate and weight decay, step, and let the centre and the teacher follow."""
        step = self.trainer.global_step
        set_hyperparameters(optimizer, self._plan.lr(step), self._plan.weight_decay(step))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.center.step()
        self.teacher.after_step(self.student, self._plan.momentum(step))
        if (step + 1) % self._plan.steps_per_epoch == 0:
            self.teacher.after_epoch(self.student)
        self.micro_batch = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Two groups, with and without weight decay."""
        optim = self.recipe.optim
        return build_optimizer(optim.name, parameter_groups(self.student, optim.weight_decay), **optim.arguments)

    # ---- saved

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The recipe travels with the checkpoint."""
        checkpoint["recipe"] = self.recipe.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of another recipe is refused, naming what differs."""
        changed = differences(self.recipe.to_dict(), checkpoint.get("recipe", {}))
        changed = [line for line in changed if not line.startswith("health.")]
        if changed:
            raise ValueError(
                "the checkpoint belongs to another recipe; use the same settings, or another --output\n  "
                + "\n  ".join(changed)
            )


def student_backbone(recipe: Recipe) -> Backbone:
    """The student's backbone, fresh or continued."""
    options = recipe.backbone
    arguments = dict(options.arguments)
    backbone = load_backbone(options.name, options.init_from, **arguments)
    if options.drop_path and backbone.spec.kind != "pyramid":
        set_drop_path(backbone, options.drop_path)
    return backbone.unfreeze().train()  # the Trainer leaves modes as they are


def set_drop_path(backbone: Backbone, rate: float) -> None:
    """Stochastic depth rising linearly with depth to `rate`, active in training mode alone."""
    from timm.layers import DropPath

    blocks = backbone.model.blocks  # type: ignore[union-attr]
    for index, block in enumerate(blocks):  # type: ignore[arg-type]
        own = rate * index / max(len(blocks) - 1, 1)  # type: ignore[arg-type]
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else torch.nn.Identity())
