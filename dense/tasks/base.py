"""The LightningModule that all dense tasks share: a head, a backbone that is frozen by default, and three hooks."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

import heads
from dense.backbone import Backbone, load_backbone
from dense.backbone.channels import input_parameters
from dense.backbone.spec import resolve_layers
from dense.data.cache import weights_digest
from dense.data.labelled.check import spread
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import Batch, LabelledSource
from dense.metrics import SegmentationMetrics
from dense.model.inference import through
from dense.model.network import DenseModel, Inference, Maps, Task, before_blocks
from dense.tasks.data import DataFacts
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions, TuneOptions
from dense.tasks.tuning import free_patches, parameter_groups, prepare
from dense.training.fit import continue_metrics, refuse_another, seed_micro_batch
from heads.eomt import upscales_of
from heads.features import Features, Size
from heads.layers import resize

LOG_EVERY = 10  # optimiser steps
FITTED = 100  # training images to which the constant prediction is fitted
YOUNGER = ("evaluation", "inference")  # parts of a recipe that older checkpoints lack


class DenseTask(pl.LightningModule, abc.ABC):
    """A head in training.

    A task defines the outputs that its head must have (`complete_outputs`), the loss (`losses`), and the validation
    metrics (`build_metrics`, `update_metrics`, and `baseline` to compare with). Everything random in a step is seeded
    by (seed, step, micro-batch), so a resumed run repeats an uninterrupted one.
    """

    task: Task
    outputs: ClassVar[dict[str, tuple[str, ...]]]  # name of each trained output -> kinds of output that it may be
    monitor: str  # the validation metric by which the best model is chosen
    mode: str  # min or max
    second: ClassVar[str] = ""  # the validation metric, to be maximised, that decides between close ones; see BestModel
    baseline_name: ClassVar[str] = "constant"
    evaluation: Any = None  # how depth is measured, in tasks with depth

    def __init__(
        self,
        head: dict[str, Any],
        backbone: BackboneOptions = BackboneOptions(),
        optim: OptimOptions = OptimOptions(),
        tune: TuneOptions = TuneOptions(),
        target: TargetOptions = TargetOptions(),
        inference: Inference = Inference(),
        steps: int | Literal["auto"] = 1000,
        seed: int = 0,
    ) -> None:
        """A head in training.

        Args:
            head: options of `heads.build`; in_channels and the number of classes are filled in. The name auto stands
                for a head that suits task and data.
            backbone: the features that the head gets.
            optim: optimiser and learning-rate schedule.
            tune: how much of the backbone is trained.
            target: where the loss is computed, and which depths count.
            inference: how the network is applied to whole images, from validation on; saved with the model.
            steps: optimiser steps; auto for a number that suits the data.
            seed: seed of the head's weights and of dropout.
        """
        super().__init__()
        if steps == "auto" or head.get("name") == "auto":
            raise ValueError("auto is a value of recipes, which dense train chooses; give a head and a number of steps")
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.options, self.head_options = backbone, head
        self.optim, self.tune, self.target = optim, tune, target
        self.inference, self.steps, self.seed = inference, steps, seed
        self.network: DenseModel
        self.micro_batch = 0
        self.patches_stay = False  # whether the patch embedding is trained after tune.patch_steps, too
        self.validated: dict[str, float] = {}  # metrics of the last validation
        self.class_ious: dict[str, float] = {}  # of its classes of pixels
        self.constant: dict[str, float] = {}  # the same metrics of the prediction by `baseline`
        self.comparing: tuple[Callable[[Batch], Maps], Any] | None = None  # while these are computed

    # ---- hooks

    @abc.abstractmethod
    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Fill in what depends on the data, such as the number of classes; raise if the data lack a target."""

    @abc.abstractmethod
    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts, for maps and targets of the size that `target` sets."""

    @abc.abstractmethod
    def build_metrics(self) -> nn.Module:
        """Return new validation metrics with `compute() -> dict` and `reset()`."""

    @abc.abstractmethod
    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        """Add a batch, with maps of the targets' full size."""

    @abc.abstractmethod
    def loss_recipe(self) -> dict[str, Any]:
        """Return the options of the losses as plain data."""

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps] | None:
        """Return, as a function of a batch, a prediction without learning, such as a constant fitted to `train`."""
        return None

    def settled(self, step: int) -> bool:
        """Whether the network at a step is of the form that the finished one has, so that early stopping may end it."""
        return True

    def extra_parameters(self) -> list[nn.Parameter]:
        """Return parameters that are trained besides the network's."""
        return []

    # ---- network

    def build(self, data: DataFacts) -> DenseModel:
        """Build backbone and head for these data, from the seed."""
        torch.manual_seed(self.seed)
        options = self.options
        backbone = load_backbone(options.name, options.weights, **options.changes)
        layers = resolve_layers(options.layers, backbone.spec)
        spec = dict(self.head_options)
        spec["outputs"] = self.complete_outputs(self.given_outputs(), data)
        spec.setdefault("in_channels", channels(backbone, layers))
        if backbone.spec.kind == "pyramid" and spec.get("name") in ("dpt", "pyramid"):
            spec.setdefault("strides", list(backbone._strides(layers)))
        if spec.get("name") == "eomt":
            spec.setdefault("upscales", upscales_of(backbone.spec.patch))
        if (count := len(backbone.spec.channels)) != 3:
            if spec.get("stride2") == "stem":
                spec.setdefault("image_channels", count)
            if "restored" in spec["outputs"]:
                spec["outputs"]["restored"].setdefault("count", count)
        head, norm = heads.build(spec), options.norm
        if head.blocks:  # it uses all blocks and the final norm, from features that are not normed
            prepare(backbone, self.tune, (backbone.spec.depth - 1,), True)
            layers, norm = (before_blocks(backbone.spec, head.blocks),), False
        else:
            prepare(backbone, self.tune, layers, norm)
        if self.tune.patch_steps:
            self.patches_stay = free_patches(backbone)
        inference = replace(self.inference, reading=data.reading)
        inference = inference if data.focal is None else replace(inference, focal=data.focal)
        return DenseModel(backbone, head, layers, norm, self.task, data.classes, inference)

    def given_outputs(self) -> dict[str, dict[str, Any]]:
        """Return the outputs in the options of the head; raise for one that this task does not train."""
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

    def build_for(self, data: DataFacts) -> DenseModel:
        """Return the network for these data, built once."""
        if not hasattr(self, "network"):
            self.network = self.build(data)
        return self.network

    def setup(self, stage: str) -> None:
        """Build the network, where that has not happened yet, and the metrics."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.resize != self.inference.resize:
            raise ValueError(
                f"data.resize={data.resize} and model.inference.resize={self.inference.resize}: training, validation "
                "and prediction share one working size; give both the same value"
            )
        patch = self.build_for(data.facts).backbone.spec.patch
        if isinstance(data.resize, int) and data.resize < patch:
            raise ValueError(f"data.resize={data.resize}: images would be smaller than one patch of {patch} pixels")
        if not hasattr(self, "metrics"):
            self.metrics: Any = self.new_metrics()

    def new_metrics(self) -> Any:
        """Return new validation metrics of this process, each of which validates on the whole set."""
        metrics = self.build_metrics()
        for metric in metrics.modules():
            if isinstance(metric, Metric):
                metric.sync_on_compute = False
        return metrics

    def on_fit_start(self) -> None:
        """Fill the cache, now that the network is on its device."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        network, named = self.network, data.cache not in (None, "auto")
        if named and (why := self.feature_change):
            raise ValueError(f"data.cache keeps features of a frozen backbone, and {why}; drop one")
        if named and network.head.reads_pixels:
            raise ValueError("data.cache keeps features, and this head reads the images too; leave data.cache out")
        if not self.fixed_features or network.head.reads_pixels:
            return
        trained = {name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
        key = {
            "weights": weights_digest({k: v for k, v in network.backbone.state_dict().items() if k not in trained}),
            "spec": network.backbone.spec.to_dict(),
            "layers": list(network.layers),
            "norm": network.norm,
            "precision": str(self.trainer.precision),
        }

        def compute(images: Tensor) -> list[Tensor]:
            with self.trainer.precision_plugin.forward_context():
                features = network.features(network.backbone.normalise(images.to(self.device)))
            return [*features.maps, *features.prefix]

        whole = self.inference.window is None and not self.inference.square
        data.keep_features(compute, key, self.steps, whole)

    @property
    def feature_change(self) -> str:
        """What changes the features that the head gets in training, in words; empty if they stay the same."""
        return "" if self.tune.frozen else "model.tune trains it"

    @property
    def fixed_features(self) -> bool:
        """Whether the features that the head gets stay the same in training."""
        return not self.feature_change

    def features(self, batch: Batch) -> tuple[Features, Tensor | None]:
        """Return the features of a batch, computed or from the cache, and the pixels for a head that reads them."""
        if batch.cached is not None:
            assert batch.size is not None
            return self.network.features_from(batch.cached, batch.size), None
        assert batch.images is not None
        images = self.network.backbone.normalise(batch.images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed_features):
            features = self.network.features(images)
        return features, self.network.pixels(images)

    def maps(self, batch: Batch) -> tuple[Maps, Batch]:
        """Return the maps at the size where the loss is computed, and the batch with targets of that size."""
        features, pixels = self.features(batch)
        size = target_size(features, self.target.size)
        return self.network.decode(features, size, pixels), batch if size is None else batch.resized(size)

    # ---- a step

    def on_train_start(self) -> None:
        """Continue the metrics where the run continues."""
        continue_metrics(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        step = self.trainer.global_step
        seed_micro_batch(self.trainer, self.seed, self.micro_batch)
        self.micro_batch += 1
        if 0 < self.tune.patch_steps <= step and not self.patches_stay and self.trainer.world_size == 1:
            for parameter in input_parameters(self.network.backbone.model):
                parameter.requires_grad_(False)  # saves its backward pass, for which several processes would wait
        loss, parts = self.losses(*self.maps(batch))
        if not torch.isfinite(loss.detach()):
            raise RuntimeError(
                f"the loss is {float(loss.detach())} at step {step}; lower model.optim.lr, set model.optim.clip to 1, "
                "or train in fp32. The last checkpoint is whole"
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
        """Set this step's learning rates, then step."""
        step, later = self.trainer.global_step, max(self.optim.warmup(self.steps), self.tune.patch_steps)
        factor = slower = self.optim.factor(step, self.steps)
        if self.tune.warmup_steps:
            own = replace(self.optim, warmup_steps=self.tune.warmup_steps)
            slower = 0.0 if step < later else own.factor(step - later, self.steps - later)
        for group in optimizer.param_groups:
            if step < self.tune.patch_steps and "patch_lr" in group:
                group["lr"] = group["patch_lr"] * factor
            else:
                group["lr"] = group["initial_lr"] * (slower if group.get("backbone") else factor)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.micro_batch = 0

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Drop the gradients of what is not trained at this step, and clip the norm of the others, as options say."""
        first = self.trainer.global_step < self.tune.patch_steps
        for group in optimizer.param_groups if self.tune.patch_steps else ():
            patch = "patch_lr" in group
            if group.get("backbone") and patch != first and not (patch and self.patches_stay):
                for parameter in group["params"]:
                    parameter.grad = None  # which the optimiser leaves as it is
        if self.optim.clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optim.clip)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with the learning rates of the head and of each trained layer of the backbone."""
        o, t = self.optim, self.tune
        assert o.lr != "auto"
        patches = input_parameters(self.network.backbone.model) if t.patch_steps else []
        groups = parameter_groups(self.network, o.lr, t.layer_decay, o.weight_decay, t.lr_scale, patches)
        if extra := self.extra_parameters():
            groups.append({"params": extra, "lr": o.lr, "weight_decay": 0.0})
        for group in groups:
            group["initial_lr"] = group["lr"]
        return torch.optim.AdamW(groups, betas=o.betas)

    # ---- continuing

    def recipe(self) -> dict[str, Any]:
        """Return all options that decide what is learnt from the same data, and how it is measured, as plain data."""
        parts: dict[str, Any] = {
            "backbone": self.options,
            "optim": self.optim,
            "tune": self.tune,
            "target": self.target,
            "inference": self.inference,
        }
        if self.evaluation is not None:
            parts["evaluation"] = self.evaluation
        plain: dict[str, Any] = {name: asdict(part) for name, part in parts.items()}
        if self.inference.focal is None:
            del plain["inference"]["focal"]  # which older checkpoints lack
        for name in ("longer", "square"):
            if not plain["inference"][name]:
                del plain["inference"][name]
        del plain["inference"]["reading"]  # which the data compare
        for part, name in (
            ("tune", "warmup_steps"), ("tune", "patch_steps"), ("backbone", "channels"), ("backbone", "channels_from"),
        ):  # fmt: skip
            if not plain[part][name]:
                del plain[part][name]  # like this
        plain |= {"head": self.head_options, "steps": self.steps, "seed": self.seed, "task": type(self).__name__}
        return json.loads(json.dumps(plain | self.loss_recipe()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recipe and the numbers of the constant prediction with the weights."""
        checkpoint["recipe"], checkpoint["constant"] = self.recipe(), self.constant

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another recipe and name what differs; parts that an older one lacks may differ."""
        saved = checkpoint.get("recipe", {})
        known = {key: value for key, value in self.recipe().items() if key in saved or key not in YOUNGER}
        refuse_another(known, saved)
        self.constant = dict(checkpoint.get("constant", {}))

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        """Prepare the metrics; in the first validation of a run also those of the constant prediction."""
        self.metrics.reset()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self.constant and (predict := self.baseline(data.train)) is not None:
            self.comparing = predict, self.new_metrics().to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Apply the network as `inference` says and compare the maps with the targets, at the targets' own size."""
        target = next(t for t in (batch.clean, batch.labels, batch.depth) if t is not None)
        size = (target.shape[-2], target.shape[-1])
        if batch.cached is not None:
            maps = self.network.decode(self.features(batch)[0])
            if self.inference.refine != "none":
                assert batch.images is not None
                maps = self.network.refined(maps, self.network.backbone.normalise(batch.images))
        else:
            assert batch.images is not None
            maps = through(self.network, self.inference)(self.network.backbone.normalise(batch.images))
        maps = {name: resize(values, size, align_corners=False) for name, values in maps.items()}
        self.update_metrics(self.metrics, maps, batch)
        if self.comparing is not None:
            self.update_metrics(self.comparing[1], self.comparing[0](batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the set and show them to callbacks."""
        numbers = {f"val/{k}": v for k, v in self.numbers().items()}
        if self.comparing is not None:
            self.constant = {f"val/{k}": v for k, v in self.numbers(self.comparing[1]).items()}
            self.comparing = None
        for name, value in numbers.items():
            self.log(name, value, sync_dist=False, logger=False)
        if not self.trainer.sanity_checking:
            self.record(numbers, self.trainer.global_step)
            self.validated = numbers
            labels = getattr(self.metrics, "labels", self.metrics)
            rows = labels.per_class() if isinstance(labels, SegmentationMetrics) else {}
            self.class_ious = {name: row["iou"] for name, row in rows.items()}

    def numbers(self, metrics: Any = None) -> dict[str, float]:
        """Return the scalar metrics of the set, by default those of the network."""
        found = (self.metrics if metrics is None else metrics).compute()
        return {k: float(v) for k, v in found.items() if not isinstance(v, dict)}


def targets_of(source: LabelledSource, what: Literal["labels", "depth"]) -> Iterator[NDArray[Any]]:
    """Yield the targets (H, W) of some images, evenly spread; those in files are read without their images."""
    for index in spread(len(source), FITTED):
        if isinstance(source, FileSource):
            target = source.labels(index) if what == "labels" else source.depth(index)
        else:
            target = getattr(source.read(index), what)
        if target is not None:
            yield target


def channels(backbone: Backbone, layers: tuple[int, ...]) -> list[int]:
    """Return the number of channels of each chosen map."""
    return [backbone.spec.width_of(layer) for layer in layers]


def target_size(features: Features, choice: str) -> Size | None:
    """Return the size where the loss is computed: None for the image's, or four times the grid of the finest map."""
    if choice == "image":
        return None
    stride = min(features.strides)
    height, width = (max(1, round(4 * side / stride)) for side in features.image_size)
    return (min(height, features.image_size[0]), min(width, features.image_size[1]))
