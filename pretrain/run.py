"""A whole run: from options to a backbone directory, with its model card and curves."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from dense._version import __version__
from dense.backbone import Backbone
from dense.backbone.weights.official import EXPORTS
from dense.console import hint, say, warn
from dense.data.unlabelled import open_images
from dense.data.windows import DAMAGED
from dense.files import check_writable, write
from dense.media.draw import contain, sheet, write_picture
from dense.suggest import UsageError
from dense.training.cli import TrainingCLI, quiet
from dense.training.curves import plot_curves, read_metrics
from dense.training.fit import begin, fit, stopped
from dense.training.reading import settle_reading
from pretrain.data import PretrainData
from pretrain.guides import metric_name
from pretrain.health import TrainingFailed
from pretrain.knn import KNNEvaluation
from pretrain.module import DINO
from pretrain.sharding import unsharded

DESCRIPTION = (
    "Pretrain a backbone with the objectives of DINO, iBOT, DINOv2 and DINOv3. "
    "The same command again continues a run that was stopped."
)


class PretrainCLI(TrainingCLI):
    """Options of a run beyond model, data and trainer: copies of checkpoints, and k-NN evaluation."""

    output = "runs/pretrain"

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options of checkpoints and k-NN."""
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--checkpoint.keep_every", type=int, default=0, help="steps between checkpoints that are kept; 0 for none")
        add("--knn.train", type=str | None, default=None, help="labelled images of the k-NN bank; null for no k-NN")
        add("--knn.val", type=str | None, default=None, help="labelled images that k-NN classifies")
        add("--knn.every_steps", type=int, default=0, help="steps between evaluations; 0 evaluates at the end alone")
        add("--knn.resize", type=int | None, default=256, help="shorter side; null for scenes as they are")
        add("--knn.crop", type=int | None, default=224, help="side of the central crop")
        add("--knn.scenes", type=tuple[int, int], default=(2000, 500), help="number of embedded scenes, train and val")
        add("--knn.scene_size", type=int, default=96, help="side of embedded scenes")
        add("--knn.k", type=int, default=20, help="neighbours")
        add("--knn.student", type=bool, default=False, help="also of the student, beside the teacher")
        parser.set_defaults({"trainer.log_every_n_steps": 1})

    def products(self) -> tuple[int, int]:
        """Return the student's width and the number of tokens of a batch's global crops."""
        spec, data = self.model.student.backbone.spec, self.datamodule
        views = getattr(data.views, "choices", [data.views])[0]
        side = getattr(views, "global_size", spec.image_size[0])
        return spec.dim, max(1, 2 * data.batch_size * (side // spec.patch) ** 2)

    def before_instantiate_classes(self) -> None:
        """Choose the levels of images and measure their channels, where the options ask for it."""
        super().before_instantiate_classes()
        config: Any = self.config
        root = config.data.root
        if not root.startswith("scenes:"):
            for line in settle_reading(
                config.data,
                config.model.backbone,
                lambda reading: open_images(root, reading=reading),
                Path(config.output),
            ):
                say(f"chosen: {line}")


class RunArguments(NamedTuple):
    model: DINO
    data: PretrainData
    trainer: pl.Trainer
    folder: Path
    checkpoint: dict[str, Any]
    config: str


def open_run(argv: Sequence[str], epilogue: str = "") -> RunArguments:
    """Return what the options of `dense pretrain` describe; the epilogue stands below the help."""
    quiet()
    cli = PretrainCLI(DINO, PretrainData, argv, prog="dense pretrain", description=DESCRIPTION, epilogue=epilogue)
    config: Any = cli.config
    knn = config.knn.as_dict()
    if (knn["train"] is None) != (knn["val"] is None):
        raise ValueError("k-NN needs both --knn.train and --knn.val")
    if knn["train"] is not None:
        cli.trainer.callbacks.append(KNNEvaluation(**knn, reading=cli.datamodule.reading))  # type: ignore[attr-defined]
    model, data, settings = cli.model, cli.datamodule, cli.settings()
    metadata = data.read_metadata(model.recipe.guides)
    if metadata is not None and cli.trainer.is_global_zero:
        for note in metadata.notes:
            warn(note)
        for column in metadata.columns:
            say(f"metadata to {'keep' if column.name in model.recipe.guides.keep else 'forget'}: {column}")
    return RunArguments(model, data, cli.trainer, Path(config.output), config.checkpoint.as_dict(), settings)


def run(
    model: DINO, data: PretrainData, trainer: pl.Trainer, folder: Path, checkpoint: dict[str, Any], config: str = ""
) -> int:
    """Train, from the last checkpoint of `folder` if there is one; write logs, curves and the backbone there.

    Return 0, or the exit status of a run that a signal stopped.
    """
    checkpoints = begin(trainer, folder, checkpoint, describe(model, data, trainer), config)
    data.damaged.begin(folder / DAMAGED, trainer.is_global_zero and not checkpoints.last.is_file())
    start = time.monotonic()
    try:
        fit(trainer, model, data, checkpoints)
    except TrainingFailed:
        if trainer.is_global_zero:
            plot_run(folder)
        raise
    backbone = unsharded(model.backbone)
    data.bad.gather()
    if not trainer.is_global_zero:
        return stopped(trainer, checkpoints)
    plot_run(folder)
    if bad := data.bad.report():
        print(bad)
    if damaged := data.damaged.report():
        warn(damaged)
    if status := stopped(trainer, checkpoints):
        return status
    finish(model, backbone, data, trainer, folder, time.monotonic() - start)
    return 0


def show_views(data: PretrainData, path: Path, images: int = 4, side: int = 128, mixup: bool = False) -> int:
    """Draw the first images, each with its views in the order of training; return the exit status.

    mixup: the training mixes the views of a batch, which are drawn as they are before.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"--show-views {path}: expected a file that ends in .png or .jpg")
    if path.exists():
        raise FileExistsError(f"--show-views {path} would overwrite what is there; choose another name")
    check_writable(path.parent)
    rows = []
    for index in range(min(images, len(data.dataset))):
        found = data.dataset[index]
        views = [view.permute(1, 2, 0).numpy() for view in (*found.views, *found.gram)]
        rows.append([contain(one, side) for one in (data.images.read(found.image), *views)])
    sides = [view.shape[-1] for view in (*found.views, *found.gram)]
    write_picture(path, sheet(rows, headings=["image", *(f"{n} px" for n in sides)]))
    if damaged := data.damaged.report():
        warn(damaged)
    about = f"{len(sides)} views{', before mixup' if mixup else ''}, of {', '.join(map(str, sides))} pixels"
    print(f"wrote {path}: {len(rows)} images and their {about}")
    return 0


def finish(
    model: DINO, backbone: Backbone, data: PretrainData, trainer: pl.Trainer, folder: Path, seconds: float
) -> None:
    """Write the backbone with its model card and the facts of the run, and report where they are."""
    facts = {
        **data.describe(),
        "objective": " + ".join(model.terms),
        "optimiser steps": trainer.global_step,
        **knn_facts(trainer),
        **distillation_facts(model, folder),
        **guide_facts(model, folder),
        "precision": str(trainer.precision),
        "torch": torch.__version__,
        "seconds of this session": round(seconds),
        **memory_facts(trainer),
        **({"failures named": [str(d) for d in model.diagnoses]} if model.diagnoses else {}),
        "recipe": model.recipe.to_dict(),
    }
    save_backbone(backbone, folder / "backbone", facts)
    write(folder / "facts.json", json.dumps(facts, indent=2, default=str) + "\n")
    print(f"wrote {folder / 'backbone'}; open it with dense.load_backbone({str(folder / 'backbone')!r})")
    root = str(data.root)
    images = root if Path(root).is_dir() else "PHOTO"
    hint(shlex.join(["dense", "look", images, "--backbone", str(folder / "backbone")]), "what it sees in a photo")


def memory_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the largest memory that tensors of this process held on a GPU."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return {}
    return {"accelerator memory of this session, MB": round(torch.cuda.max_memory_allocated(device) / 2**20)}


def knn_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the last k-NN accuracy, if there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, KNNEvaluation) and callback.accuracies:
            step, accuracy = list(callback.accuracies.items())[-1]
            return {f"{callback.k}-NN accuracy": f"{accuracy:.4f} at step {step}"}
    return {}


def distillation_facts(model: DINO, folder: Path) -> dict[str, Any]:
    """Return what each frozen teacher is, and the cosine reached to its features on the views of training."""
    facts: dict[str, Any] = {}
    curves = read_metrics(folder / "metrics.csv") if model.teachers else {}
    which = "without their mean" if model.recipe.teacher.subtract_mean else "with their mean"
    for n, (teacher, about) in enumerate(zip(model.recipe.teacher.frozen, model.teachers, strict=True), start=1):
        number, spec = f" {n}" if n > 1 else "", about["spec"]
        facts[f"teacher{number}"] = (
            f"{teacher.name} ({spec['name']}, patch {spec['patch']}, width {spec['dim']}, depth {spec['depth']}), "
            f"weights {teacher.weights or 'of that directory'}, digest {about['digest']}"
        )
        for name, words in (("image", "class token"), ("patch", "patches")):
            values = curves.get(f"health/{name}_cosine{number.replace(' ', '_')}", ((), ()))[1][-10:]
            if values:
                facts[f"cosine to teacher{number}, {words}"] = (
                    f"{sum(values) / len(values):.4f} (features {which}), mean of the last {len(values)} measurements "
                    "in training"
                )
    return facts


def guide_facts(model: DINO, folder: Path) -> dict[str, Any]:
    """Return what guides kept and forgot, and how well they predict it at the end of training."""
    if "guides" not in model.terms:
        return {}
    curves, facts = read_metrics(folder / "metrics.csv"), dict[str, Any]()
    for column in model.terms["guides"].columns:  # type: ignore[union-attr]
        what = "accuracy" if column.classes else "error"
        values = curves.get(f"health/guide_{metric_name(column.name)}_{what}", ((), ()))[1][-10:]
        reached = f"; {what} of its guide in training {sum(values) / len(values):.3f}" if values else ""
        task = "keeps" if column.name in model.recipe.guides.keep else "forgets"
        facts[f"{task} {column.name}"] = f"{column}{reached}, chance {column.chance:.3f}"
    return facts


def describe(model: DINO, data: PretrainData, trainer: pl.Trainer) -> str:
    """Return one line about the run."""
    spec = model.student.backbone.spec
    plan = model.plan(len(data.dataset), data.batch_size * trainer.world_size * trainer.accumulate_grad_batches)
    epochs = model.recipe.optim.warmup_epochs
    warmup = round(epochs * plan.steps_per_epoch)
    warning = f", all of them warm-up (model.optim.warmup_epochs={epochs:g} is {warmup} steps; lower it)"
    return (
        f"{spec.name}, patch {spec.patch}, width {spec.dim}, depth {spec.depth}; {len(data.dataset)} images of "
        f"{data.root}; batch {data.batch_size} x {trainer.world_size} x {trainer.accumulate_grad_batches}, "
        f"{plan.steps} steps{warning if warmup >= plan.steps else ''}, {trainer.precision}"
    )


def save_backbone(backbone: Backbone, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write config.json, model.safetensors, the model card and, for families with one, the official layout."""
    backbone.save_pretrained(folder)
    write(folder / "README.md", model_card(backbone, facts))
    if backbone.spec.family in EXPORTS:
        backbone.export_official(folder / "official.pth")


def model_card(backbone: Backbone, facts: Mapping[str, Any]) -> str:
    """Return the model card: the backbone, how to open it, the facts and the recipe of its run."""
    spec, distilled = backbone.spec, "teacher" in facts
    how = "distilled from frozen teachers" if distilled else "pretrained by self-distillation"
    whose = "The average of the student's weights" if distilled else "The teacher's backbone"
    numbers = "\n".join(f"- {k}: {v}" for k, v in facts.items() if not isinstance(v, Mapping))
    recipe = json.dumps({k: v for k, v in facts.items() if isinstance(v, Mapping)}, indent=2, default=str)
    return f"""---
library_name: dino-dense
tags: [dino-dense, self-supervised, image-feature-extraction]
---
# {spec.name}, {how}

{whose} of a run of dino-dense {__version__}: patch {spec.patch}, width {spec.dim}, depth {spec.depth}.

```python
import dense
backbone = dense.load_backbone("PATH/TO/THIS/FOLDER", frozen=True)
```

## The run

{numbers}

```json
{recipe}
```
"""


def plot_run(folder: Path) -> None:
    """Draw loss.png and health.png of a run from its metrics.csv, if there is one."""
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        return
    curves = read_metrics(metrics)
    plot_curves(curves, ["loss", "lr", "knn"], folder / "loss.png", "loss")
    health = [name for name in curves if name.startswith("health/")]
    plot_curves(curves, health, folder / "health.png", "health")
