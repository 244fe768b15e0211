"""The data set of pretraining: views of unlabelled images. Files that cannot be read are replaced by others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from dense.data.cache import Compute, FeatureCache
from dense.data.domain import Domain, check_domain
from dense.data.image import ImageError, dark, spaced
from dense.data.labelled.files import file_identity
from dense.data.labelled.sample import Identity
from dense.data.levels import PHOTOGRAPHS, RGB, SAMPLED, Reading
from dense.data.loader import endless_loader
from dense.data.metadata import Metadata, columns_of, read_metadata
from dense.data.sampler import permute
from dense.data.shards import ShardImages
from dense.data.unlabelled import FolderImages, Images, ListImages, open_images
from dense.data.values import files_of
from dense.data.windows import DamagedTiles, WindowImages
from dense.training.fit import check_batch_size, fill_cache, images_in_words, refuse_another
from pretrain.masking import VIEWS
from pretrain.mixed import MixedCrops, StepSampler
from pretrain.recipe import GuideOptions
from pretrain.sharding import is_distributed
from pretrain.views import MultiCrop

Views = Callable[[NDArray[np.uint8], tuple[int, int, int]], list[Tensor]]
ATTEMPTS = 100
FORMER = {  # names of settings in older checkpoints
    "pictures a step, over all processes": "images per step, over all processes",
    "images a step, over all processes": "images per step, over all processes",
    "pictures": "images",
}


class ImageViews(NamedTuple):
    """All views of one training image."""

    views: list[Tensor]  # each (3, S, S) uint8
    image: int  # index of the image that was read
    bad: list[int]  # indices of images that could not be read and were replaced by this one
    gram: list[Tensor]  # each (3, S', S') uint8: input of a Gram teacher, if there is one
    cached: Sequence[Tensor] = ()  # of each frozen teacher: (2, D) and (2, h, w, D), if there is a cache
    metadata: Tensor = torch.empty(0)  # of each column of metadata


class ViewBatch(NamedTuple):
    """Views of B images, as `collate` stacks them."""

    views: list[Tensor]  # each (B, 3, S, S) uint8
    images: Tensor  # B, indices
    bad: Tensor  # indices of images that could not be read, of any number
    gram: list[Tensor]  # each (B, 3, S', S') uint8
    cached: Sequence[Tensor] = ()  # of each frozen teacher: (B, 2, D) and (B, 2, h, w, D), if there is a cache
    metadata: Tensor = torch.empty(0)  # B, columns of metadata


class ViewsOf(Dataset[ImageViews]):
    """``dataset[epoch, index, step]``: the views of an image, a pure function of (seed, epoch, index).

    The optimiser step, which may be left out, selects the sizes of `MixedCrops`. An image that cannot be read is
    replaced by another, which (seed, epoch, index) choose, and is listed in `bad`.

    With a cache of frozen teachers' features, epochs go through its copies, each with views of its own, in turn.
    """

    cache: FeatureCache | None = None
    metadata: Metadata | None = None

    def __init__(self, images: Images, views: Views, seed: int = 0) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int | tuple[int, ...]) -> ImageViews:
        epoch, index, step = (0, draw, 0) if isinstance(draw, int) else (*draw, 0)[:3]
        if self.cache is None:
            return self.sample(epoch, index, step)
        copy = epoch % self.cache.copies
        features = self.cache.stored(self.identity(index), copy)
        return self.sample(copy, index)._replace(cached=[feature.float() for feature in features])

    def identity(self, index: int) -> Identity:
        """Return the cache's key of an image; its augmentation depends on its index."""
        images, name = self.images, self.images.name(index)
        path = Path(images.shard(index) if isinstance(images, ShardImages) else name)
        files = files_of(path, getattr(images, "reading", PHOTOGRAPHS))
        version = file_identity(*files).version if files[0].is_file() else ""
        return Identity(f"{name}, number {index}", version)

    def sample(self, epoch: int, index: int, step: int = 0) -> ImageViews:
        """Return the views of an image, without features."""
        crops = self.views.of_step(step, self.seed) if isinstance(self.views, MixedCrops) else self.views
        bad: list[int] = []
        for chosen in self._candidates(epoch, index):
            try:
                windows = isinstance(self.images, WindowImages)
                image = self.images.read(chosen, epoch) if windows else self.images.read(chosen)  # type: ignore[call-arg]
            except ImageError as error:
                bad.append(chosen)
                reason = str(error)
            else:
                views = crops(image, (self.seed, epoch, index))
                split = len(views) - getattr(crops, "gram_crops", 0)
                known = torch.empty(0) if self.metadata is None else torch.tensor(self.metadata.values[chosen])
                return ImageViews(views[:split], chosen, bad, views[split:], metadata=known)
        raise ImageError(f"none of {len(bad)} images, tried one after the other, could be read; the last: {reason}")

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """Yield the image itself, then up to `ATTEMPTS` others in random order."""
        yield index
        for place in range(min(ATTEMPTS, len(self))):
            other = int(permute(np.array([place]), len(self), (self.seed, epoch, index))[0])
            if other != index:
                yield other


def collate(samples: list[ImageViews]) -> ViewBatch:
    """Stack the views of several images, crop by crop, as the losses expect."""
    views, images, bad, gram, cached, metadata = zip(*samples, strict=True)
    return ViewBatch(
        views=[torch.stack(crops) for crops in zip(*views, strict=True)],
        images=torch.tensor(images),
        bad=torch.tensor([i for some in bad for i in some], dtype=torch.int64),
        gram=[torch.stack(crops) for crops in zip(*gram, strict=True)],
        cached=[torch.stack(features) for features in zip(*cached, strict=True)],
        metadata=torch.stack(metadata),
    )


def check_readable(images: Images) -> None:
    """Raise if none of some images, evenly spread over the set, can be read."""
    some = spaced(range(len(images)), SAMPLED)
    problems: list[str] = []
    for index in some:
        try:
            images.read(index)
        except ImageError as error:
            problems.append(str(error))
        else:
            return
    raise ValueError(f"none of {len(some)} images, evenly spread over the set, can be read; the first: {problems[0]}")


class BadImages:
    """Collects the images that could not be read, in the main process, for a report at the end."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int] | Tensor) -> None:
        """Add the `bad` of a batch."""
        self.indices.update(indices.tolist() if isinstance(indices, Tensor) else indices)

    def gather(self) -> None:
        """Add the images that other processes found; every process takes part."""
        if is_distributed():
            found: list[list[int]] = [[]] * distributed.get_world_size()
            distributed.all_gather_object(found, sorted(self.indices))
            for indices in found:
                self.add(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def report(self, most: int = 20) -> str:
        """Return their number, then one line with the reason for each of the first `most`; empty if there are none."""
        if not self.indices:
            return ""
        lines = [f"{len(self)} of {len(self.images)} images could not be read and were replaced by others:"]
        lines += [f"  {self._reason(index)}" for index in sorted(self.indices)[:most]]
        if len(self) > most:
            lines.append(f"  and {len(self) - most} more")
        return "\n".join(lines)

    def _reason(self, index: int) -> str:
        try:
            self.images.read(index)
        except ImageError as error:
            return str(error)
        return f"{self.images.name(index)} could not be read during training, but can be now"


class PretrainData(pl.LightningDataModule):
    """Unlabelled images and their views.

    Args:
        root: a folder of images (flat or nested), a text list, .tar shards, or scenes:train for the embedded scenes.
        views: the augmentation; pretrain.mixed.MixedCrops for mixed sizes.
        batch_size: images per process and micro-batch.
        workers: processes that load; 0 loads in the main process.
        seed: of the order of images and of their augmentation.
        scenes: number of embedded scenes.
        scene_size: side of embedded scenes in pixels.
        at_least: decode JPEG images at a reduced size whose shorter side still has this many pixels; null decodes them
            at full size.
        cache: folder in which the features of frozen teachers are kept, so that they are computed once; null computes
            them in every step.
        copies: number of augmented versions per image in the cache, each of two views.
        domain: what the images are; microscopy, satellite and xray change the views, except for options that are given
            explicitly, and print what they changed.
        metadata: a CSV file with a line per image, whose columns model.guides.keep and model.guides.forget name; its
            column image, or else the first, has the names of images relative to the root.
        windows: views are of so many random windows per image, in every epoch others, of which TIFF in tiles or strips
            and .npy are not read whole; windows of background alone are drawn again. Null for whole images.
        window_size: side of the windows in pixels.
        channels: of images that are not photographs: their names, or their number; NAME_dapi.tif and NAME_actin.tif are
            one image of the channels [dapi, actin]. Other channels than RGB are jittered one by one.
        levels: numbers that become black and white, [0, 4095]; auto for quantiles of the images, per_image for those of
            each image; {black: [...], white: [...], gamma: ..., log: ...}; null for those of the file's type.
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
        cache: str | None = None,
        copies: int = 4,
        domain: Domain = "photographs",
        metadata: str | None = None,
        windows: int | None = None,
        window_size: int = 512,
        channels: int | list[str] | None = None,
        levels: Literal["auto", "per_image"] | list[float] | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if cache is not None and isinstance(views, MixedCrops):
            raise ValueError(
                "data.cache keeps features of views of one size, and MixedCrops draws sizes; leave one out"
            )
        if cache is not None and Path(cache).is_file():
            raise ValueError(f"data.cache={cache} is a file; expected a folder, which need not exist")
        if copies < 1:
            raise ValueError(f"data.copies={copies}: expected at least 1")
        self.cache, self.copies = cache, copies
        self.root, self.views, self.batch_size, self.workers, self.seed = root, views, batch_size, workers, seed
        self.at_least = at_least
        self.scene_size = scene_size if root.startswith("scenes:") else None
        check_batch_size(batch_size)
        self.reading = Reading.of(levels, channels)
        if self.scene_size is not None and self.reading not in (PHOTOGRAPHS, Reading(RGB)):
            raise ValueError(f"data.root={root} with {self.reading}: scenes are RGB; leave channels and levels out")
        self.images = open_images(
            root, length=scenes, size=scene_size, remember=True, at_least=at_least, reading=self.reading
        )
        if isinstance(self.images, FolderImages | ListImages):
            where = str(self.images.root if isinstance(self.images, FolderImages) else self.images.path.parent)
            if problem := dark(self.images.paths, self.reading, where):
                raise ValueError(problem)
        for crops in (views, *getattr(views, "choices", ())):
            crops.colours = self.reading.colours
        self.windows = {} if windows is None else {"windows": windows, "window_size": window_size}
        self.damaged = DamagedTiles()  # of windows
        if windows is not None:
            if not isinstance(self.images, FolderImages | ListImages):
                raise ValueError(f"data.windows={windows}: only files have windows; leave it out for {root}")
            self.images = WindowImages(self.images, windows, (window_size, window_size), seed, self.damaged)
        if self.scene_size is None:
            check_readable(self.images)
        self.dataset = ViewsOf(self.images, views, seed)
        self.bad = BadImages(self.images)
        check_domain(domain)
        self.domain, self.metadata = domain, metadata

    def read_metadata(self, guides: GuideOptions) -> Metadata | None:
        """Return the columns of metadata that guides need, which samples hold from now on; None without guides."""
        if self.metadata is None and guides.columns:
            raise ValueError(
                f"model.guides: the columns {', '.join(guides.columns)} need a file; add --data.metadata FILE.csv"
            )
        if self.metadata is not None and not guides.columns:
            raise ValueError(
                f"data.metadata={self.metadata} without a column in use; name some of "
                f"{', '.join(columns_of(self.metadata))} in --model.guides.keep or --model.guides.forget, such as "
                "--model.guides.forget '[plate]'"
            )
        if self.metadata is not None and self.dataset.metadata is None:
            windows = self.images if isinstance(self.images, WindowImages) else None  # each has the row of its image
            images, count = (windows.images, windows.count) if windows else (self.images, 1)
            found = read_metadata(self.metadata, images, self.root, guides.columns, guides.numbers)
            self.dataset.metadata = replace(found, values=np.repeat(found.values, count, axis=0))
        return self.dataset.metadata

    def keep_features(self, compute: Compute, key: Mapping[str, Any]) -> None:
        """Compute the features of frozen teachers that the cache lacks, and read them from it from now on.

        compute: views (B, 2, 3, S, S) to features. key: everything but the views that the features depend on.
        """
        assert self.cache is not None
        assert self.trainer is not None
        views = {"views": self.views.options, "seed": self.seed, "images": self._which, "at_least": self.at_least}
        views |= {"scene_size": self.scene_size, **self.windows, **self._reading}
        dataset = self.dataset
        cache = FeatureCache(self.cache, {**key, **views}, compute, copies=self.copies, dtype=torch.float16)
        identities = [dataset.identity(index) for index in range(len(dataset))]
        load = lambda index, copy: torch.stack(dataset.sample(copy, index).views[:VIEWS])  # noqa: E731
        fill_cache(self.trainer, cache, identities, load, "the teacher's features")
        dataset.cache = cache

    def train_dataloader(self) -> DataLoader[ImageViews]:
        """Return endless batches from the trainer's current step on."""
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
        """Return the settings that determine the batches, and the images that could not be read."""
        self.bad.gather()
        return {"settings": self._settings(), "bad": sorted(self.bad.indices)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse other settings, naming the differences; settings that an older checkpoint lacks are not compared."""
        saved = {FORMER.get(key, key): value for key, value in state_dict["settings"].items()}
        if "which" in saved:
            saved["which"] = saved["which"].replace(" pictures,", " images,")
        known = {key: value for key, value in self._settings().items() if key in saved}
        refuse_another({"data": known}, {"data": saved})
        self.bad.add(state_dict["bad"])

    def _settings(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        processes, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        views = getattr(self.views, "choices", [self.views])
        return {
            "seed": self.seed,
            "images per step, over all processes": self.batch_size * processes * micro_batches,
            "images": len(self.dataset),
            "which": self._which,
            "scene_size": self.scene_size,
            "at_least": self.at_least,
            **self.windows,
            "copies": self.copies if self.cache else None,
            **({"metadata": self.dataset.metadata.digest} if self.dataset.metadata else {}),
            **self._reading,
            "views": {str(number): crops.options for number, crops in enumerate(views)},
        }

    @property
    def _reading(self) -> dict[str, Any]:
        return {} if self.reading == PHOTOGRAPHS else {"reading": self.reading.to_dict()}

    @cached_property
    def _which(self) -> str:
        return images_in_words(len(self.images), self.images.name, self.root)

    def describe(self) -> dict[str, object]:
        """Return facts for the model card."""
        return {
            "images": str(Path(self.root)),
            "number of images": len(self.dataset),
            "batch size": self.batch_size,
            **({"domain": self.domain} if self.domain != "photographs" else {}),
            **({"metadata": self.metadata} if self.metadata else {}),
        }
