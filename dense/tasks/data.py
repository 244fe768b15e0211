"""The data module of dense tasks: a batch is a pure function of (seed, optimiser step, rank, world)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.console import counting, say
from dense.data.cache import FeatureCache
from dense.data.degrade import Degrade
from dense.data.domain import Domain, check_domain
from dense.data.image import dark
from dense.data.labelled.check import check_all, check_one_size
from dense.data.labelled.files import FileSource
from dense.data.labelled.layouts import LAYOUTS
from dense.data.labelled.open import current_layout, draw, open_training
from dense.data.labelled.sample import Batch, DataError, DepthKind, Identity, LabelledSource, Sample, collate
from dense.data.levels import PHOTOGRAPHS, RGB, Reading
from dense.data.loader import endless_loader, workers_options
from dense.data.sampler import IndexSampler
from dense.data.transforms import Augment, EvalTransform, TrainTransform, new_size
from dense.data.windows import DamagedTiles, WindowSource, read_in_epoch
from dense.files import free_room, megabytes
from dense.tasks.degraded import (
    DegradedImages,
    DegradedPatches,
    Stage,
    StagedSampler,
    check_plan,
    check_stages,
    paired_kinds,
)
from dense.training.fit import check_batch_size, fill_cache, images_in_words, refuse_another

TARGETS: tuple[Literal["labels", "depth"], ...] = ("labels", "depth")  # that are read where none are named
KNOWN = (*TARGETS, "masks")
VERSIONS, PATCHES = 4, 350_000  # kept at most, unless data.copies says: versions per image, patches of all images
GAIN = 0.75  # features of training are kept if they are at most this share of those that the run would compute


@dataclass(frozen=True)
class DataFacts:
    """What a task must know of its data to build a network.

    Args:
        classes: class names; None without masks.
        depth_kind: kind of the depth; None without depth.
        val_targets: targets of the validation images: labels, depth, masks.
        evaluation_crop: the region in which the published protocol of these images measures depth.
        degradations: kinds of degradation that are measured separately; empty for undegraded images.
        focal: focal length in pixels at the working size; None where it is unknown.
        things: whether each class is of countable objects; None without masks of objects.
        reading: channels of the images, and what their numbers mean.
        partial: whether samples may lack a target.
        covers: whether pixels outside of objects have a class too.
    """

    classes: tuple[str, ...] | None = None
    depth_kind: DepthKind | None = None
    val_targets: tuple[str, ...] = TARGETS
    evaluation_crop: str = "none"
    degradations: tuple[str, ...] = ()
    focal: float | None = None
    things: tuple[bool, ...] | None = None
    reading: Reading = PHOTOGRAPHS
    partial: bool = False
    covers: bool = True


def window_side(crop: int | tuple[int, int] | None, augment: Augment) -> tuple[int, int]:
    """Return the size of windows from which crops are cut, so that resizing and rotating leaves them filled."""
    if crop is None:
        raise ValueError("data.windows needs data.crop_size, the side of the crops in a window")
    factor = 1.0 if augment.scale_to == "crop" else 1 / min(1.0, augment.scale[0])
    factor *= math.sqrt(2) if augment.rotate else 1.0
    height, width = crop if isinstance(crop, tuple) else (crop, crop)
    return math.ceil(height * factor), math.ceil(width * factor)


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
        return self.sample(index, copy)._replace(cached=tuple(self.cache.stored(self.identity(index), copy)))


class Drawn(LabelledImages):
    """``dataset[epoch, index]``: an augmented sample, a pure function of (seed, epoch, index).

    With a cache, each image has as many versions as the cache has copies; epochs go through them in turn. Without
    `depth`, that of embedded scenes is left out.
    """

    def __init__(self, source: LabelledSource, transform: TrainTransform, seed: int, depth: bool = True) -> None:
        self.source, self.transform, self.seed, self.depth = source, transform, seed, depth

    def __getitem__(self, draw: tuple[int, int]) -> Sample:
        epoch, index = draw
        return self.cached_sample(index, epoch % self.cache.copies if self.cache else epoch)

    def identity(self, index: int) -> Identity:
        """Return the cache's key; augmentation depends on the index, which changes when images are added or removed."""
        name, version = self.source.identity(index)
        return Identity(name, f"{version}, number {index}" if self.transform.varies else version)

    def sample(self, index: int, copy: int = 0) -> Sample:
        labelled = read_in_epoch(self.source, index, copy)
        return self.transform(labelled if self.depth else replace(labelled, depth=None), (self.seed, copy, index))


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
        layout: folder, ade20k, voc2012, cityscapes, coco, coco_panoptic, nyuv2 or kitti_eigen; for restoration also
            images (any folder of clean ones) or paired (input/ and target/).
        batch_size: images per process and micro-batch; auto for a number that suits machine and data.
        workers: processes that load images; 0 loads in the main process.
        seed: seed of the order of images and of their augmentation.
        crop_size: side, or height and width, of training crops; null for whole images of one size; auto for whole
            images where all have one shape, else squares of the working size.
        augment: augmentation of training images.
        domain: what the images are; microscopy, satellite and xray change the augmentation, except for options that are
            given explicitly, and print what they changed.
        resize: working size of training and validation images, see `Inference`; by default the model's; auto for one
            that suits the targets.
        val_size: former name of resize.
        partial: samples may lack the mask or the depth, in trainings of classes or depth; not for masks of objects.
        targets: targets that are read, labels, depth or masks of objects; null for those that the task trains.
        answers: former name of targets.
        classes: names and values of classes, or a YAML file, instead of classes.yaml.
        depth: scale, invalid value and kind of depth files, or a YAML file, instead of depth.yaml.
        annotations: a JSON file of COCO's format with the objects of a folder's images, instead of its own.
        cache: folder in which features of a frozen backbone are kept; auto keeps them in the folder of the run, where
            that saves time and the disk has room; null computes them in every step.
        copies: number of augmented versions per image in the cache; auto for 1 to 4, fewer of many or large images.
        val_ratio: validation fraction of images without a validation set of their own; 0 trains on all of them, without
            validation, and keeps the last step's model.
        split_by: regular expression for what images have in common that stay on one side of such a split, such as the
            video in (video\\d+)/; it is searched for in the name of each file, and its first group counts.
        train_images: train on so many of the training images, drawn by `seed`; null for all.
        kb_crop: crop KITTI's images to 352x1216 at the bottom centre.
        check: check all images and targets before training; a number checks so many samples per split.
        scenes: numbers of embedded scenes for training and for validation.
        scene_size: side of the embedded scenes.
        scene_seed: seed of the series of embedded scenes.
        camera_heights: range in metres for training and for validation; null for the default.
        degrade: degradation of clean images, for restoration.
        channels: of the images that are not photographs: their names, or their number; NAME_dapi.tif and NAME_actin.tif
            are one image of the channels [dapi, actin].
        levels: numbers that become black and white, [0, 4095]; auto for quantiles of the training images, per_image for
            those of each image; {black: [...], white: [...], gamma: ..., log: ...}; null for those of the file's type.
        windows: train and validate on so many random windows per image; TIFF in tiles or strips and .npy are then not
            read whole, and windows of background alone are drawn again. Null for whole images. Needs crop_size.
        patches: [from step, side, batch size] of each stage of progressive training on patches, for restoration; null
            for crop_size and batch_size.
    """

    def __init__(
        self,
        root: str,
        layout: str = "folder",
        batch_size: int | Literal["auto"] = 16,
        workers: int = 2,
        seed: int = 0,
        crop_size: int | tuple[int, int] | Literal["auto"] | None = None,
        augment: Augment = Augment(),
        domain: Domain = "photographs",
        resize: int | tuple[int, int] | Literal["auto"] | None = None,
        val_size: int | None = None,
        partial: bool = False,
        targets: list[Literal["labels", "depth", "masks"]] | None = None,
        answers: list[Literal["labels", "depth"]] | None = None,
        classes: str | list[str] | dict[Any, Any] | None = None,
        depth: str | dict[str, Any] | None = None,
        annotations: str | None = None,
        cache: str | None = None,
        copies: int | Literal["auto"] = 1,
        val_ratio: float = 0.1,
        split_by: str | None = None,
        train_images: int | None = None,
        kb_crop: bool = False,
        check: bool | int = True,
        scenes: tuple[int, int] = (300, 100),
        scene_size: int = 96,
        scene_seed: int = 0,
        camera_heights: tuple[tuple[float, float], tuple[float, float]] | None = None,
        degrade: Degrade | None = None,
        patches: list[tuple[int, int, int]] | None = None,
        windows: int | None = None,
        channels: int | list[str] | None = None,
        levels: Literal["auto", "per_image"] | list[float] | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layout = str(current_layout(layout))
        if batch_size == "auto" or crop_size == "auto" or resize == "auto":
            raise ValueError(
                "auto is a value of recipes, which dense train chooses; give batch_size, crop_size, resize"
            )
        check_domain(domain)
        check_batch_size(batch_size)
        if crop_size is not None and min(crop_size if isinstance(crop_size, tuple) else (crop_size,)) < 1:
            raise ValueError(f"data.crop_size={crop_size}: expected at least 1 pixel")
        if val_size is not None:
            warnings.warn("data.val_size is now called model.inference.resize", FutureWarning, stacklevel=1)
            resize = val_size if resize is None else resize
        if answers is not None:
            warnings.warn("data.answers is now called data.targets", FutureWarning, stacklevel=1)
        self.root, self.layout, self.batch_size, self.workers, self.seed = root, layout, batch_size, workers, seed
        self.embedded, self.partial = root == "scenes", partial
        self.reading = Reading.of(levels, channels)
        if self.embedded and self.reading not in (PHOTOGRAPHS, Reading(RGB)):
            raise ValueError(f"data.root=scenes with {self.reading}: scenes are RGB; leave channels and levels out")
        options: dict[str, Any] = {
            "layout": layout, "partial": partial, "targets": targets or answers or TARGETS, "classes": classes,
            "depth": depth, "annotations": annotations, "val_ratio": val_ratio, "kb_crop": kb_crop, "size": scene_size,
            "seed": scene_seed, "split_by": split_by, "reading": self.reading,
        }  # fmt: skip
        of_train, of_val = (
            {"length": length, "camera_height": height}
            for length, height in zip(scenes, camera_heights or (None, None), strict=True)
        )
        kept = ("layout", "classes", "depth", "annotations", "val_ratio", "kb_crop", "split_by")
        self.arrangement = {name: options[name] for name in kept}  # with which evaluate and explore open the folder
        self.train, self.val = open_training(root, train=of_train, val=of_val, **options)
        if train_images is not None:
            self.train = draw(self.train, train_images, seed)
        self.stages: tuple[Stage, ...] = check_stages(patches) if patches else ()
        self.damaged = DamagedTiles()  # of windows
        if windows is not None:
            self.train, self.val = self._windows(windows, crop_size, augment, resize)
        limit = None if check is True else int(check)
        if check:
            with counting("checking images") as count:
                sources = {"train": self.train, "val": self.val}
                check_all(sources, limit=limit, progress=lambda split, done, total: count(done, total))
            names = [] if self.embedded else self.train.images  # type: ignore[attr-defined]
            if problem := dark(names, self.reading):
                raise DataError(problem)
        self.degrade, self.restores = degrade, degrade is not None or layout == "paired"
        self.train_set: Drawn | DegradedPatches
        self.val_set: Fixed | DegradedImages
        if crop_size is None and batch_size > 1 and not self.stages:
            if augment.rescales:
                raise ValueError(
                    f"data.augment.scale={augment.scale} makes images of many sizes, which form no batch; set "
                    "data.crop_size, or data.batch_size to 1"
                )
            if check and (problems := check_one_size(self.train, resize, limit=limit)):
                raise DataError(*problems)
        if self.restores:
            if augment.noise:
                raise ValueError(
                    f"data.augment.noise={augment.noise}: for restoration the noise would be in the target as well; "
                    "use data.degrade, such as {kinds: {noise: [25]}}"
                )
            check_plan(degrade, self.train, layout)
            if cache is not None or resize is not None:
                raise ValueError(
                    "data.cache and model.inference.resize are not for restoration, whose images change and keep their "
                    "size; leave them out"
                )
            sides: list[int | tuple[int, int] | None] = [stage.side for stage in self.stages] or [crop_size]
            self.train_set = DegradedPatches(self.train, augment, sides, degrade, seed, self.reading.colours)
            self.val_set = DegradedImages(self.val, degrade)
        else:
            if self.stages:
                raise ValueError(
                    "data.patches is for restoration, which needs data.degrade, such as {kinds: {noise: [25]}}, or "
                    "layout paired; without it use data.crop_size"
                )
            with_depth = "depth" in options["targets"]
            kind = self.train.depth_kind if with_depth else None
            transform = TrainTransform(augment, crop_size, kind, resize, self.reading.colours)
            self.train_set = Drawn(self.train, transform, seed, with_depth)
            self.val_set = Fixed(self.val, EvalTransform(resize))
        self.resize, self.cache, self.copies = resize, cache, copies
        self.run_folder: Path | None = None  # where features are kept if no folder is named
        self.kept: dict[str, int] = {}  # versions per image whose features are kept, by split
        newer = augment.newer  # which older checkpoints lack
        usual = {field.name for field in fields(augment) if not field.repr} - {*newer}
        self.settings: dict[str, Any] = {
            "layout": layout, "seed": seed, "crop_size": crop_size, "resize": resize,
            "augment": {name: value for name, value in asdict(augment).items() if name not in usual},
            "copies": copies if cache else None, "kb_crop": kb_crop, "patches": patches,
            "degrade": None if degrade is None else asdict(degrade),
            **({} if self.reading == PHOTOGRAPHS else {"reading": self.reading.to_dict()}),
        } | ({"windows": windows} if windows else {})  # fmt: skip
        cut = (", kb_crop" if kb_crop else "") + (", scale to crop" if newer.pop("scale_to", None) else "")
        cut += f", {windows} windows" if windows else ""
        cut += "" if self.reading == PHOTOGRAPHS else f", {self.reading}"
        turned = "".join(f", {name} {value}" for name, value in newer.items())
        self.views = {  # how images are prepared, for the cache
            "train": f"{augment}, resize {resize}, crop {crop_size}, seed {seed}{cut}{turned}",
            "val": f"shorter side {resize}{cut}",
        }

    def _windows(
        self, count: int, crop: int | tuple[int, int] | None, augment: Augment, resize: Any
    ) -> list[WindowSource]:
        """Return windows of the images to train and to validate on."""
        if resize is not None:
            raise ValueError(f"data.resize={resize} with data.windows={count}: windows keep their pixels; leave it out")
        if not isinstance(self.train, FileSource) or not isinstance(self.val, FileSource):
            raise ValueError(f"data.windows={count}: embedded scenes are not large; leave it out")
        crop = max((stage.side for stage in self.stages), default=crop)
        sizes = window_side(crop, augment), window_side(crop, Augment())
        return [
            WindowSource(source, count, size, self.seed, self.damaged)
            for source, size in zip((self.train, self.val), sizes, strict=True)
        ]

    @cached_property
    def facts(self) -> DataFacts:
        """What a task must know of these data."""
        things = getattr(self.train, "things", None)
        labelled = self.val.classes if self.has_labels else None
        known = {"labels": labelled, "depth": self.val.depth_kind, "masks": things}
        pairs = paired_kinds(self.train, self.val) if self.restores and self.degrade is None else ()
        return DataFacts(
            classes=self.train.classes,
            depth_kind=self.train.depth_kind,
            val_targets=tuple(name for name, present in known.items() if present is not None),
            evaluation_crop=LAYOUTS[self.layout].evaluation_crop if self.layout in LAYOUTS else "none",
            degradations=pairs if self.degrade is None else tuple(self.degrade.labels()),
            focal=self._focal(),
            things=things,
            reading=self.reading,
            partial=self.partial,
            covers=getattr(self.train, "covers", True),
        )

    @property
    def has_labels(self) -> bool:
        """Whether the images have maps of classes; COCO's files hold classes of segments alone."""
        return self.train.classes is not None and getattr(self.train, "masks", True) is not None

    def _focal(self) -> float | None:
        """Return the focal length at the working size, if the data declare that of their images."""
        focal: float | None = getattr(self.train, "focal", None)
        if focal is None:
            return None
        height, width = self.train.read(0).image.shape[:2]
        return focal * new_size(self.resize, height, width)[0] / height

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
        """Return one image at a time, since sizes differ; embedded scenes as large as their targets in batches."""
        return DataLoader(
            cast("Dataset[Any]", self.val_set),
            batch_size=self.batch_size if self.embedded and self.resize is None else 1,
            collate_fn=self.collate,
            **workers_options(self.workers),
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch with the targets of the data; a target that one sample lacks is unknown everywhere."""
        facts = self.facts
        labels, depth = self.has_labels, facts.depth_kind is not None
        batch = collate(samples, labels=labels and not self.restores, depth=depth and not self.restores)
        if samples[0].cached is None:
            return batch
        assert batch.images is not None
        cached = tuple(torch.stack(same) for same in zip(*(s.cached or () for s in samples), strict=True))
        return batch._replace(cached=cached, size=(batch.images.shape[-2], batch.images.shape[-1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the settings of which batches and validations are a function."""
        return {"settings": self._settings(), "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other images or settings and name what differs."""
        saved = dict(state_dict["settings"])
        if "val_size" in saved:  # the former name of resize
            saved["resize"] = saved.pop("val_size") or self.resize
        refuse_another({"data": self._settings()}, {"data": saved})
        self.kept = dict(state_dict.get("kept", {}))

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

    def keep_features(
        self, compute: Callable[[Tensor], list[Tensor]], key: Mapping[str, Any], steps: int, whole: bool
    ) -> None:
        """Compute the features that the run would compute several times, and read them from the cache from now on.

        A named folder keeps those of training and of validation. Otherwise the folder of the run keeps those of
        validation, and with `cache: auto` those of training, if the disk has room for them.

        compute: uint8 images (B, 3, H, W) to features. key: everything but the images that the features depend on.
        steps: of the run. whole: validation applies the network to whole images, not to windows.
        """
        named = self.cache not in (None, "auto")
        if not named and (self.run_folder is None or self.restores):
            return
        folder = Path(str(self.cache)) if named else self.run_folder
        assert folder is not None
        self.kept = self.kept or self._versions(compute, steps, whole, folder, named)
        for split, copies in self.kept.items():
            dataset = self.train_set if split == "train" else self.val_set
            assert isinstance(dataset, LabelledImages)
            dtype = torch.bfloat16 if named else torch.float16 if split == "train" else torch.float32
            view = {**key, "view": self.views[split]}
            dataset.cache = FeatureCache(folder, view, compute, copies=copies, dtype=dtype)
            self.fill_cache(split, dataset)

    def _versions(
        self, compute: Callable[[Tensor], list[Tensor]], steps: int, whole: bool, folder: Path, named: bool
    ) -> dict[str, int]:
        """Return how many versions per image of which split are kept."""
        trainer: Any = self.trainer
        train, val = len(self.train), len(self.val)
        drawn = steps * self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        if named and self.copies != "auto":
            return {"train": self.copies} | ({"val": 1} if whole and val else {})
        features = compute(self.first_image()[None])
        most = self.copies
        if most == "auto":
            most = max(1, min(VERSIONS, PATCHES // max(1, train * features[0].shape[-2:].numel())))
        wanted = max(1, min(most, drawn // max(train, 1)))
        if named:
            return {"train": wanted} | ({"val": 1} if whole and val else {})
        versions = {"val": 1} if whole and val else {}
        if self.cache == "auto" and isinstance(self.train_set, Drawn):
            if wanted * train < GAIN * drawn:
                versions["train"] = wanted
            elif trainer.is_global_zero:
                say(f"features of train: not kept, since {drawn} views of {train} images are seldom the same")
        size = sum(tensor.numel() for tensor in features)
        needed = size * (4 * val * versions.get("val", 0) + 2 * train * versions.get("train", 0))
        free = free_room(folder)
        if trainer.strategy.broadcast(needed > free / 2):
            if trainer.is_global_zero:
                say(f"features are not kept: they take {megabytes(needed, up=True)}, {megabytes(free)} are free")
            return {}
        if versions.get("train") and trainer.is_global_zero:
            say(
                f"features of train: {wanted} versions of each image are kept, {drawn / train:.1f} are drawn; "
                "--data.copies sets how many"
            )
        return versions

    def first_image(self) -> Tensor:
        """Return the first image (3, H, W) as the network gets it in validation; without validation, in training."""
        dataset: Any = self.val_set if len(self.val) else self.train_set
        image: Tensor = dataset.sample(0).image
        return image

    def fill_cache(self, split: str, dataset: LabelledImages) -> None:
        """Compute the features that the cache of a split lacks: every process its share."""
        trainer: Any = self.trainer
        assert dataset.cache is not None
        identities = [dataset.identity(i) for i in range(len(dataset))]
        load = lambda i, copy: dataset.sample(i, copy).image  # noqa: E731
        fill_cache(trainer, dataset.cache, identities, load, f"features of {split}")
        augmented = isinstance(dataset, Drawn) and dataset.transform.varies
        if trainer.is_global_zero and dataset.cache.copies == 1 and augmented:
            say(
                "the cache holds one version of each image, so its crop and augmentation are the same in every epoch; "
                "--data.copies 4 keeps four"
            )

    def describe(self) -> dict[str, Any]:
        """Return facts for the model card."""
        ids = list(getattr(getattr(self.train, "segment_format", None), "ids", ()))
        return {
            "images": self.root,
            "layout": self.layout,
            "trained on": len(self.train),
            "validated on": len(self.val),
            "batch size": self.batch_size,
            "arrangement": self.arrangement,
        } | ({"category ids": ids} if ids != list(range(1, len(ids) + 1)) else {})
