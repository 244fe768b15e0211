"""k-NN evaluation of the teacher's features during a run, and of the student's if wanted."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from dense.backbone import Backbone
from dense.console import say
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.evaluate.classification.data import AsItIs, CenterCrop, open_examples
from dense.evaluate.classification.features import extract
from dense.evaluate.classification.knn import TEMPERATURE, check_votes, knn_accuracy
from dense.training.checkpoints import Checkpoints
from pretrain.module import DINO
from pretrain.sharding import gathered, unsharded


class KNNEvaluation(pl.Callback):
    """Classifies labelled images by weighted k-NN of the teacher's features, and logs the accuracy as `knn`.

    Batch norm, if there is any, uses the teacher's running statistics.

    Args:
        train, val: labelled images: folders of class folders, lists, or scenes:train and scenes:val.
        every_steps: optimiser steps between evaluations; 0 evaluates at the end of the run alone.
        resize, crop: shorter side and side of the central crop in pixels; both None leave scenes as they are.
        scenes: number of embedded scenes, train and val; scene_size: their side.
        k: neighbours.
        student: also of the student's features, logged as `knn_student`.
        reading: channels and levels of the labelled images, those of the training.
    """

    def __init__(
        self,
        train: str,
        val: str,
        every_steps: int = 0,
        resize: int | None = 256,
        crop: int | None = 224,
        scenes: tuple[int, int] = (2000, 500),
        scene_size: int = 96,
        batch_size: int = 64,
        k: int = 20,
        student: bool = False,
        reading: Reading = PHOTOGRAPHS,
    ) -> None:
        check_votes([k], TEMPERATURE)
        for root in (train, val):
            if root.startswith("scenes:") and not reading.colours:
                raise ValueError(f"knn: {root} is RGB, and the training reads {reading}; name labelled images of these")
        self.every_steps, self.batch_size, self.k, self.student = every_steps, batch_size, k, student
        self.train, self.val = open_examples(train, val, scenes=scenes, size=scene_size, reading=reading)
        self.view = AsItIs() if resize is None or crop is None else CenterCrop(resize, crop)
        self.accuracies: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.every_steps and step % self.every_steps == 0 and step not in self.accuracies:
            self.evaluate(trainer, pl_module)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse sets with fewer images than processes, each of which needs one."""
        if (fewest := min(len(self.train), len(self.val))) < trainer.world_size:
            raise ValueError(f"knn: {fewest} labelled images are fewer than the {trainer.world_size} processes")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate at the end, but not after a signal, which may leave little time."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        stopped = any(c.stopped_by for c in callbacks if isinstance(c, Checkpoints))
        stopped = trainer.strategy.reduce_boolean_decision(stopped, all=False)
        if trainer.global_step not in self.accuracies and not stopped:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate and log; each process extracts its part. The random state of the run is kept."""
        step = trainer.global_step
        assert isinstance(module, DINO)
        state = torch.get_rng_state()
        found = {"knn": self.accuracy(trainer, unsharded(module.backbone))}
        if self.student:
            student: Any = module.student.backbone
            found["knn_student"] = self.accuracy(trainer, unsharded(student))
        torch.set_rng_state(state)
        self.accuracies[step] = found["knn"]
        if trainer.is_global_zero:
            of_student = f", student {found['knn_student']:.4f}" if self.student else ""
            say(f"step {step}  {self.k}-NN {found['knn']:.4f}{of_student}")
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)

    def accuracy(self, trainer: pl.Trainer, backbone: Backbone) -> float:
        """Return the accuracy of a backbone; every process takes part."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        device = next(backbone.parameters()).device
        pools = [
            extract(
                backbone,
                ((b.images, b.labels) for b in share.batches(self.view, self.batch_size, workers=data.workers)),
                device=device,
            )
            for share in (e.share(trainer.global_rank, trainer.world_size) for e in (self.train, self.val))
        ]
        (bank, labels), (queries, targets) = ((pooled.readout(), pooled.labels) for pooled in pools)
        assert labels is not None
        assert targets is not None
        local = knn_accuracy(gathered(bank), gathered(labels), queries, targets, k=[self.k])[self.k]
        correct, total = gathered(torch.tensor([[local * len(targets), len(targets)]], device=device)).sum(0)
        return float(correct / total)
