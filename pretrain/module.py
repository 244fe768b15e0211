"""Pretraining as a LightningModule: what happens in a step, and what moves after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.training.fit import continue_metrics, refuse_another, seed_micro_batch
from pretrain.build import build_distilled, build_network, build_terms
from pretrain.checks import check_batch, check_distilled, check_network, check_precision, check_recipe, check_views
from pretrain.data import Batch
from pretrain.fsdp import FSDP2
from pretrain.health import Diagnosis, HealthMonitor, TrainingFailed, not_finite
from pretrain.losses import token_weights
from pretrain.masking import VIEWS, BlockMasks
from pretrain.network import MultiCropNetwork
from pretrain.optim import build_optimizer, clip_gradients_, drop_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import (
    BackboneOptions,
    DINOOptions,
    GramOptions,
    HeadOptions,
    HealthOptions,
    IBOTOptions,
    KoLeoOptions,
    OptimOptions,
    Recipe,
    Stage,
    TeacherOptions,
)
from pretrain.schedules import Cosine, linear_lr, sqrt_lr
from pretrain.sharding import local
from pretrain.stages import check_start, load_start, open_run
from pretrain.teacher import Teacher
from pretrain.terms import Masked, Seen, Term
from pretrain.views import MultiCrop


class Schedules(NamedTuple):
    """Functions of the optimiser step, and the length of the run. Terms have schedules of their own."""

    lr: Cosine
    weight_decay: Cosine
    momentum: Cosine
    steps: int
    steps_per_epoch: int


class DINO(pl.LightningModule):
    """Self-distillation with no labels: one pass of student and teacher, and an objective that is a list of terms.

    The class-token term alone is DINO; with masked patches it is iBOT, with KoLeo DINOv2's objective, with the Gram anchor
    DINOv3's. Schedules, the teacher and the centres move once per optimiser step, whatever the number of micro-batches.
    Each micro-batch seeds its own random numbers (drop path, RoPE) from the run's seed, and masks are a function of the
    data's seed and an image's place in its step, so a resumed run repeats an uninterrupted one bit for bit.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021; Zhou et al., "iBOT", 2022; Oquab et
    al., "DINOv2", 2023; Simeoni et al., "DINOv3", 2025.
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
        dino: DINOOptions = DINOOptions(),
        ibot: IBOTOptions = IBOTOptions(),
        koleo: KoLeoOptions = KoLeoOptions(),
        gram: GramOptions = GramOptions(),
        steps_per_epoch: int | None = None,
        stage: Stage = "pretrain",
        start_from: str | None = None,
        distill: str | None = None,
    ) -> None:
        """Build student, teacher and the terms.

        Args:
            backbone: which network learns.
            head: the projection head of class tokens.
            teacher: how the teacher follows and makes targets.
            optim: optimiser and schedules.
            health: when health is measured and what a failure does.
            epochs: length of the run in passes over the images, or of steps_per_epoch steps each.
            steps: length of the run in optimiser steps, instead of epochs.
            seed: of the weights and of drop path.
            dino: the class-token term.
            ibot: the masked-patch term.
            koleo: the term that spreads class tokens.
            gram: the Gram anchor.
            steps_per_epoch: optimiser steps that epochs, warm-ups and the like are counted in; null for a pass.
            stage: pretrain, gram or high_res; the latter two start from a run of the stage before.
            start_from: that run's directory, or one of its checkpoints.
            distill: directory of a run whose frozen teacher makes the targets; the product is still a moving average.
        """
        super().__init__()
        self.recipe = Recipe(
            backbone, head, teacher, optim, health, epochs, steps, seed,
            dino, ibot, koleo, gram, steps_per_epoch, stage, start_from, distill,
        )  # fmt: skip
        check_recipe(self.recipe)
        torch.manual_seed(self.recipe.seed)
        self.student = build_network(self.recipe)
        check_network(self.recipe, self.student)
        self.teacher = Teacher(self.student, self.recipe.teacher.mode)
        self.terms = build_terms(self.recipe, self.backbone)
        self.distilled: MultiCropNetwork | None = None
        if distill is not None:
            finished = open_run(distill, "distill")
            self.distilled = build_distilled(finished)
            check_distilled(self.recipe, self.student, self.distilled, finished.recipe["ibot"]["weight"] > 0)
        if start_from is not None:
            run = open_run(start_from, "start_from")
            check_start(self.recipe, run)
            load_start(self, run)
        self.masks = BlockMasks(ibot.mask_probability, ibot.mask_ratio, ibot.complete)
        patch_prototypes = self.recipe.patch_prototypes
        self.monitor = HealthMonitor(
            head.out_dim, health.warmup_steps, health.patience, patch_prototypes=patch_prototypes
        )
        self.diagnoses: list[Diagnosis] = []
        self.schedules: Schedules | None = None
        self._total_batch = 0  # images of an optimiser step, known when it is planned
        self.micro_batch = 0

    @property
    def backbone(self) -> Backbone:
        """The product: the teacher's backbone."""
        return self.teacher.network.backbone  # type: ignore[return-value]

    # ---- length and schedules

    def plan(self, images: int, total_batch: int) -> Schedules:
        """Schedules for `pictures` a pass in batches of `total_batch` (over all processes and micro-batches)."""
        if images < total_batch:
            raise ValueError(
                f"{images} images are fewer than one total batch of {total_batch}; lower --data.batch_size"
            )
        recipe, optim, teacher = self.recipe, self.recipe.optim, self.recipe.teacher
        per_epoch = recipe.steps_per_epoch or images // total_batch
        steps = recipe.steps or round(recipe.epochs * per_epoch)
        if steps < 1:
            raise ValueError(f"epochs={recipe.epochs} of {per_epoch} steps is no training; raise epochs or steps")
        warmup = min(round(optim.warmup_epochs * per_epoch), steps)
        scaled = {"linear": linear_lr, "sqrt": sqrt_lr, "none": lambda lr, _: lr}[optim.lr_scaling](
            optim.lr, total_batch
        )
        return Schedules(
            lr=Cosine(scaled, scaled if optim.lr_schedule == "constant" else optim.min_lr, steps, warmup),
            weight_decay=Cosine(optim.weight_decay, optim.final_weight_decay, steps),
            momentum=Cosine(teacher.momentum, teacher.final_momentum, steps),
            steps=steps,
            steps_per_epoch=per_epoch,
        )

    def setup(self, stage: str) -> None:
        """Plan the run when the data and the number of processes are known."""
        check_precision(str(self.trainer.precision))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        total = data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.schedules = self.plan(len(data.dataset), total)
        check_batch(self.recipe, total)
        for term in self._terms:
            term.plan(self.schedules.steps)
        self.masks.seed, self._total_batch = data.seed, total
        neighbours = self.trainer.world_size if self.recipe.koleo.distributed else 1
        for views in getattr(data.views, "choices", [data.views]):
            if isinstance(views, MultiCrop):
                check_views(self.recipe, self.student, views, data.batch_size * neighbours)
        loop = self.trainer.fit_loop.epoch_loop
        if loop.max_steps == -1 or loop.max_steps > self.schedules.steps:
            loop.max_steps = self.schedules.steps

    def configure_model(self) -> None:
        """Shard every network where the strategy says so."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2):
            for network in (self.student, self.teacher.network, self.distilled):
                if network is not None:
                    strategy.shard(network)
            if "gram" in self.terms:
                strategy.shard(self.terms["gram"].teacher)  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        """Continue the metrics where the run continues."""
        continue_metrics(self.trainer)

    @property
    def _terms(self) -> list[Term]:
        return list(self.terms.values())  # type: ignore[arg-type]

    @property
    def _plan(self) -> Schedules:
        if self.schedules is None:
            raise RuntimeError("the run is not planned yet; fit it with a Trainer, or call plan()")
        return self.schedules

    # ---- a step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        step, micro = self.trainer.global_step, self.micro_batch
        self.trainer.datamodule.bad.add(batch.bad)  # type: ignore[attr-defined]
        seed_micro_batch(self.trainer, self.recipe.seed, micro)
        self.micro_batch += 1
        if micro == 0:
            for term in self._terms:
                term.before_step(step, self.backbone)
        seen = self.look(batch, step, micro)
        values = {name: term(seen) for name, term in self.terms.items()}
        weighted = [term.weight(step) * value for term, value in zip(self._terms, values.values(), strict=True)]
        loss = torch.stack(weighted).sum()
        if seen.examine:
            self._examine(step, loss, values)
        return loss

    def look(self, batch: Batch, step: int, micro: int) -> Seen:
        """One pass of teacher and student over a micro-batch."""
        globals_ = batch.views[:VIEWS]
        masked = self._masked(batch, step, micro)
        chosen = None if masked is None else masked.chosen
        teacher = self.teacher(globals_, chosen=chosen) if self.distilled is None else self._distil(globals_, chosen)
        hidden = None if masked is None else masked.masks
        student = self.student(batch.views, hidden, chosen, patches="gram" in self.terms)
        return Seen(
            student=student,
            teacher=teacher,
            masked=masked,
            gram_crops=batch.gram or globals_,
            grid=self.student.grid(globals_[0]),
            step=step,
            steps_per_epoch=self._plan.steps_per_epoch,
            examine=step % self.recipe.health.every == 0 and micro == 0,
        )

    @torch.no_grad()
    def _distil(self, crops: list[Tensor], chosen: Tensor | None) -> Any:
        assert self.distilled is not None
        return self.distilled(crops, chosen=chosen)

    def _masked(self, batch: Batch, step: int, micro: int) -> Masked | None:
        """Which patches iBOT compares; none without it."""
        if not self.recipe.ibot.weight:
            return None
        crop = batch.views[0]
        grid, size = self.student.grid(crop), len(crop)
        if self.recipe.ibot.masking == "none":
            everything = torch.ones(VIEWS * size, grid[0] * grid[1], dtype=torch.bool)
            return _masked(None, everything, crop.device)
        first = (micro * self.trainer.world_size + self.trainer.global_rank) * size
        masks = self.masks(step, np.arange(first, first + size), self._total_batch, grid)
        return _masked(masks, masks, crop.device)

    def _examine(self, step: int, loss: Tensor, values: dict[str, Tensor]) -> None:
        found = {"loss": loss.detach().float()}
        if len(values) > 1:
            found |= {f"{name}_loss": value.detach().float() for name, value in values.items()}
        schedule = {
            "lr": self._plan.lr(step),
            "weight_decay": self._plan.weight_decay(step),
            "teacher_momentum": self._plan.momentum(step),
            "epoch": step / self._plan.steps_per_epoch,
        }
        for term in self._terms:
            found |= term.measurements
            schedule |= term.schedule(step, self._plan.steps_per_epoch)
        diagnosis = self.monitor.update(step, found)
        seen = {f"health/{k}" if k != "loss" else "loss": v for k, v in self.monitor.history[-1].items() if k != "step"}
        for logger in self.trainer.loggers:
            logger.log_metrics(seen | schedule, step=step)
        failure = ""
        if diagnosis is not None:
            self.diagnoses.append(diagnosis)
            if self.recipe.health.on_failure == "stop" or diagnosis.kind == "not_finite":
                failure = str(diagnosis)
            else:
                warnings.warn(str(diagnosis), stacklevel=2)
        self._end_if_failed(failure)

    def _end_if_failed(self, failure: str) -> None:
        """End every process where one has seen a failure, in its own images or as the one that holds the whole weights."""
        if self.trainer.strategy.reduce_boolean_decision(bool(failure), all=False):
            raise TrainingFailed(failure or "another process has named a failure and ended the run")

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Hold still what must stand still, then clip as the recipe says."""
        step, optim = self.trainer.global_step, self.recipe.optim
        if step < optim.freeze_last_layer_epochs * self._plan.steps_per_epoch:
            drop_gradients_(self.student.prototypes)
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
        """Write this step's learning rate and weight decay, step, and let the centres and the teacher follow."""
        step = self.trainer.global_step
        set_hyperparameters(optimizer, self._plan.lr(step), self._plan.weight_decay(step))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for term in self._terms:
            term.after_step()
        self.teacher.after_step(self.student, self._plan.momentum(step))
        if (step + 1) % self._plan.steps_per_epoch == 0:
            self.teacher.after_epoch(self.student)
        self.micro_batch = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Groups with and without weight decay, for each factor of the learning rate."""
        optim = self.recipe.optim
        groups = parameter_groups(self.student, optim.weight_decay, optim.layer_decay, optim.patch_embed_lr)
        arguments = optim.arguments
        if optim.name == "adamw" and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            arguments = {"fused": False} | arguments  # fused, it would undo fp16's loss scaling only after clipping
        return build_optimizer(optim.name, groups, **arguments)

    # ---- saved

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The recipe travels with the checkpoint; a frozen teacher, which has a directory of its own, does not.

        Raises:
            TrainingFailed: weights are NaN or infinite; the checkpoint of before is worth more.
        """
        broken = [name for name, value in checkpoint["state_dict"].items() if not local(value).isfinite().all()]
        self._end_if_failed(str(not_finite(self.trainer.global_step, broken[:5])) if broken else "")
        checkpoint["recipe"] = self.recipe.to_dict()
        checkpoint["run_steps"] = self._plan.steps
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("distilled.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of another recipe is refused, naming what differs."""
        refuse_another(self.recipe.to_dict(), checkpoint.get("recipe", {}), free="health")
        checkpoint["state_dict"] |= {k: v for k, v in self.state_dict().items() if k.startswith("distilled.")}


def _masked(masks: Tensor | None, compared: Tensor, device: torch.device) -> Masked:
    """What is compared, where the crops are."""
    chosen = compared.flatten().nonzero().squeeze(1)
    hidden = None if masks is None else masks.to(device, non_blocking=True)
    return Masked(hidden, chosen.to(device, non_blocking=True), token_weights(compared).to(device, non_blocking=True))
