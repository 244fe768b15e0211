"""The data module of dense tasks: a batch is a pure function of (seed, optimiser step, rank, world)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.console import counting, say
from dense.data.cache import FeatureCache
from dense.data.degrade import Degrade
from dense.data.degrade.plan import PAIRED
from dense.data.labelled.check import check_all, check_one_size
from dense.data.labelled.layouts import LAYOUTS
from dense.data.labelled.open import current_layout, open_training
from dense.data.labelled.sample import Batch, DataError, DepthKind, Identity, LabelledSource, Sample, collate
from dense.data.loader import endless_loader, workers_options
from dense.data.sampler import IndexSampler
from dense.data.transforms import Augment, EvalTransform, TrainTransform
from dense.tasks.degraded import DegradedImages, DegradedPatches, Stage, StagedSampler, check_plan, check_stages
from dense.training.fit import images_in_words, refuse_another

TARGETS: tuple[Literal["labels", "depth"], ...] = ("labels", "depth")


@dataclass(frozen=True)
class DataFacts:
    """What a task must know of its data to build a network.

    Args:
        classes: class names; None without masks.
        depth_kind: kind of the depth; None without depth.
        val_targets: targets of the validation images: labels, depth or both.
        evaluation_crop: the region in which the published protocol of these images measures depth.
        degradations: kinds of degradation that are measured separately; empty for undegraded images.
    """

    classes: tuple[str, ...] | None = None
    depth_kind: DepthKind | None = None
    val_targets: tuple[str, ...] = TARGETS
    evaluation_crop: str = "none"
    degradations: tuple[str, ...] = ()


class LabelledImages(Dataset[Sample]):
    """Transformed labelled images, with their features where a cache holds them."""

    source: LabelledSource
    cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, copy: int = 0) -> Sample:
        """Return one version of a sample, without features."""
        raise NotImplementedError

    def identity(self, index: int) -> Identity:
        """Return the cache's key of a sample."""
        return self.source.identity(index)

    def cached_sample(self, index: int, copy: int = 0) -> Sample:
        """Return a sample with its features from the cache, which was filled before training."""
        if self.cache is None:
            return self.sample(index, copy)
        tensors = self.cache.get(self.identity(index), copy)
        if tensors is None:
            raise RuntimeError(
                f"the features of {self.source.name(index)} in {self.cache.folder} were damaged, or the image changed "
                "during training; run the same command again"
            )
        return self.sample(index, copy)._replace(cached=tuple(tensors))


class Drawn(LabelledImages):
    """``dataset[epoch, index]``: an augmented sample, a pure function of (seed, epoch, index).

    With a cache, each image has as many versions as the cache has copies; epochs go through them in turn.
    """

    def __init__(self, source: LabelledSource, transform: TrainTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, draw: tuple[int, int]) -> Sample:
        epoch, index = draw
        return self.cached_sample(index, epoch % self.cache.copies if self.cache else epoch)

    def identity(self, index: int) -> Identity:
        """Return the cache's key; augmentation depends on the index, which changes when images are added or removed."""
        name, version = self.source.identity(index)
        return Identity(name, f"{version}, number {index}" if self.transform.varies else version)

    def sample(self, index: int, copy: int = 0) -> Sample:
        return self.transform(self.source.read(index), (self.seed, copy, index))


class Fixed(LabelledImages):
    """``dataset[index]``: a sample as it is validated."""

    def __init__(self, source: LabelledSource, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, index: int) -> Sample:
        return self.cached_sample(index)

    def sample(self, index: int, copy: int = 0) -> Sample:
        return self.transform(self.source.read(index))


class DenseData(pl.LightningDataModule):
    """Images with masks, depth or both, for training and validation.

    Args:
        root: a folder of images/ with masks/ or depth/, a published data set, or scenes for the embedded ones.
        layout: folder, ade20k, voc2012, cityscapes, nyuv2 or kitti_eigen; for restoration also images (any folder of
            clean ones) or paired (input/ and target/).
        batch_size: images per process and micro-batch.
        workers: processes that load images; 0 loads in the main process.
        seed: seed of the order of images and of their augmentation.
        crop_size: side, or height and width, of training crops; null for whole images of one size.
        augment: augmentation of training images.
        val_size: shorter side to which validation images are resized; null keeps their size. Targets keep their size.
        partial: samples may lack the mask or the depth.
        targets: targets that are read from a folder, labels, depth or both; null for those that the task trains.
        answers: former name of targets.
        classes: names and values of classes, or a YAML file, instead of classes.yaml.
        depth: scale, invalid value and kind of depth files, or a YAML file, instead of depth.yaml.
        cache: folder in which features of a frozen backbone are kept; null computes them in every step.
        copies: number of augmented versions per image in the cache; 1 without augmentation.
        val_ratio: validation fraction of images without a validation set of their own; 0 trains on all of them, without
            validation, and keeps the last step's model.
        split_by: regular expression for what images have in common that stay on one side of such a split, such as the
            video in (video\\d+)/; it is searched for in the name of each file, and its first group counts.
        kb_crop: crop KITTI's images to 352x1216 at the bottom centre.
        check: check all images and targets before training; a number checks so many samples per split.
        scenes: numbers of embedded scenes for training and for validation.
        scene_size: side of the embedded scenes.
        scene_seed: seed of the series of embedded scenes.
        camera_heights: range in metres for training and for validation; null for the default.
        degrade: degradation of clean images, for restoration.
        patches: [from step, side, batch size] of each stage of progressive training on patches, for restoration; null
            for crop_size and batch_size.
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
        answers: list[Literal["labels", "depth"]] | None = None,
        classes: str | list[str] | dict[Any, Any] | None = None,
        depth: str | dict[str, Any] | None = None,
        cache: str | None = None,
        copies: int = 1,
        val_ratio: float = 0.1,
        split_by: str | None = None,
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
        layout = str(current_layout(layout))
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: expected at least 1")
        if crop_size is not None and min(crop_size if isinstance(crop_size, tuple) else (crop_size,)) < 1:
            raise ValueError(f"data.crop_size={crop_size}: expected at least 1 pixel")
        if answers is not None:
            warnings.warn("data.answers is now called data.targets", FutureWarning, stacklevel=1)
        self.root, self.layout, self.batch_size, self.workers, self.seed = root, layout, batch_size, workers, seed
        self.embedded = root == "scenes"
        options: dict[str, Any] = {
            "layout": layout, "partial": partial, "targets": targets or answers or TARGETS, "classes": classes,
            "depth": depth, "val_ratio": val_ratio, "kb_crop": kb_crop, "size": scene_size, "seed": scene_seed,
            "split_by": split_by,
        }  # fmt: skip
        of_train, of_val = (
            {"length": length, "camera_height": height}
            for length, height in zip(scenes, camera_heights or (None, None), strict=True)
        )
        self.train, self.val = open_training(root, train=of_train, val=of_val, **options)
        limit = None if check is True else int(check)
        if check:
            with counting("checking images") as count:
                sources = {"train": self.train, "val": self.val}
                check_all(sources, limit=limit, progress=lambda split, done, total: count(done, total))
        self.degrade, self.restores = degrade, degrade is not None or layout == "paired"
        self.stages: tuple[Stage, ...] = check_stages(patches) if patches else ()
        self.train_set: Drawn | DegradedPatches
        self.val_set: Fixed | DegradedImages
        if crop_size is None and batch_size > 1 and not self.stages:
            if augment.rescales:
                raise ValueError(
                    f"data.augment.scale={augment.scale} makes images of many sizes, which form no batch; set "
                    "data.crop_size, or data.batch_size to 1"
                )
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
                    "data.patches is for restoration, which needs data.degrade, such as {kinds: {noise: [25]}}, or "
                    "layout paired; without it use data.crop_size"
                )
            self.train_set = Drawn(self.train, TrainTransform(augment, crop_size, self.train.depth_kind), seed)
            self.val_set = Fixed(self.val, EvalTransform(val_size))
        self.cache, self.copies = cache, copies
        self.settings: dict[str, Any] = {
            "layout": layout, "seed": seed, "crop_size": crop_size, "augment": asdict(augment), "val_size": val_size,
            "copies": None if cache is None else copies, "kb_crop": kb_crop, "patches": patches,
            "degrade": None if degrade is None else asdict(degrade),
        }  # fmt: skip
        cut = ", kb_crop" if kb_crop else ""
        self.views = {  # how images are prepared, for the cache
            "train": f"{augment}, crop {crop_size}, seed {seed}, copies {copies}{cut}",
            "val": f"shorter side {val_size}{cut}",
        }

    @cached_property
    def facts(self) -> DataFacts:
        """What a task must know of these data."""
        known = {"labels": self.val.classes, "depth": self.val.depth_kind}
        kinds = () if not self.restores else (PAIRED,) if self.degrade is None else self.degrade.labels()
        return DataFacts(
            classes=self.train.classes,
            depth_kind=self.train.depth_kind,
            val_targets=tuple(name for name, present in known.items() if present is not None),
            evaluation_crop=LAYOUTS[self.layout].evaluation_crop if self.layout in LAYOUTS else "none",
            degradations=tuple(kinds),
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return endless batches from the trainer's current step on."""
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

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return one image at a time, since sizes differ; embedded scenes in batches."""
        return DataLoader(
            cast("Dataset[Any]", self.val_set),
            batch_size=self.batch_size if self.embedded else 1,
            collate_fn=self.collate,
            **workers_options(self.workers),
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch with the targets of the data; a target that one sample lacks is unknown everywhere."""
        facts = self.facts
        labels, depth = facts.classes is not None, facts.depth_kind is not None
        batch = collate(samples, labels=labels and not self.restores, depth=depth and not self.restores)
        if samples[0].cached is None:
            return batch
        assert batch.images is not None
        cached = tuple(torch.stack(same) for same in zip(*(s.cached or () for s in samples), strict=True))
        return batch._replace(images=None, cached=cached, size=(batch.images.shape[-2], batch.images.shape[-1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the settings of which batches and validations are a function."""
        return {"settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other images or settings and name what differs."""
        refuse_another({"data": self._settings()}, {"data": state_dict["settings"]})

    def _settings(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        total = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        settings = {
            **self.settings,
            "images a step, over all processes": total,
            "classes": self.facts.classes,
            "depth_kind": self.facts.depth_kind,
            **self._images,
        }
        return json.loads(json.dumps(settings))

    @cached_property
    def _images(self) -> dict[str, str]:
        found = {}
        for split, source in (("to train on", self.train), ("to validate on", self.val)):
            name = (lambda i, s=source: s.identity(i).name) if self.embedded else source.name
            found[split] = images_in_words(len(source), name, self.root)
        return found

    def fill_cache(
        self, compute: Callable[[Tensor], list[Tensor]], key: Mapping[str, Any], splits: Sequence[str]
    ) -> None:
        """Compute the features that the cache lacks, and read those of `splits` from it from now on.

        compute: uint8 images (B, 3, H, W) to features. key: everything but the images that the features depend on.
        """
        assert self.cache is not None
        trainer: Any = self.trainer
        for split in splits:
            dataset = self.train_set if split == "train" else self.val_set
            assert isinstance(dataset, LabelledImages)
            copies = self.copies if split == "train" else 1
            dataset.cache = FeatureCache(self.cache, {**key, "view": self.views[split]}, compute, copies=copies)
            if trainer.is_global_zero:
                identities = [dataset.identity(i) for i in range(len(dataset))]
                load = lambda i, copy, d=dataset: d.sample(i, copy).image  # noqa: E731
                with counting(f"features of {split}") as progress:
                    count = dataset.cache.fill(identities, load, progress=progress)
                say(f"features of {split}: {count} computed, {len(identities) * copies - count} in the cache")
                if copies == 1 and isinstance(dataset, Drawn) and dataset.transform.varies:
                    say(
                        "the cache holds one version of each image, so its crop and augmentation are the same in every "
                        "epoch; --data.copies 4 keeps four"
                    )
        trainer.strategy.barrier()

    def describe(self) -> dict[str, Any]:
        """Return facts for the model card."""
        return {
            "images": self.root,
            "layout": self.layout,
            "trained on": len(self.train),
            "validated on": len(self.val),
            "batch size": self.batch_size,
        }
