"""Labelled images to batches: a batch is a pure function of (seed, optimiser step, rank, world)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.console import counting, say
from dense.data.cache import FeatureCache, weights_digest
from dense.data.degrade import Degrade
from dense.data.degrade.plan import PAIRED
from dense.data.labelled.check import check_all, check_one_size
from dense.data.labelled.sample import DataError, DepthKind, Identity, LabelledSource, open_labelled
from dense.data.loader import endless_loader, workers_options
from dense.data.sampler import IndexSampler
from dense.data.transforms import Augment, EvalTransform, Sample, TrainTransform, collate
from dense.tasks.batch import Batch
from dense.tasks.degraded import DegradedImages, DegradedPatches, Stage, StagedSampler, check_plan, check_stages
from dense.training.fit import images_in_words, refuse_another

if TYPE_CHECKING:
    from dense.tasks.base import DenseTask


class Item(NamedTuple):
    """A sample, and its features where a cache holds them."""

    sample: Sample
    tensors: list[Tensor] | None = None


class Drawn(Dataset[Item]):
    """``dataset[epoch, index]``: an augmented sample, a pure function of (seed, epoch, index).

    With a cache there are so many versions of each image as it has copies, which come in turn.
    """

    def __init__(self, source: LabelledSource, transform: TrainTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: tuple[int, int]) -> Item:
        epoch, index = draw
        copy = epoch % self.cache.copies if self.cache else epoch
        return Item(self.sample(index, copy), recall(self, index, copy))

    def identity(self, index: int) -> Identity:
        """For the cache: how an image varies depends on its number, which is another when images are added or go."""
        name, version = self.source.identity(index)
        return Identity(name, f"{version}, number {index}" if self.transform.varies else version)

    def sample(self, index: int, copy: int = 0) -> Sample:
        """One version of a sample."""
        return self.transform(self.source.read(index), (self.seed, copy, index))


class Fixed(Dataset[Item]):
    """``dataset[index]``: a sample as it is evaluated."""

    def __init__(self, source: LabelledSource, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform
        self.cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        return Item(self.sample(index), recall(self, index, 0))

    def identity(self, index: int) -> Identity:
        """For the cache."""
        return self.source.identity(index)

    def sample(self, index: int, copy: int = 0) -> Sample:
        """A sample; there is one version."""
        return self.transform(self.source.read(index))


def recall(dataset: Drawn | Fixed, index: int, copy: int) -> list[Tensor] | None:
    """What the cache holds, which was filled before."""
    cache = dataset.cache
    if cache is None:
        return None
    tensors = cache.get(dataset.identity(index), copy)
    if tensors is None:
        raise RuntimeError(
            f"the features of {dataset.source.name(index)} in {cache.folder} were degraded, or the image changed, while "
            "training; run the same command again"
        )
    return tensors


class DenseData(pl.LightningDataModule):
    """Images with masks, depth or both, to train on and to validate on.

    Args:
        root: a folder of images/ with masks/ or depth/, a published data set, or scenes for the embedded ones.
        layout: folder, ade20k, voc2012, cityscapes, nyuv2 or kitti_eigen; for restoration also images (any folder of
            clean ones) or paired (input/ and target/).
        batch_size: images a process and micro-batch.
        workers: processes that load; 0 loads in the main process.
        seed: of the order of images and of their augmentation.
        crop_size: side, or height and width, of training crops; null for whole images of one size.
        augment: how training images vary.
        val_size: shorter side at which images are validated; null for their own. Targets keep their size.
        partial: samples may lack the mask or the depth.
        targets: labels, depth or both: what is read of a folder; null for what the task learns.
        classes: names and values of classes, or a YAML file, instead of classes.yaml.
        depth: scale, invalid value and kind of depth files, or a YAML file, instead of depth.yaml.
        cache: folder in which features of a frozen backbone are kept; null computes them in every step.
        copies: with a cache, how many augmented versions of each image there are; 1 without augmentation.
        val_ratio: share that is validated on, of a folder that is not split.
        kb_crop: cut KITTI's images to 352x1216 at the bottom centre.
        check: look for everything that is wrong before training; a number looks into so many samples of a split.
        scenes: embedded scenes to train and to validate on.
        scene_size: their side.
        scene_seed: of the series they belong to.
        camera_heights: range in metres for training and for validation; null for the default.
        degrade: degradation to clean images, for restoration.
        patches: [from step, side, batch size] of each stage of progressive training on patches, for restoration; null for
            crop_size and batch_size.
    """

    def __init__(
        self,
        root: str,
        layout: str = "folder",
        batch_size: int = 16,
        workers: int = 2,
        seed: int = 0,
        crop_size: int | tuple[int, int] | None = None,
        augment: Augment = Augment(),
        val_size: int | None = None,
        partial: bool = False,
        targets: list[Literal["labels", "depth"]] | None = None,
        classes: str | list[str] | dict[Any, Any] | None = None,
        depth: str | dict[str, Any] | None = None,
        cache: str | None = None,
        copies: int = 1,
        val_ratio: float = 0.1,
        kb_crop: bool = False,
        check: bool | int = True,
        scenes: tuple[int, int] = (300, 100),
        scene_size: int = 96,
        scene_seed: int = 0,
        camera_heights: tuple[tuple[float, float], tuple[float, float]] | None = None,
        degrade: Degrade | None = None,
        patches: list[tuple[int, int, int]] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: expected at least 1")
        if crop_size is not None and min(crop_size if isinstance(crop_size, tuple) else (crop_size,)) < 1:
            raise ValueError(f"data.crop_size={crop_size}: expected at least 1 pixel")
        self.root, self.layout, self.batch_size, self.workers, self.seed = root, layout, batch_size, workers, seed
        self.embedded = root == "scenes"
        options: dict[str, Any] = {
            "layout": layout, "partial": partial, "targets": targets or ["labels", "depth"], "classes": classes, "depth": depth, "val_ratio": val_ratio,
            "kb_crop": kb_crop, "size": scene_size, "seed": scene_seed,
        }  # fmt: skip
        heights = camera_heights or (None, None)
        self.train, self.val = (
            open_labelled(root, split, length=length, camera_height=height, **options)
            for split, length, height in zip(("train", "val"), scenes, heights, strict=True)
        )
        if check:
            with counting("checking images") as told:
                check_all(
                    {"train": self.train, "val": self.val},
                    limit=None if check is True else int(check),
                    progress=lambda split, done, total: told(done, total),
                )
        self.degrade, self.restores = degrade, degrade is not None or layout == "paired"
        self.stages: tuple[Stage, ...] = check_stages(patches) if patches else ()
        self.train_set: Drawn | DegradedPatches
        self.val_set: Fixed | DegradedImages
        if crop_size is None and batch_size > 1 and not self.stages:
            if augment.rescales:
                raise ValueError(
                    f"data.augment.scale={augment.scale} makes images of many sizes, which are no batch; set "
                    "data.crop_size, or data.batch_size to 1"
                )
            limit = None if check is True else int(check)
            if check and (problems := check_one_size(self.train, limit=limit)):
                raise DataError(*problems)
        if self.restores:
            check_plan(degrade, self.train, layout)
            if cache is not None or val_size is not None:
                raise ValueError(
                    "data.cache and data.val_size are not for restoration, whose images change; leave them out"
                )
            sides: list[int | tuple[int, int] | None] = [stage.side for stage in self.stages] or [crop_size]
            self.train_set = DegradedPatches(self.train, augment, sides, degrade, seed)
            self.val_set = DegradedImages(self.val, degrade)
        else:
            if self.stages:
                raise ValueError(
                    "data.patches is for restoration, which needs data.degrade, such as {kinds: {noise: [25]}}, or layout "
                    "paired; without it use data.crop_size"
                )
            self.train_set = Drawn(self.train, TrainTransform(augment, crop_size, self.depth_kind), seed)
            self.val_set = Fixed(self.val, EvalTransform(val_size))
        self.cache, self.copies = cache, copies
        self.settings: dict[str, Any] = {
            "layout": layout, "seed": seed, "crop_size": crop_size, "augment": asdict(augment), "val_size": val_size,
            "copies": None if cache is None else copies, "kb_crop": kb_crop, "patches": patches,
            "degrade": None if degrade is None else asdict(degrade),
        }  # fmt: skip
        cut = ", kb_crop" if kb_crop else ""
        self.views = {
            "train": f"{augment}, crop {crop_size}, seed {seed}, copies {copies}{cut}",
            "val": f"shorter side {val_size}{cut}",
        }

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, where there are masks."""
        return self.train.classes

    @property
    def depth_kind(self) -> DepthKind | None:
        """What depth means, where there is any."""
        return self.train.depth_kind

    @property
    def degradations(self) -> tuple[str, ...]:
        """Kinds of degradation that are measured apart, for restoration."""
        if not self.restores:
            return ()
        return self.degrade.labels() if self.degrade is not None else (PAIRED,)

    @property
    def dataset(self) -> Drawn | DegradedPatches:
        """What a pass goes through."""
        return self.train_set

    def train_dataloader(self) -> DataLoader[Item]:
        """Endless batches from the trainer's current step on."""
        return endless_loader(
            self.train_set,
            len(self.train_set),
            self.trainer,
            batch_size=self.batch_size,
            seed=self.seed,
            workers=self.workers,
            collate=self.collate,
            sampler_class=partial(StagedSampler, stages=self.stages) if self.stages else IndexSampler,
        )

    def val_dataloader(self) -> DataLoader[Item]:
        """One image at a time, for sizes differ; scenes in batches."""
        size = self.batch_size if self.embedded else 1
        return DataLoader(
            cast("Dataset[Any]", self.val_set),
            batch_size=size,
            collate_fn=self.collate,
            **workers_options(self.workers),
        )

    def collate(self, items: Sequence[Item] | Sequence[Sample]) -> Batch:
        """Targets that the whole set lacks stay away; those that one sample lacks are unknown everywhere."""
        if isinstance(items[0], Sample):
            together = collate(items)  # type: ignore[arg-type]
            return Batch(together.images, clean=together.clean, degradations=together.degradations)
        items = cast(Sequence[Item], items)
        batch = collate([i.sample for i in items], labels=self.classes is not None, depth=self.depth_kind is not None)
        if items[0].tensors is None:
            return Batch(batch.images, batch.labels, batch.depth)
        assert batch.images is not None
        cached = tuple(torch.stack(same) for same in zip(*(i.tensors or () for i in items), strict=True))
        return Batch(None, batch.labels, batch.depth, cached, (batch.images.shape[-2], batch.images.shape[-1]))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: all that batches and validations are a function of."""
        return {"settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Other images or settings are refused, naming what differs."""
        refuse_another({"data": self._settings()}, {"data": state_dict["settings"]})

    def _settings(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        total = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        own = {
            **self.settings,
            "images a step, over all processes": total,
            "classes": self.classes,
            "depth_kind": self.depth_kind,
            **self._images,
        }
        return json.loads(json.dumps(own))

    @cached_property
    def _images(self) -> dict[str, str]:
        found = {}
        for what, source in (("to train on", self.train), ("to validate on", self.val)):
            name = (lambda i, s=source: s.identity(i).name) if self.embedded else source.name
            found[what] = images_in_words(len(source), name, self.root)
        return found

    def remember(self, task: DenseTask) -> None:
        """Compute what the cache lacks of a task's frozen features; nothing without a cache."""
        if self.cache is None:
            return
        if not task.tune.frozen:
            raise ValueError("data.cache keeps features of a frozen backbone, and model.tune lets it learn; drop one")
        network, trainer = task.network, task.trainer
        if network.head.reads_pixels:
            raise ValueError("data.cache keeps features, and this head reads the images too; leave data.cache out")
        key = {
            "weights": weights_digest(network.backbone.state_dict()),
            "spec": network.backbone.spec.to_dict(),
            "layers": list(network.layers),
            "norm": network.norm,
            "precision": str(trainer.precision),
        }

        def compute(images: Tensor) -> list[Tensor]:
            with trainer.precision_plugin.forward_context():
                features = network.features(network.backbone.normalise(images.to(task.device)))
            return [*features.maps, *features.prefix]

        assert isinstance(self.train_set, Drawn)
        assert isinstance(self.val_set, Fixed)
        sets: dict[str, Drawn | Fixed] = {"train": self.train_set, "val": self.val_set}
        for split, dataset in sets.items():
            copies = self.copies if split == "train" else 1
            dataset.cache = FeatureCache(self.cache, {**key, "view": self.views[split]}, compute, copies=copies)
            if trainer.is_global_zero:
                identities = [dataset.identity(i) for i in range(len(dataset))]
                with counting(f"features of {split}") as told:
                    load = lambda i, copy, d=dataset: d.sample(i, copy).image  # noqa: E731
                    count = dataset.cache.fill(identities, load, progress=told)
                say(f"features of {split}: {count} computed, {len(identities) * copies - count} in the cache")
                if copies == 1 and isinstance(dataset, Drawn) and dataset.transform.varies:
                    say(
                        "the cache holds one version of each image, so its crop and augmentation are the same in every "
                        "epoch; --data.copies 4 keeps four"
                    )
        trainer.strategy.barrier()

    def describe(self) -> dict[str, Any]:
        """Facts for the model card."""
        return {
            "pictures": self.root,
            "layout": self.layout,
            "trained on": len(self.train),
            "validated on": len(self.val),
            "batch size": self.batch_size,
        }
