"""`dense pretrain`: from a folder of unlabelled images to a backbone directory."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from dense.backbone import Backbone
from dense.training.cli import TrainingCLI, quiet
from dense.training.fit import begin, fit, stopped
from pretrain.data import PretrainData
from pretrain.health import TrainingFailed
from pretrain.knn import KNNEvaluation
from pretrain.module import DINO
from pretrain.product import plot_run, save_product
from pretrain.sharding import unsharded

DESCRIPTION = "Pretrain a backbone with the objectives of DINO, iBOT, DINOv2 and DINOv3. The same command again continues a run that was stopped."


class PretrainCLI(TrainingCLI):
    """Options of a run beyond model, data and trainer."""

    output = "runs/pretrain"

    def add_arguments_to_parser(self, parser: Any) -> None:
        """And when k-NN is measured."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint.keep_every", type=int, default=0, help="steps between copies kept for good")
        parser.add_argument("--knn.train", type=str | None, default=None, help="labelled images for k-NN; none without")
        parser.add_argument("--knn.val", type=str | None, default=None, help="labelled images that k-NN classifies")
        parser.add_argument("--knn.every_steps", type=int, default=0, help="steps between k-NN; 0 for the end alone")
        parser.add_argument(
            "--knn.resize", type=int | None, default=256, help="shorter side; null for scenes as they are"
        )
        parser.add_argument("--knn.crop", type=int | None, default=224, help="side of the central crop")
        parser.add_argument(
            "--knn.scenes", type=tuple[int, int], default=(2000, 500), help="embedded scenes, if they serve"
        )
        parser.add_argument("--knn.scene_size", type=int, default=96, help="their side")
        parser.add_argument("--knn.k", type=int, default=20, help="neighbours")
        parser.set_defaults({"trainer.log_every_n_steps": 1})


def main(argv: Sequence[str]) -> int:
    """The verb."""
    quiet()
    cli = PretrainCLI(DINO, PretrainData, argv, prog="dense pretrain", description=DESCRIPTION)
    config: Any = cli.config
    folder = Path(config.output)
    knn = config.knn.as_dict()
    if (knn["train"] is None) != (knn["val"] is None):
        raise ValueError("k-NN needs both --knn.train and --knn.val")
    if knn["train"] is not None:
        cli.trainer.callbacks.append(KNNEvaluation(**knn))  # type: ignore[attr-defined]
    return run(cli.model, cli.datamodule, cli.trainer, folder, config.checkpoint.as_dict(), cli.parser.dump(config))


def run(
    model: DINO, data: PretrainData, trainer: pl.Trainer, folder: Path, checkpoint: dict[str, Any], config: str = ""
) -> int:
    """Fit, from the last checkpoint of `folder` if it has one; leaves logs, curves and the backbone there."""
    checkpoints = begin(trainer, folder, checkpoint, describe(model, data, trainer), config)
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
    if status := stopped(trainer, checkpoints):
        return status
    finish(model, backbone, data, trainer, folder, time.monotonic() - start)
    return 0


def finish(
    model: DINO, backbone: Backbone, data: PretrainData, trainer: pl.Trainer, folder: Path, seconds: float
) -> None:
    """Write the product and say where it is."""
    facts = {
        **data.describe(),
        "objective": " + ".join(model.terms),
        "optimiser steps": trainer.global_step,
        **knn_facts(trainer),
        "precision": str(trainer.precision),
        "torch": torch.__version__,
        "seconds of this session": round(seconds),
        **({"failures named": [str(d) for d in model.diagnoses]} if model.diagnoses else {}),
        "recipe": model.recipe.to_dict(),
    }
    save_product(backbone, folder / "backbone", facts)
    (folder / "facts.json").write_text(json.dumps(facts, indent=2, default=str) + "\n")
    print(f"wrote {folder / 'backbone'}; open it with dense.load_backbone({str(folder / 'backbone')!r})")


def knn_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """The last k-NN accuracy, where there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, KNNEvaluation) and callback.accuracies:
            step, accuracy = list(callback.accuracies.items())[-1]
            return {f"{callback.k}-NN accuracy": f"{accuracy:.4f} at step {step}"}
    return {}


def describe(model: DINO, data: PretrainData, trainer: pl.Trainer) -> str:
    """One line about the run."""
    spec = model.student.backbone.spec
    plan = model.plan(len(data.dataset), data.batch_size * trainer.world_size * trainer.accumulate_grad_batches)
    epochs = model.recipe.optim.warmup_epochs
    wanted = round(epochs * plan.steps_per_epoch)
    warming = f", all of them warm-up (model.optim.warmup_epochs={epochs:g} is {wanted} steps; lower it)"
    return (
        f"{spec.name}, patch {spec.patch}, width {spec.dim}, depth {spec.depth}; {len(data.dataset)} images of {data.root}; "
        f"batch {data.batch_size} x {trainer.world_size} x {trainer.accumulate_grad_batches}, "
        f"{plan.steps} steps{warming if wanted >= plan.steps else ''}, {trainer.precision}"
    )
