"""Pictures to batches of views: a batch is a pure function of (seed, optimiser step, rank, world)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from dense.data.loader import endless_loader
from dense.data.pictures import open_pictures
from dense.training.continuing import pictures_in_words, refuse_another
from pretrain.mixed import StepSampler
from pretrain.pictures import BadPictures, Sample, ViewsOf, collate
from pretrain.views import MultiCrop


class PretrainData(pl.LightningDataModule):
    """Unlabelled pictures and their views.

    Args:
        root: a folder of pictures (flat or nested), a text list, .tar shards, or scenes:train for the embedded scenes.
        views: the augmentation, with every published number; pretrain.mixed.MixedCrops for sizes that change.
        batch_size: pictures a process and micro-batch.
        workers: processes that load; 0 loads in the main process.
        seed: of the order of pictures and of their augmentation.
        scenes: how many embedded scenes there are.
        scene_size: their side in pixels.
        at_least: decode JPEG pictures at a part of their size that leaves their shorter side so many pixels; null for
            whole pictures.
    """

    def __init__(
        self,
        root: str,
        views: MultiCrop = MultiCrop(),
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        scenes: int = 20_000,
        scene_size: int = 96,
        at_least: int | None = None,
    ) -> None:
        super().__init__()
        self.root, self.views, self.batch_size, self.workers, self.seed = root, views, batch_size, workers, seed
        self.at_least = at_least
        self.scene_size = scene_size if root.startswith("scenes:") else None
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: expected at least 1")
        self.pictures = open_pictures(root, length=scenes, size=scene_size, remember=True, at_least=at_least)
        self.dataset = ViewsOf(self.pictures, views, seed)
        self.bad = BadPictures(self.pictures)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Endless batches from the trainer's current step on."""
        return endless_loader(
            self.dataset,
            len(self.dataset),
            self.trainer,
            batch_size=self.batch_size,
            seed=self.seed,
            workers=self.workers,
            collate=collate,
            sampler_class=StepSampler,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the settings that a batch is a function of, and the pictures that could not be read."""
        self.bad.gather()
        return {"settings": self._settings(), "bad": sorted(self.bad.indices)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Other settings are refused, naming what differs, but for those of which an older checkpoint says nothing."""
        saved = state_dict["settings"]
        known = {key: value for key, value in self._settings().items() if key in saved}
        refuse_another({"data": known}, {"data": saved})
        self.bad.add(state_dict["bad"])

    def _settings(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        processes, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        views = getattr(self.views, "choices", [self.views])
        return {
            "seed": self.seed,
            "pictures a step, over all processes": self.batch_size * processes * micro_batches,
            "pictures": len(self.dataset),
            "which": self._which,
            "scene_size": self.scene_size,
            "at_least": self.at_least,
            "views": {str(number): crops.options for number, crops in enumerate(views)},
        }

    @cached_property
    def _which(self) -> str:
        return pictures_in_words(len(self.pictures), self.pictures.name, self.root)

    def describe(self) -> dict[str, object]:
        """Facts for the model card."""
        return {
            "pictures": str(Path(self.root)),
            "number of pictures": len(self.dataset),
            "batch size": self.batch_size,
        }
