"""A run of `dense train`: its options, early stopping, its best model, and what it leaves in its folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch

from dense import tasks
from dense.backbone.weights.names import directory
from dense.files import write
from dense.losses.base import DepthKind
from dense.model.card import as_json, format_number, model_card, versions
from dense.model.network import DenseModel
from dense.tasks.base import DenseTask
from dense.tasks.data import TARGETS, DenseData, Drawn
from dense.tasks.tuning import LoRALinear, merge_lora
from dense.training.cli import TrainingCLI, quiet
from dense.training.curves import distinct, plot_curves, read_metrics
from dense.training.fit import begin, fit, stopped

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
        refuse_weights_of_a_directory(config.model.init_args)
        trained = [name for name in TARGETS if name in resolve_name(config.model.class_path).outputs]
        if config.data.targets is None and config.data.answers is None:
            config.data.targets = trained or None
        steps = config.model.init_args.steps
        config.trainer.max_steps = steps
        if config.val_every < 0:
            raise ValueError(f"val_every={config.val_every}: expected a number of steps, or 0 for ten in a run")
        every = min(config.val_every or steps // 10, steps)  # at least one validation
        config.trainer.val_check_interval = max(1, every) * (config.trainer.accumulate_grad_batches or 1)


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
    best = BestModel(folder / "model", config.patience)
    about = describe(task, data, trainer)
    checkpoints = begin(trainer, folder, config.checkpoint.as_dict(), about, cli.parser.dump(config), [best])
    start = time.monotonic()
    fit(trainer, task, data, checkpoints)
    if not trainer.is_global_zero:
        return stopped(trainer, checkpoints)
    if (folder / "metrics.csv").is_file():
        curves = read_metrics(folder / "metrics.csv")
        plot_curves(curves, distinct(list(curves)), folder / "curves.png", folder.name)
    if status := stopped(trainer, checkpoints):
        return status
    finish(task, data, trainer, folder, best, time.monotonic() - start)
    return 0


class BestModel(pl.Callback):
    """Save the model whenever the monitored metric improves; stop early when it does not.

    Args:
        folder: the saved directory of the best model.
        patience: early stopping after so many validations without improvement; 0 for none.
    """

    def __init__(self, folder: str | Path, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: expected 0 or more validations")
        self.folder, self.patience = Path(folder), patience
        self.best: dict[str, float] = {}  # metrics of the best validation, and its step
        self.waited = 0  # validations since then

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a continued run that early stopping has ended before."""
        if self.patience and self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model if it is the best so far, else count towards early stopping."""
        assert isinstance(pl_module, DenseTask)
        name = pl_module.monitor
        if trainer.sanity_checking or name not in pl_module.validated:
            return
        value = pl_module.validated[name]
        sign = 1 if pl_module.mode == "max" else -1
        if not self.best or sign * value > sign * self.best[name] or self.best[name] != self.best[name]:
            self.best, self.waited = {"step": trainer.global_step, **pl_module.validated}, 0
            if trainer.is_global_zero:
                save(pl_module.network, self.folder)
        else:
            self.waited += 1
            if self.patience and self.waited >= self.patience:
                trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = dict(state_dict["best"]), int(state_dict["waited"])


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
        network.backbone.pad_to_patch_multiple(torch.empty(1, 3, *network.backbone_size(crop), device="meta"))
    except ValueError as error:
        raise ValueError(f"data.crop_size={data.settings['crop_size']}: {error}") from None


def finish(
    task: DenseTask, data: DenseData, trainer: pl.Trainer, folder: Path, best: BestModel, seconds: float
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
        "numbers": {k: v for k, v in best.best.items() if k != "step"},
        "versions": versions(),
    }
    model.save_pretrained(best.folder)
    write(best.folder / "README.md", model_card(model))
    results = {"numbers": model.facts["numbers"], "facts": model.facts, "seconds of this session": round(seconds, 1)}
    write(folder / "results.json", as_json(results))
    if model.facts["numbers"]:
        print(f"validation at step {model.facts['best step']}, the best of the run:")
    for name, value in model.facts["numbers"].items():
        print(f"{name}: {format_number(value)}")


def examples(data: DenseData, most: int = 4) -> tuple[list[Any], tuple[str, ...] | None, DepthKind | None]:
    """Return validation samples spread over the set, the class names and the kind of depth, for a sheet."""
    count = min(most, len(data.val_set))
    samples = [data.val_set.sample(i * len(data.val_set) // count) for i in range(count)]
    return samples, data.facts.classes, data.facts.depth_kind


def describe(task: DenseTask, data: DenseData, trainer: pl.Trainer) -> str:
    """Return one line about the run."""
    warmup = task.optim.warmup(task.steps)
    shorter = f", warm-up of {warmup} instead of {task.optim.warmup_steps}" if warmup < task.optim.warmup_steps else ""
    return (
        f"{type(task).__name__}, {task.head_options.get('name')} head on {task.options.name}"
        f"{'' if task.options.weights or directory(task.options.name) else ' with random initialisation'}; "
        f"{len(data.train)} images of {data.root}, {len(data.val)} to validate on; batch {data.batch_size} x "
        f"{trainer.world_size} x {trainer.accumulate_grad_batches}, {task.steps} steps{shorter}, {trainer.precision}"
    )
