"""What all dense tasks share: a backbone that mostly stays frozen, a head that learns, and three hooks."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

import heads
from dense.backbone import Backbone, load_backbone
from dense.backbone.spec import resolve_layers
from dense.model.network import DenseModel, Inference, Task, normalised
from dense.tasks.batch import Batch
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions
from dense.tasks.tuning import TuneOptions, parameter_groups, prepare
from dense.training.fit import continue_metrics, refuse_another, seed_micro_batch
from heads.features import Features, Size

Maps = dict[str, Tensor]
LOG_EVERY = 10  # optimiser steps
YOUNGER = ("evaluation", "inference")  # parts of a recipe of which older checkpoints say nothing


class DenseTask(pl.LightningModule, abc.ABC):
    """A head in training.

    A task says three things: which outputs its head must have (`complete_outputs`), how wrong they are (`losses`), and
    how good (`build_metrics`, `update_metrics`). Everything random in a step is seeded by (seed, step, micro-batch), so
    a resumed run repeats an uninterrupted one.
    """

    task: Task
    outputs: ClassVar[dict[str, tuple[str, ...]]]  # of the head: what it trains, and which kinds of output can be that
    monitor: str  # the validation number by which the best model is chosen
    mode: str  # min or max
    evaluation: Any = None  # how depth is measured, where a task learns it

    def __init__(
        self,
        backbone: BackboneOptions,
        head: dict[str, Any],
        optim: OptimOptions,
        tune: TuneOptions,
        target: TargetOptions,
        inference: Inference,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.options, self.head_options = backbone, head
        self.optim, self.tune, self.target = optim, tune, target
        self.inference, self.steps, self.seed = inference, steps, seed
        self.network: DenseModel
        self.micro_batch = 0
        self.seen: dict[str, float] = {}  # the last losses

    # ---- hooks

    @abc.abstractmethod
    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, dict[str, Any]]:
        """The head's outputs with what the data decide (how many classes), or ValueError where one is missing."""

    @abc.abstractmethod
    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts, of maps at the size that `target` asks for and a batch at that size."""

    @abc.abstractmethod
    def build_metrics(self) -> nn.Module:
        """Fresh metrics of a validation set, with `compute() -> dict`, `reset()`."""

    @abc.abstractmethod
    def update_metrics(self, metrics: nn.Module, maps: Maps, batch: Batch) -> None:
        """Add a batch at full size."""

    @abc.abstractmethod
    def loss_recipe(self) -> dict[str, Any]:
        """The losses as plain data."""

    def extra_parameters(self) -> list[nn.Parameter]:
        """What learns besides the network."""
        return []

    # ---- network

    def build(self, data: Any) -> DenseModel:
        """Backbone and head for a data module, from the seed."""
        torch.manual_seed(self.seed)
        options = self.options
        backbone = load_backbone(options.name, options.weights, **options.arguments)
        layers = resolve_layers(options.layers, backbone.spec)
        spec = dict(self.head_options)
        spec["outputs"] = self.complete_outputs(self.given_outputs(), data)
        spec.setdefault("in_channels", channels(backbone, layers))
        if backbone.spec.kind == "pyramid" and spec.get("name") in ("dpt", "pyramid"):
            spec.setdefault("strides", list(backbone._strides(layers)))
        head = heads.build(spec)
        prepare(backbone, self.tune, layers, options.norm)
        return DenseModel(backbone, head, layers, options.norm, self.task, data.classes, self.inference)

    def given_outputs(self) -> dict[str, dict[str, Any]]:
        """The head's outputs as the recipe says them; one that this task would not train raises."""
        given = self.head_options.get("outputs") or {}
        for name, output in given.items():
            if name not in self.outputs:
                raise ValueError(
                    f"the head has an output {name!r}, which {type(self).__name__} does not train; it trains "
                    f"{' and '.join(self.outputs)}, so rename it or leave it out"
                )
            known = self.outputs[name]
            kind = output.get("name") if isinstance(output, Mapping) else None
            if kind not in known:
                raise ValueError(
                    f"output {name!r} is {output!r}: expected its name and options, {name}: {{name: {known[0]}}}"
                )
        return {name: dict(output) for name, output in given.items()}

    def build_for(self, data: Any) -> DenseModel:
        """The network for these data, built once."""
        if not hasattr(self, "network"):
            self.network = self.build(data)
        return self.network

    def setup(self, stage: str) -> None:
        """Build what is not there yet, when the data are known."""
        self.build_for(self.trainer.datamodule)  # type: ignore[attr-defined]
        if not hasattr(self, "metrics"):
            self.metrics = self.build_metrics()
            for metric in self.metrics.modules():
                if isinstance(metric, Metric):
                    metric.sync_on_compute = False  # every process validates on the whole set

    def on_fit_start(self) -> None:
        """Compute what the cache lacks, now that the network is where it will run."""
        self.trainer.datamodule.remember(self)  # type: ignore[attr-defined]

    def features(self, batch: Batch) -> Features:
        """Of the batch's images, or what the cache holds."""
        if batch.cached is not None:
            assert batch.size is not None
            return self.network.restored(batch.cached, batch.size)
        assert batch.images is not None
        images = normalised(self.network.backbone, batch.images)
        if self.tune.frozen:
            with torch.no_grad():
                return self.network.features(images)
        return self.network.features(images)

    def decode(self, features: Features, batch: Batch, size: Size | None) -> Maps:
        """Maps of a batch; a head that reads the images gets them."""
        images = None
        if self.network.head.reads_pixels and batch.images is not None:
            images = normalised(self.network.backbone, batch.images)
        return self.network.decode(features, size, images)

    # ---- a step

    def on_train_start(self) -> None:
        """Continue the metrics where the run continues."""
        continue_metrics(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        step = self.trainer.global_step
        seed_micro_batch(self.trainer, self.seed, self.micro_batch)
        self.micro_batch += 1
        features = self.features(batch)
        size = target_size(features, self.target.size)
        maps = self.decode(features, batch, size)
        loss, parts = self.losses(maps, batch if size is None else batch.resized(size))
        if not torch.isfinite(loss.detach()):
            raise RuntimeError(
                f"the loss is {float(loss.detach())} at step {step}; lower model.optim.lr, set model.optim.clip to 1, or "
                "train in fp32. The last checkpoint is whole"
            )
        if step % LOG_EVERY == 0 and self.micro_batch == 1:
            values = {"loss": loss.detach()} | {f"loss/{k}": v.detach() for k, v in parts.items()}
            lr = self.trainer.optimizers[0].param_groups[-1]["lr"]
            self.record({k: float(v) for k, v in values.items()} | {"lr": lr}, step)
        return loss

    def record(self, numbers: dict[str, float], step: int) -> None:
        """Write numbers to every log."""
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=step)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Write this step's learning rates, then step."""
        factor = self.optim.factor(self.trainer.global_step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.micro_batch = 0

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """The norm of all gradients, where the recipe says so."""
        if self.optim.clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optim.clip)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the head learns with lr, layers of an unfrozen backbone with less."""
        o, t = self.optim, self.tune
        groups = parameter_groups(self.network, o.lr, t.layer_decay, o.weight_decay, t.lr_scale)
        if extra := self.extra_parameters():
            groups.append({"params": extra, "lr": o.lr, "weight_decay": 0.0})
        for group in groups:
            group["initial_lr"] = group["lr"]
        return torch.optim.AdamW(groups, betas=o.betas)

    # ---- continuing

    def recipe(self) -> dict[str, Any]:
        """All that decides what is learnt from the same data, how it is measured and how it is used, as plain data."""
        parts: dict[str, Any] = {
            "backbone": self.options,
            "optim": self.optim,
            "tune": self.tune,
            "target": self.target,
            "inference": self.inference,
        }
        if self.evaluation is not None:
            parts["evaluation"] = self.evaluation
        plain = {name: asdict(part) for name, part in parts.items()}
        own = {"head": self.head_options, "steps": self.steps, "seed": self.seed, "task": type(self).__name__}
        return json.loads(json.dumps(plain | own | self.loss_recipe()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recipe with the weights."""
        checkpoint["recipe"] = self.recipe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of another recipe is refused, naming what differs, but for that of which an older one says nothing."""
        saved = checkpoint.get("recipe", {})
        known = {key: value for key, value in self.recipe().items() if key in saved or key not in YOUNGER}
        refuse_another(known, saved)

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        """Forget the last round."""
        self.metrics.reset()  # type: ignore[operator]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch."""
        target = next(a for a in (batch.clean, batch.labels, batch.depth) if a is not None)
        size = (target.shape[-2], target.shape[-1])  # targets are compared at the size they were made at
        self.update_metrics(self.metrics, self.decode(self.features(batch), batch, size), batch)

    def on_validation_epoch_end(self) -> None:
        """Numbers of the set, logged and shown to callbacks."""
        numbers = {f"val/{k}": v for k, v in self.numbers().items()}
        for name, value in numbers.items():
            self.log(name, value, sync_dist=False, logger=False)
        if not self.trainer.sanity_checking:
            self.record(numbers, self.trainer.global_step)
            self.seen = numbers

    def numbers(self) -> dict[str, float]:
        """What the metrics say of the set."""
        return {k: float(v) for k, v in self.metrics.compute().items() if not isinstance(v, dict)}  # type: ignore[operator]


def channels(backbone: Backbone, layers: tuple[int, ...]) -> list[int]:
    """Channels of the chosen maps."""
    spec = backbone.spec
    return [spec.channels[layer] for layer in layers] if spec.channels else [spec.dim] * len(layers)


def target_size(features: Features, choice: str) -> Size | None:
    """Where the loss is computed: four times the grid of the finest map, never more than the image."""
    if choice == "picture":
        return None
    stride = min(features.strides)
    height, width = (max(1, round(4 * side / stride)) for side in features.image_size)
    return (min(height, features.image_size[0]), min(width, features.image_size[1]))
