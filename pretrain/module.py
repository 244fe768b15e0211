"""Pretraining as a LightningModule: a training step, and what moves after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.backbone.channels import input_parameters
from dense.data.cache import weights_digest
from dense.training.fit import continue_metrics, refuse_another, seed_micro_batch
from pretrain.centering import Center, subtract_mean
from pretrain.data import ViewBatch
from pretrain.fsdp import FSDP2
from pretrain.guides import MLPGuide
from pretrain.health import Diagnosis, HealthMonitor, TrainingFailed, not_finite
from pretrain.masking import VIEWS, BlockMasks, MaskedPatches
from pretrain.network import (
    MultiCropNetwork,
    NetworkOutput,
    TeacherFeatures,
    build_network,
    check_crops,
    teacher_features,
)
from pretrain.optim import (
    Schedules,
    build_optimizer,
    clip_gradients_,
    drop_gradients_,
    parameter_groups,
    plan_schedules,
    set_hyperparameters,
)
from pretrain.recipe import Recipe, completed, without_places
from pretrain.sharding import local
from pretrain.stages import check_start, distillation_teacher, frozen_teachers, load_run, load_start
from pretrain.teacher import Teacher
from pretrain.terms import GuidesTerm, RelationTerm, StepOutputs, Term, build_terms
from pretrain.views import MultiCrop

ELSEWHERE = ("distilled.", "frozen.")  # frozen teachers, which checkpoints leave out
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class DINO(pl.LightningModule):
    """Self-distillation without labels: one pass of student and teacher, and an objective that is a sum of terms.

    The class-token term alone is DINO; with masked patches it is iBOT, with KoLeo DINOv2, with the Gram anchor DINOv3.
    The arguments are the fields of `pretrain.recipe.Recipe`, which documents and checks them.

    Schedules, the teacher and the centres move once per optimiser step, whatever the number of micro-batches. Each
    micro-batch seeds its own random numbers (drop path, RoPE) from the run's seed, and masks are a function of the
    data's seed and an image's place in its step. So a resumed run equals an uninterrupted one bit for bit.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021; Zhou et al., "iBOT", 2022; Oquab
    et al., "DINOv2", 2023; Simeoni et al., "DINOv3", 2025.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self.recipe = recipe = Recipe(*args, **options)
        teachers = frozen_teachers(recipe)
        self.teachers: list[dict[str, Any]] = [  # what the frozen teachers are, for the cache and the model card
            {"spec": teacher.spec.to_dict(), "digest": weights_digest(teacher.state_dict())} for teacher in teachers
        ]
        torch.manual_seed(recipe.seed)
        self.student = build_network(recipe, teachers)
        self.teacher = Teacher(self.student, recipe.teacher.mode, buffers=not recipe.has_prototypes)
        self.terms = build_terms(recipe, self.backbone, teachers)
        self.frozen = nn.ModuleList(teachers)  # empty once all their features are in a cache
        momentum = recipe.teacher.center_momentum
        self.centers = nn.ModuleList(  # of each frozen teacher's class tokens, and of its patches
            nn.ModuleList(Center(teacher.spec.dim, momentum) for _ in range(2))
            for teacher in teachers
            if recipe.teacher.subtract_mean
        )
        self.distilled: MultiCropNetwork | None = None
        if recipe.distill is not None:
            self.distilled = distillation_teacher(recipe, self.student, recipe.distill)
        if recipe.start_from is not None:
            run = load_run(recipe.start_from, "start_from")
            check_start(recipe, run)
            load_start(self, run)
        self.masks = BlockMasks(recipe.ibot.mask_probability, recipe.ibot.mask_ratio, recipe.ibot.complete)
        self.monitor = HealthMonitor(
            recipe.head.out_dim,
            recipe.health.warmup_steps,
            recipe.health.patience,
            patch_prototypes=recipe.patch_prototypes,
        )
        self.diagnoses: list[Diagnosis] = []
        self.schedules: Schedules | None = None
        self._total_batch = 0  # images of an optimiser step, known when the run is planned
        self.micro_batch = 0

    @property
    def backbone(self) -> Backbone:
        """The result of the training: the teacher's backbone."""
        return self.teacher.network.backbone  # type: ignore[return-value]

    def plan(self, images: int, total_batch: int) -> Schedules:
        """Return the schedules for `images` per pass in batches of `total_batch`; see `plan_schedules`."""
        return plan_schedules(self.recipe, images, total_batch)

    def setup(self, stage: str) -> None:
        """Plan the run, once the data and the number of processes are known."""
        if str(self.trainer.precision) not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: pretraining keeps its weights in fp32; use "
                f"{' or '.join(PRECISIONS)}"
            )
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        total = data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.schedules = self.plan(len(data.dataset), total)
        self._add_guides(data)
        for term in self._terms:
            term.plan(self.schedules.steps)
            if isinstance(term, RelationTerm):
                term.open_queues(len(data.dataset))
        self.masks.seed, self._total_batch = data.seed, total
        neighbours = data.batch_size * (self.trainer.world_size if self.recipe.koleo.distributed else 1)
        for views in getattr(data.views, "choices", [data.views]):
            if isinstance(views, MultiCrop):
                check_crops(self.recipe, self.student, views, total, neighbours, self.frozen)  # type: ignore[arg-type]
        if getattr(data, "cache", None) is not None and (self.recipe.mixup or not self.teachers):
            raise ValueError(
                f"data.cache={data.cache} keeps the features that frozen teachers give fixed views; leave it out "
                f"{'with mixup, which makes new images' if self.recipe.mixup else 'or set teacher.name'}"
            )
        loop = self.trainer.fit_loop.epoch_loop
        if loop.max_steps == -1 or loop.max_steps > self.schedules.steps:
            loop.max_steps = self.schedules.steps

    def _add_guides(self, data: Any) -> None:
        """Add the term of metadata, whose heads have as many outputs as the file has classes."""
        metadata = data.read_metadata(self.recipe.guides) if hasattr(data, "read_metadata") else None
        if metadata is not None and "guides" not in self.terms:
            torch.manual_seed(self.recipe.seed)
            warmup, dim = self._plan.lr.warmup_steps, self.student.backbone.spec.dim
            self.terms["guides"] = GuidesTerm(self.recipe.guides, metadata.columns, dim, warmup)

    @property
    def _trained(self) -> nn.ModuleList:
        """The modules with parameters that the optimiser moves."""
        return nn.ModuleList([self.student, *([self.terms["guides"]] if "guides" in self.terms else [])])

    def configure_model(self) -> None:
        """Shard every network, if the strategy is FSDP2."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2):
            for network in (self.student, self.teacher.network, self.distilled, *self.frozen):
                if network is not None:
                    strategy.shard(network)
            if "gram" in self.terms:
                strategy.shard(self.terms["gram"].teacher)  # type: ignore[arg-type]
            for head in self.terms["guides"].heads if "guides" in self.terms else ():  # type: ignore[union-attr]
                if isinstance(head, MLPGuide):
                    strategy.shard(head.layers)

    def on_fit_start(self) -> None:
        """Fill the cache of the frozen teachers' features, after which they are no longer needed."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "cache", None) is None:
            return

        def compute(images: Tensor) -> list[Tensor]:  # B, VIEWS, 3, S, S
            with self.trainer.precision_plugin.forward_context():
                features = self._frozen_features(images.flatten(0, 1).to(self.device))
            return [part.unflatten(0, (-1, VIEWS)) for own in features for part in own]

        data.keep_features(compute, {"teachers": self.teachers, "precision": str(self.trainer.precision)})
        self.frozen = nn.ModuleList()

    def _frozen_features(self, crops: Tensor) -> list[TeacherFeatures]:
        return [teacher_features(teacher, crops) for teacher in self.frozen]  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        """Continue the metrics of a resumed run."""
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

    def training_step(self, batch: ViewBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        step, micro = self.trainer.global_step, self.micro_batch
        self.trainer.datamodule.bad.add(batch.bad)  # type: ignore[attr-defined]
        seed_micro_batch(self.trainer, self.recipe.seed, micro)
        self.micro_batch += 1
        if micro == 0:
            for term in self._terms:
                term.before_step(step, self.backbone)
        outputs = self.run_networks(batch, step, micro)
        values = {name: term(outputs) for name, term in self.terms.items()}
        weighted = [term.weight(step) * value for term, value in zip(self._terms, values.values(), strict=True)]
        loss = torch.stack(weighted).sum()
        if outputs.measure:
            self._measure(step, loss, values)
        return loss

    def run_networks(self, batch: ViewBatch, step: int, micro: int) -> StepOutputs:
        """Return the outputs of teacher and student for a micro-batch."""
        globals_ = batch.views[:VIEWS]
        masked = self._masked_patches(batch, step, micro)
        masks, indices = (None, None) if masked is None else masked[:2]
        views, frozen = self._with_targets(batch)
        for number, centers in enumerate(self.centers):
            own: Any = centers
            pairs, start = zip(frozen[number], own, strict=True), step == 0 and micro == 0
            frozen[number] = TeacherFeatures(*[subtract_mean(part, center, start) for part, center in pairs])
        return StepOutputs(
            teacher=self._run_teacher(globals_, indices) if self.recipe.has_prototypes else None,
            student=self.student(views, masks, indices, patches="gram" in self.terms),
            frozen=frozen,
            masked=masked,
            gram_crops=batch.gram or globals_,
            grid=self.student.grid(globals_[0]),
            step=step,
            steps_per_epoch=self._plan.steps_per_epoch,
            measure=step % self.recipe.health.every == 0 and micro == 0,
            metadata=batch.metadata,
        )

    def _with_targets(self, batch: ViewBatch) -> tuple[list[Tensor], list[TeacherFeatures]]:
        """Return the student's views, and the features of frozen teachers: computed, or from the cache."""
        if batch.cached:
            parts = [part.transpose(0, 1).flatten(0, 1) for part in batch.cached]  # B, VIEWS, ... -> crop-major
            return batch.views, [TeacherFeatures(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
        globals_ = torch.cat(batch.views[:VIEWS]) if self.frozen else torch.empty(0)
        if not self.recipe.mixup:
            return batch.views, self._frozen_features(globals_)
        share, order = torch.rand(()).item(), torch.randperm(len(globals_)).to(globals_.device)

        def mixed(backbone: Backbone) -> Tensor:
            images = backbone.normalise(globals_)
            return share * images + (1 - share) * images[order]

        frozen = [teacher_features(teacher, mixed(teacher)) for teacher in self.frozen]  # type: ignore[arg-type]
        return list(mixed(self.student.backbone).chunk(VIEWS)), frozen

    @torch.no_grad()
    def _run_teacher(self, crops: list[Tensor], patch_indices: Tensor | None) -> NetworkOutput:
        network = self.teacher if self.distilled is None else self.distilled
        return network(crops, patch_indices=patch_indices)

    def _masked_patches(self, batch: ViewBatch, step: int, micro: int) -> MaskedPatches | None:
        """Return the patches at which iBOT compares student and teacher; None without iBOT."""
        if not self.recipe.ibot.weight:
            return None
        crop = batch.views[0]
        grid, size = self.student.grid(crop), len(crop)
        if self.recipe.ibot.masking == "none":
            everything = torch.ones(VIEWS * size, grid[0] * grid[1], dtype=torch.bool)
            return MaskedPatches.of(everything, masked=False, device=crop.device)
        first = (micro * self.trainer.world_size + self.trainer.global_rank) * size
        masks = self.masks(step, np.arange(first, first + size), self._total_batch, grid)
        return MaskedPatches.of(masks, masked=True, device=crop.device)

    def _measure(self, step: int, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Log losses, measurements and schedules of a step, and report what the monitor recognises."""
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
        metrics = {k if k == "loss" else f"health/{k}": v for k, v in self.monitor.history[-1].items() if k != "step"}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics | schedule, step=step)
        failure = ""
        if diagnosis is not None:
            self.diagnoses.append(diagnosis)
            if self.recipe.health.on_failure == "stop" or diagnosis.kind == "not_finite":
                failure = str(diagnosis)
            else:
                warnings.warn(str(diagnosis), stacklevel=2)
        self._end_if_failed(failure)

    def _end_if_failed(self, failure: str) -> None:
        """End every process if one has failed: on its own images, or as the one that holds the whole weights."""
        if self.trainer.strategy.reduce_boolean_decision(bool(failure), all=False):
            raise TrainingFailed(failure or "another process has reported a failure and ended the run")

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Freeze the last layer and the backbone while the recipe asks for it, then clip gradients."""
        step, optim = self.trainer.global_step, self.recipe.optim
        if step < optim.freeze_last_layer_epochs * self._plan.steps_per_epoch:
            drop_gradients_(self.student.prototypes)
        if step < self.recipe.backbone.head_warmup_steps:
            drop_gradients_(self.student.backbone.parameters())
        elif step < self.recipe.backbone.patch_steps:
            kept = {id(parameter) for parameter in input_parameters(self.student.backbone.model)}
            drop_gradients_(p for p in self.student.backbone.parameters() if id(p) not in kept)
        clip_gradients_(self._trained.parameters(), optim.clip, optim.clip_mode)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the learning rate and weight decay, step, then move the centres and the teacher."""
        step = self.trainer.global_step
        set_hyperparameters(optimizer, self._plan.lr(step), self._plan.weight_decay(step))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for term in self._terms:
            term.after_step()
        for center in self.centers.modules():
            if isinstance(center, Center):
                center.step()
        self.teacher.after_step(self.student, self._plan.momentum(step))
        if (step + 1) % self._plan.steps_per_epoch == 0:
            self.teacher.after_epoch(self.student)
        self.micro_batch = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser over groups with and without weight decay, for each factor of the learning rate."""
        optim = self.recipe.optim
        groups = parameter_groups(self._trained, optim.weight_decay, optim.layer_decay, optim.patch_embed_lr)
        arguments = optim.arguments
        if optim.name == "adamw" and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            arguments = {"fused": False} | arguments  # fused, it would undo fp16's loss scaling only after clipping
        return build_optimizer(optim.name, groups, **arguments)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, and leave out a frozen teacher, which has a directory of its own.

        Raises:
            TrainingFailed: weights are NaN or infinite; the previous checkpoint stays.
        """
        broken = [name for name, value in checkpoint["state_dict"].items() if not local(value).isfinite().all()]
        self._end_if_failed(str(not_finite(self.trainer.global_step, broken[:5])) if broken else "")
        checkpoint["recipe"] = self.recipe.to_dict()
        checkpoint["run_steps"] = self._plan.steps
        checkpoint["teachers"] = [teacher["digest"] for teacher in self.teachers]
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(ELSEWHERE)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another recipe, naming the differences."""
        saved = completed(checkpoint.get("recipe", {}))
        refuse_another(without_places(self.recipe.to_dict()), without_places(saved), free="health")
        digests = [teacher["digest"] for teacher in self.teachers]
        refuse_another({"frozen teachers": digests}, {"frozen teachers": checkpoint.get("teachers", digests)})
        checkpoint["state_dict"] |= {k: v for k, v in self.state_dict().items() if k.startswith(ELSEWHERE)}
