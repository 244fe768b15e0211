"""k-NN of the frozen teacher during a run: the number that tells whether anything is learnt."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from dense.console import say
from dense.evaluate.classification.data import AsItIs, CenterCrop, open_examples
from dense.evaluate.classification.features import extract
from dense.evaluate.classification.knn import TEMPERATURE, check_votes, knn_accuracy
from dense.training.checkpoints import Checkpoints
from pretrain.module import DINO
from pretrain.sharding import gathered, unsharded


class KNNEvaluation(pl.Callback):
    """Weighted k-NN of labelled images by the teacher's features, logged as `knn`.

    Batch norm, where there is any, uses the teacher's running statistics.

    Args:
        train, val: where labelled images come from: folders of class folders, lists, or scenes:train and scenes:val.
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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Every process needs an image of both sets."""
        if (fewest := min(len(self.train), len(self.val))) < trainer.world_size:
            raise ValueError(f"knn: {fewest} labelled images are fewer than the {trainer.world_size} processes")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the end, but not where a signal ended the run: little time may be left."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        stopped = any(c.stopped_by for c in callbacks if isinstance(c, Checkpoints))
        stopped = trainer.strategy.reduce_boolean_decision(stopped, all=False)
        if trainer.global_step not in self.accuracies and not stopped:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Extract, vote and log, every process its share; drawing no random numbers of the run's."""
        step = trainer.global_step
        assert isinstance(module, DINO)
        backbone = unsharded(module.backbone)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        state = torch.get_rng_state()
        own = [
            extract(
                backbone,
                ((b.images, b.labels) for b in share.batches(self.view, self.batch_size, workers=data.workers)),
                device=module.device,
            )
            for share in (e.share(trainer.global_rank, trainer.world_size) for e in (self.train, self.val))
        ]
        torch.set_rng_state(state)
        (bank, labels), (queries, ground_truth) = ((pooled.readout(), pooled.labels) for pooled in own)
        assert labels is not None
        assert ground_truth is not None
        voted = knn_accuracy(gathered(bank), gathered(labels), queries, ground_truth, k=[self.k])[self.k]
        right = gathered(torch.tensor([[voted * len(ground_truth), len(ground_truth)]], device=module.device)).sum(0)
        accuracy = float(right[0] / right[1])
        self.accuracies[step] = accuracy
        if trainer.is_global_zero:
            say(f"step {step}  {self.k}-NN {accuracy:.4f}")
        for logger in trainer.loggers:
            logger.log_metrics({"knn": accuracy}, step=step)
