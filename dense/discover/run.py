"""A run of one method over images and videos: masks, annotations, overlays and contact sheets in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.console import counting, progress
from dense.data.levels import Reading
from dense.data.values import files_of
from dense.discover.kmeans import KMeans
from dense.discover.methods import FITTED_METHODS, FittedClusters, describe_run, on_grid
from dense.discover.refine import Refinement
from dense.discover.results import Prediction
from dense.discover.source import Source, feature_at, similarity
from dense.discover.spectral import Spectral
from dense.discover.writing import (
    CELLS,
    PredictionFolder,
    cells_as_text,
    cells_of_text,
    draw_prediction,
    full_size,
    sheet_cells,
    similarity_picture,
)
from dense.files import RunFolder
from dense.items import Items, digest, version
from dense.media.draw import sheet, write_picture
from dense.media.inputs import SizedImage, batches, read_images, resize_for_backbone, stack_normalised
from dense.media.video import Video, VideoWriter


@dataclass
class DiscoveryRun:
    """The inputs, features and outputs of one run.

    images: paths, each with the stem of its outputs below `output`. size: shorter side in pixels of the backbone's
    input, 0 for the image's own. batch: images of equal size per batch. weights: as the user named them, for the
    record. run: the folder of the run, whose processes share the images and videos.
    """

    backbone: Backbone
    name: str  # of the method
    source: Source
    images: Sequence[tuple[Path, Path]]
    videos: Sequence[Path]
    output: Path
    size: int = 480
    batch: int = 4
    refinement: Refinement = "guided"
    overlays: bool = True
    maps: bool = False
    weights: str | None = None
    run: RunFolder | None = None
    unreadable: list[str] = field(default_factory=list)  # error messages

    def discover(self, method: Any) -> bool:
        """Write the predictions of all images, then of all videos; return whether this process joined the results."""
        regions = method.count if isinstance(method, Spectral | KMeans | FittedClusters) else None
        spec = self.backbone.spec
        info = describe_run(self.name, method, self.source, spec, self.weights, self.refinement, self.size)
        folder = PredictionFolder(self.output, info, regions, self.overlays, self.maps)
        items = self._items(self.batch)
        pictures = [index for index in items.todo if index < len(self.images)]
        groups = [list(group) for _, group in groupby(pictures, lambda index: index // self.batch)]
        done = 0
        with counting("images") as count:
            count(done, len(pictures))
            for group in groups:
                self.unreadable.clear()
                images = list(self._read(group))
                left = dict.fromkeys(group)
                for image, prediction in self._predict(images, method):
                    index = next(i for i in left if self.images[i][1] == image.stem)
                    items.done(index, folder.add(image, prediction))
                    del left[index]
                for index, error in zip(left, self.unreadable, strict=True):
                    items.done(index, {"failed": error})
                done += len(group)
                count(done, len(pictures))
        for index in items.todo[len(pictures) :]:
            items.done(index, {"video": self._write_video(self.videos[index - len(self.images)], method)})
        with items.joining() as found:
            if found is None:
                return False
            if isinstance(method, FittedClusters):
                method.save(self.output / "classes.safetensors")
            self.unreadable[:] = [one["failed"] for one in found if "failed" in one]
            if parts := [one for one in found if "image" in one]:
                written = ", ".join(str(path) for path in folder.close(parts))
                print(f"{len(parts)} images, {sum(len(one['annotations']) for one in parts)} masks: {written}")
            for one in found:
                if "video" in one:
                    print(f"wrote {one['video']}")
        return True

    def _items(self, group: int = 1) -> Items:
        """Return the images and videos as items; where all of them decide the classes, each depends on all."""
        paths = [*(path for path, _ in self.images), *self.videos]
        names = [*(str(stem) for _, stem in self.images), *(f"video {path.stem}" for path in self.videos)]
        reading = Reading.of_spec(self.backbone.spec)
        versions = [version(*files_of(path, reading)) for path in paths]
        if self.name in FITTED_METHODS:
            versions = [f"{digest(versions)} {one}" for one in versions]
        return Items(names, self.run, versions, group)

    def fit(self, settings: dict[str, Any]) -> FittedClusters:
        """Fit classes to all images and videos, or with the setting `classes` load them from a file."""
        cls = FITTED_METHODS[self.name]
        if "classes" in settings:
            if len(settings) > 1:
                raise ValueError("--classes brings its own number of classes; leave --count, --passes and --steps out")
            return cls.load(settings["classes"], next(self.backbone.parameters()).device)

        def read_all() -> Iterator[SizedImage]:
            yield from progress(self._read(range(len(self.images))), "learning classes", len(self.images))
            for video in self.videos:
                yield from self._read_frames(video)

        def stream() -> Iterator[Tensor]:
            self.unreadable.clear()
            for batch in batches(read_all(), self.batch):
                yield self._features(batch)

        fitted = cls.fit(stream, **settings)
        self.unreadable.clear()
        return fitted

    def similarities(self, point: tuple[float, float]) -> bool:
        """Write NAME_similarity.png of every image to the feature at a point (x, y) of the first image, and a sheet.

        Return whether this process joined the results.
        """
        first = next(self._read([0]), None)
        if first is None:
            raise ValueError(f"--point is in the first image, which cannot be read: {self.unreadable[0]}")
        query = feature_at(self._features([first])[0], point, (first.original.shape[0], first.original.shape[1]))
        items = self._items()
        for place, index in enumerate(progress(items.todo, "images")):
            self.unreadable.clear()
            image = next(self._read([index]), None)
            if image is None:
                items.done(index, {"failed": self.unreadable[0]})
                continue
            picture = similarity_picture(image.original, similarity(self._features([image]), query)[0])
            write_picture(self.output / f"{image.stem}_similarity.png", picture)
            items.done(index, {"cells": cells_as_text(sheet_cells(image, picture)) if place < 2 * CELLS else []})
        with items.joining() as found:
            if found is None:
                return False
            self.unreadable[:] = [one["failed"] for one in found if "failed" in one]
            cells = [cell for one in found for cell in cells_of_text(one.get("cells", ()))][: 2 * CELLS]
            if cells:
                write_picture(self.output / "sheet.png", sheet([cells[i : i + 8] for i in range(0, len(cells), 8)]))
                print(f"{len(found) - len(self.unreadable)} images: {self.output / 'sheet.png'}")
        return True

    def _features(self, batch: Sequence[SizedImage]) -> Tensor:
        with torch.inference_mode():
            return self.source(self.backbone, stack_normalised(batch, self.backbone))

    def _predict(self, images: Iterable[SizedImage], method: Any) -> Iterator[tuple[SizedImage, Prediction]]:
        """Yield each image with its prediction, refined and at the image's own size."""
        for batch in batches(images, self.batch):
            prediction = on_grid(self.backbone, stack_normalised(batch, self.backbone), method, self.source)
            for i, image in enumerate(batch):
                yield image, full_size(prediction, i, image, self.refinement)

    def _write_video(self, path: Path, method: Any) -> str:
        """Write OUTPUT/NAME_discovered.mp4, the video with its masks drawn, and return its path."""
        target = self.output / f"{path.stem}_discovered.mp4"
        with VideoWriter(target, Video(path).rate) as writer:
            for image, prediction in self._predict(self._read_frames(path), method):
                writer.add(draw_prediction(image.original, prediction))
        return str(target)

    def _read(self, indices: Iterable[int]) -> Iterator[SizedImage]:
        images = (self.images[index] for index in indices)
        spec = self.backbone.spec
        return read_images(images, self.size, spec.patch, self.unreadable, Reading.of_spec(spec))

    def _read_frames(self, path: Path) -> Iterator[SizedImage]:
        video = Video(path)
        for frame in progress(video, path.name, video.length or None):
            yield resize_for_backbone(frame, Path(path.stem), self.size, self.backbone.spec.patch)
