"""k-NN of the frozen teacher during a run: the number that tells whether anything is learnt."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from dense.console import say
from dense.evaluate.examples import open_examples
from dense.evaluate.features import extract
from dense.evaluate.knn import TEMPERATURE, check_votes, knn_accuracy
from dense.evaluate.views import AsItIs, CenterCrop
from pretrain.module import DINO
from pretrain.sharding import unsharded


class KNNEvaluation(pl.Callback):
    """Weighted k-NN of labelled pictures by the teacher's features, logged as `knn`.

    Batch norm, where there is any, uses the teacher's running statistics.

    Args:
        train, val: where labelled pictures come from: folders of class folders, lists, or scenes:train and scenes:val.
        every_steps: optimiser steps between evaluations; 0 for the end of the run alone.
        resize, crop: shorter side and side of the central crop in pixels; both None to take scenes as they are.
        scenes: how many embedded scenes, train and val; scene_size: their side.
        k: neighbours.
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
    ) -> None:
        check_votes([k], TEMPERATURE)
        self.every_steps, self.batch_size, self.k = every_steps, batch_size, k
        self.train, self.val = open_examples(train, val, scenes=scenes, size=scene_size)
        self.view = AsItIs() if resize is None or crop is None else CenterCrop(resize, crop)
        self.accuracies: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Evaluate when it is time."""
        step = trainer.global_step
        if self.every_steps and step % self.every_steps == 0 and step not in self.accuracies:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the end."""
        if trainer.global_step not in self.accuracies:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Extract, vote and log, on the first process; drawing no random numbers of the run's."""
        step = trainer.global_step
        backbone = unsharded(module.backbone) if isinstance(module, DINO) else None
        if not trainer.is_global_zero or backbone is None:
            self.accuracies[step] = float("nan")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        state = torch.get_rng_state()
        found = [
            extract(
                backbone,
                ((b.images, b.labels) for b in examples.batches(self.view, self.batch_size, workers=data.workers)),
            )
            for examples in (self.train, self.val)
        ]
        torch.set_rng_state(state)
        bank, queries = (pooled.readout() for pooled in found)
        labels = [pooled.labels for pooled in found]
        assert labels[0] is not None
        assert labels[1] is not None
        accuracy = knn_accuracy(bank, labels[0], queries, labels[1], k=[self.k])[self.k]
        self.accuracies[step] = accuracy
        say(f"step {step}  {self.k}-NN {accuracy:.4f}")
        for logger in trainer.loggers:
            logger.log_metrics({"knn": accuracy}, step=step)
