"""A run of `dense train`: its options, early stopping, its best model, and what it leaves in its folder."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch

from dense import tasks
from dense.backbone.load import spec_of
from dense.backbone.spec import BackboneSpec
from dense.backbone.weights.names import directory
from dense.console import say, warn
from dense.data.labelled.open import class_target, draw, open_labelled
from dense.data.labelled.sample import LabelledSource
from dense.data.levels import Reading
from dense.data.transforms import new_size
from dense.data.windows import DAMAGED, surveyed
from dense.files import write
from dense.losses.base import DepthKind
from dense.model.card import as_json, format_number, model_card, versions
from dense.model.network import DenseModel
from dense.tasks.auto import choose
from dense.tasks.base import DenseTask
from dense.tasks.data import KNOWN, TARGETS, DenseData, Drawn
from dense.tasks.options import BackboneOptions
from dense.tasks.tuning import LoRALinear, merge_lora
from dense.training.cli import TrainingCLI, quiet
from dense.training.curves import distinct, plot_curves, read_metrics
from dense.training.fit import begin, fit, stopped
from dense.training.logs import validation_line
from dense.training.reading import settle_reading

SCALES_APART = 1.5  # between what training and validation see, above which the run warns
FEW = 4  # validations in a run, up to which close ones are decided by a second metric
CLOSE = 0.02  # relative difference of the monitored metric that decides nothing among so few
DESCRIPTION = "Train a head on labelled images. The same command again continues a run that was stopped."


class TrainCLI(TrainingCLI):
    """The command line of a head's training."""

    output = "runs/train"

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options of validation and early stopping."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--val_every", type=int, default=0, help="steps between validations; 0 for ten in a run")
        parser.add_argument(
            "--patience",
            type=int,
            default=0,
            help="early stopping after so many validations without improvement; 0 for none",
        )
        parser.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.check_val_every_n_epoch": None})

    def before_instantiate_classes(self) -> None:
        """Check the backbone, and pass on what data and trainer need from the task: its targets and its steps."""
        super().before_instantiate_classes()
        config: Any = self.config
        refuse_null(config.model.init_args)
        refuse_weights_of_a_directory(config.model.init_args)
        trained = [name for name in KNOWN if name in resolve_name(config.model.class_path).outputs]
        if config.data.targets is None and config.data.answers is None:
            data, kind = config.data, config.model.init_args.get("kind")
            if kind == "semantic":
                trained = [class_target(data.root, "train", data.layout, data.annotations)]
            data.targets = trained or None
        self.chosen = choose_values(config)
        steps = config.model.init_args.steps
        config.trainer.max_steps = steps
        if config.val_every < 0:
            raise ValueError(f"val_every={config.val_every}: expected a number of steps, or 0 for ten in a run")
        every = min(config.val_every or steps // 10, steps)  # at least one validation
        config.trainer.val_check_interval = max(1, every) * (config.trainer.accumulate_grad_batches or 1)

    def products(self) -> tuple[int, int]:
        """Return the width of the backbone and the number of tokens of a batch."""
        data: Any = self.datamodule
        spec, size = self.model.build_for(data.facts).backbone.spec, data.settings["crop_size"]
        height, width = (size, size) if isinstance(size, int) else size or spec.image_size
        return spec.dim, max(1, data.batch_size * height * width // spec.patch**2)


def choose_values(config: Any) -> list[str]:
    """Replace the values that are `auto`, print the choice and the reason of each, and return those lines.

    Data and model then have the same working size, whichever of them names it.
    """
    data, backbone, inference = config.data, config.model.init_args.backbone, config.model.init_args.inference
    if data.val_size is not None and inference.resize is None:  # the former name warns in the data module
        inference.resize = data.val_size
    if data.resize is None:
        data.resize = inference.resize

    def open_source(reading: Reading | None = None) -> LabelledSource:
        source = open_labelled(
            data.root, "train", layout=data.layout, partial=data.partial, targets=data.targets or TARGETS,
            classes=data.classes, depth=data.depth, annotations=data.annotations, val_ratio=data.val_ratio,
            split_by=data.split_by, kb_crop=data.kb_crop, length=data.scenes[0], size=data.scene_size,
            seed=data.scene_seed, reading=Reading.of(data.levels, data.channels) if reading is None else reading,
        )  # fmt: skip
        source = source if data.train_images is None else draw(source, data.train_images, data.seed)
        return source if data.windows is None else surveyed(source)

    accelerated = config.trainer.accelerator != "cpu" and (torch.cuda.is_available() or torch.mps.is_available())

    def spec() -> BackboneSpec:
        return spec_of(backbone.name, backbone.weights, **BackboneOptions(**backbone.as_dict()).changes)

    lines = [] if data.root == "scenes" else settle_reading(data, backbone, open_source, Path(config.output))
    lines += choose(config, open_source, spec, accelerated)
    for line in lines:
        say(f"chosen: {line}")
    if inference.resize is None:
        inference.resize = data.resize
    return lines


def refuse_null(options: Any) -> None:
    """Raise for groups of options that are null."""
    for name in ("backbone", "backbone.arguments", "head", "inference", "perception"):
        group, _, key = name.rpartition(".")
        inside = options.get(group) if group else options
        if inside is not None and key in inside and inside[key] is None:
            advice = {
                "perception": "; --model.perception.weight 0 switches it off",
                "backbone.arguments": "; {} means none",
            }.get(name, "; leave it out for those of the recipe")
            raise ValueError(f"model.{name} is null: expected options{advice}")


def refuse_weights_of_a_directory(options: Any) -> None:
    """Raise, before any image is read, where a recipe's weights and size would be applied to a saved backbone."""
    backbone = options.get("backbone")
    if backbone and backbone.weights and directory(backbone.name):
        message = f"{backbone.name} brings its own weights, not {backbone.weights}; add --model.backbone.weights null"
        if backbone.arguments:
            arguments = f"the recipe's {dict(backbone.arguments)}"
            message += f", and --model.backbone.arguments {{}} ({arguments}), unless it has that size"
        raise ValueError(message)


def open_run(argv: Sequence[str], epilogue: str = "") -> TrainCLI:
    """Parse the options of a run and build its task, data and trainer. epilogue: what stands below the help."""
    quiet()
    for name in tasks.__all__:
        getattr(tasks, name)  # the parser knows only tasks that are imported
    return TrainCLI(
        DenseTask, DenseData, argv, prog="dense train", description=DESCRIPTION, epilogue=epilogue,
        subclass_mode_model=True,
    )  # fmt: skip


def run(cli: TrainCLI) -> int:
    """Train, from the last checkpoint of the run's folder if it has one; write the best model, its numbers and curves.

    Returns the exit status: 0, or 128 plus the number of the signal that stopped the run.
    """
    config: Any = cli.config
    task, data, trainer, folder = cli.model, cli.datamodule, cli.trainer, Path(config.output)
    check_crop(task.build_for(data.facts), data)  # raises before there is a folder
    check_views(task, data)
    data.run_folder = folder / "features"
    validations = task.steps * (config.trainer.accumulate_grad_batches or 1) // config.trainer.val_check_interval
    best = BestModel(folder / "model", config.patience, validations)
    if not len(data.val):
        trainer.limit_val_batches = 0  # the model of the last step is kept
    about = describe(task, data, trainer)
    checkpoints = begin(trainer, folder, config.checkpoint.as_dict(), about, cli.settings(), [best])
    data.damaged.begin(folder / DAMAGED, trainer.is_global_zero and not checkpoints.last.is_file())
    start = time.monotonic()
    fit(trainer, task, data, checkpoints)
    if not trainer.is_global_zero:
        return stopped(trainer, checkpoints)
    if damaged := data.damaged.report():
        warn(damaged)
    if (folder / "metrics.csv").is_file():
        curves = read_metrics(folder / "metrics.csv")
        plot_curves(curves, distinct(curves), folder / "curves.png", folder.name)
    if status := stopped(trainer, checkpoints):
        return status
    finish(task, data, trainer, folder, best, time.monotonic() - start, cli.chosen)
    shutil.rmtree(data.run_folder, ignore_errors=True)
    return 0


class BestModel(pl.Callback):
    """Save the model whenever the monitored metric improves; stop early when it does not.

    Where a run has at most `FEW` validations, each of which is noisy, one within `CLOSE` of the best value so far is
    better if the task's second metric is not worse; a later model wins where nothing else decides. Validations of a
    network that is not settled yet, such as one with masked attention, do not end a run, and lose every tie.

    Args:
        folder: the saved directory of the best model.
        patience: early stopping after so many validations without improvement; 0 for none.
        validations: number of validations of the whole run; 0 if it is not known.
    """

    def __init__(self, folder: str | Path, patience: int = 0, validations: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: expected 0 or more validations")
        self.folder, self.patience, self.few = Path(folder), patience, 0 < validations <= FEW
        self.best: dict[str, float] = {}  # metrics of the best validation, and its step
        self.waited = 0  # validations since then
        self.classes: dict[str, float] = {}  # IoU of each class then
        self.peak: float | None = None  # best value of the monitored metric, which may be of another validation

    @property
    def stops(self) -> bool:
        """Whether early stopping ends the run."""
        return 0 < self.patience <= self.waited

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a continued run that early stopping has ended before."""
        if self.stops:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model if it is the best so far, else count towards early stopping; report the validation."""
        assert isinstance(pl_module, DenseTask)
        if trainer.sanity_checking or pl_module.monitor not in pl_module.validated:
            return
        better = self.improves(pl_module)
        now, sign = pl_module.validated[pl_module.monitor], 1 if pl_module.mode == "max" else -1
        if self.peak is None or self.peak != self.peak or sign * (now - self.peak) > 0:  # NaN is no peak
            self.peak = now
        if better:
            self.best, self.waited = {"step": trainer.global_step, **pl_module.validated}, 0
            self.classes = pl_module.class_ious
            if trainer.is_global_zero:
                save(pl_module.network, self.folder)
        elif pl_module.settled(trainer.global_step):
            self.waited += 1
            if self.stops:
                trainer.should_stop = True
        if trainer.is_global_zero:
            say(
                validation_line(
                    trainer.global_step, pl_module.steps, (pl_module.monitor, pl_module.second), pl_module.validated,
                    self.best, pl_module.constant, pl_module.baseline_name,
                )
            )  # fmt: skip

    def improves(self, task: DenseTask) -> bool:
        """Return whether the last validation is the best so far."""
        now, name, second = task.validated, task.monitor, task.second
        if not self.best or self.best[name] != self.best[name]:
            return True
        peak = self.best[name] if self.peak is None else self.peak
        gain = (now[name] - peak) * (1 if task.mode == "max" else -1)
        if self.few and second in now and abs(gain) <= CLOSE * abs(peak):
            return now[second] >= self.best[second]
        return gain > 0 or (gain == 0 and not task.settled(int(self.best["step"])))

    def reason(self, task: DenseTask, step: int) -> str | None:
        """Return why a run ended before its last step, if early stopping ended it."""
        if not self.stops or step >= task.steps:
            return None
        return (
            f"early stopping at step {step} of {task.steps}: {task.monitor} has not improved in {self.waited} "
            f"validations ({step - int(self.best['step'])} steps) and patience is {self.patience}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "peak": self.peak, "classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = dict(state_dict["best"]), int(state_dict["waited"])
        self.peak, self.classes = state_dict.get("peak"), state_dict.get("classes", {})


def save(network: DenseModel, folder: Path) -> None:
    """Write a model, with LoRA merged into the weights of its layers."""
    if any(isinstance(module, LoRALinear) for module in network.modules()):
        network = copy.deepcopy(network)
        merge_lora(network)
    network.save_pretrained(folder)


def check_crop(network: DenseModel, data: DenseData) -> None:
    """Raise where a training crop is smaller than a patch of the backbone."""
    if not isinstance(data.train_set, Drawn) or (crop := data.train_set.transform.crop_size) is None:
        return
    try:
        network.backbone.pad_to_patch_multiple(network.backbone.blank(network.backbone_size(crop)))
    except ValueError as error:
        raise ValueError(f"data.crop_size={data.settings['crop_size']}: {error}") from None


def check_views(task: DenseTask, data: DenseData) -> None:
    """Warn where training sees much less of an image, or objects at another size, than validation and prediction."""
    if not isinstance(data.train_set, Drawn) or not len(data.val):
        return
    transform, inference, image = data.train_set.transform, task.inference, data.first_image()
    size = (image.shape[-2], image.shape[-1])
    to_crop = transform.augment.scale_to == "crop"  # the longer side fits in the crop, which is then scaled
    shown = size if inference.longer is None else new_size(inference.size_of(size), *size)
    whole = max(shown) if to_crop else min(shown)
    validated = min(inference.window or whole, whole)
    trained = min(transform.crop_size) if transform.crop_size else validated
    low, high = (1.0, 1.0) if to_crop else transform.augment.scale
    depth = ", from which depth suffers most" if "depth" in task.outputs else ""
    option = "resize" if inference.longer is None and not to_crop else "longer"
    for what, one, other in (
        ("views of {} pixels", trained, validated),
        ("objects at {} times their size", math.sqrt(low * high), 1.0),
    ):
        if not 1 / SCALES_APART < one / other < SCALES_APART:
            warn(
                f"training sees {what.format(f'{one:.3g}')}, validation and prediction {other:.3g}: a factor of more "
                f"than {SCALES_APART}{depth}; set --model.inference.{option} {trained} to train and predict at one "
                "working size, or --model.inference.window to predict in windows"
            )


def finish(
    task: DenseTask,
    data: DenseData,
    trainer: pl.Trainer,
    folder: Path,
    best: BestModel,
    seconds: float,
    chosen: Sequence[str],
) -> None:
    """Write the facts and the card of the best model and results.json; print its metrics."""
    if not best.best:  # too short for a validation
        save(task.network, best.folder)
    model = DenseModel.from_pretrained(best.folder)
    model.facts = {
        **data.describe(),
        "task": type(task).__name__,
        "backbone": task.options.name,
        "weights": task.options.weights or task.options.name,
        "steps": trainer.global_step,
        "best step": best.best.get("step", trainer.global_step),
        "seed": task.seed,
        "precision": str(trainer.precision),
        "view": list(data.first_image().shape[-2:]),
        "numbers": {k: v for k, v in best.best.items() if k != "step"},
        "versions": versions(),
    } | ({"chosen": list(chosen)} if chosen else {})
    model.save_pretrained(best.folder)
    write(best.folder / "README.md", model_card(model))
    reason = best.reason(task, trainer.global_step)
    results = {
        "numbers": model.facts["numbers"], task.baseline_name: task.constant, "early stopping": reason,
        "facts": model.facts, "seconds of this session": round(seconds, 1),
    }  # fmt: skip
    write(folder / "results.json", as_json(results))
    if reason:
        print(reason)
    if model.facts["numbers"]:
        print(f"validation at step {model.facts['best step']}, the best of the run, beside the {task.baseline_name}:")
    else:
        print("no validation: this is the model of the last step")
    for name in distinct(model.facts["numbers"]):
        beside = f" ({format_number(task.constant[name])})" if name in task.constant else ""
        print(f"{name}: {format_number(model.facts['numbers'][name])}{beside}")
    if best.classes:
        ious = (f"{name} {'-' if math.isnan(iou) else f'{iou:.2f}'}" for name, iou in best.classes.items())
        print(f"IoU of each class: {', '.join(ious)}")


def examples(data: DenseData, most: int = 4) -> tuple[list[Any], tuple[str, ...] | None, DepthKind | None]:
    """Return validation samples, the class names and the kind of depth, for a sheet; without them, training samples."""
    total = len(data.val_set) or len(data.train_set)
    chosen = [i * total // min(most, total) for i in range(min(most, total))]
    samples = [data.val_set.sample(i) if len(data.val_set) else data.train_set[0, i] for i in chosen]
    return samples, data.facts.classes, data.facts.depth_kind


def describe(task: DenseTask, data: DenseData, trainer: pl.Trainer) -> str:
    """Return one line about the run."""
    warmup = task.optim.warmup(task.steps)
    shorter = f", warm-up of {warmup} instead of {task.optim.warmup_steps}" if warmup < task.optim.warmup_steps else ""
    return (
        f"{type(task).__name__}, {task.head_options.get('name')} head on {task.options.name}"
        f"{'' if task.options.weights or directory(task.options.name) else ' with random initialisation'}; "
        f"{len(data.train)} images of {data.root}, {len(data.val) or 'none'} to validate on; batch {data.batch_size} x "
        f"{trainer.world_size} x {trainer.accumulate_grad_batches}, {task.steps} steps{shorter}, {trainer.precision}"
    )
