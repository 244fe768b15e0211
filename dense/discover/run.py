"""A run of one method over images and videos: masks, annotations, overlays and contact sheets in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.console import progress
from dense.discover.kmeans import KMeans
from dense.discover.methods import FITTED_METHODS, FittedClusters, describe_run, on_grid
from dense.discover.refine import Refinement
from dense.discover.results import Prediction
from dense.discover.source import Source, feature_at, similarity
from dense.discover.spectral import Spectral
from dense.discover.writing import (
    CELLS,
    PredictionFolder,
    draw_prediction,
    full_size,
    sheet_cells,
    similarity_picture,
)
from dense.media.draw import Picture, sheet, write_picture
from dense.media.inputs import SizedImage, batches, read_images, resize_for_backbone, stack_normalised
from dense.media.video import Video, VideoWriter


@dataclass
class DiscoveryRun:
    """The inputs, features and outputs of one run.

    images: paths, each with the stem of its outputs below `output`. size: shorter side in pixels of the backbone's
    input, 0 for the image's own. batch: images of equal size per batch. weights: as the user named them, for the
    record.
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
    unreadable: list[str] = field(default_factory=list)  # error messages

    def discover(self, method: Any) -> None:
        """Write the predictions of all images, then of all videos."""
        regions = method.count if isinstance(method, Spectral | KMeans | FittedClusters) else None
        spec = self.backbone.spec
        info = describe_run(self.name, method, self.source, spec, self.weights, self.refinement, self.size)
        folder = PredictionFolder(self.output, info, regions, self.overlays, self.maps)
        for image, prediction in self._predict(self._read("images"), method):
            folder.add(image, prediction)
        if isinstance(method, FittedClusters):
            method.save(self.output / "classes.safetensors")
        if folder.images:
            written = ", ".join(str(path) for path in folder.close())
            print(f"{len(folder.images)} images, {len(folder.annotations)} masks: {written}")
        for video in self.videos:
            self._write_video(video, method)

    def fit(self, settings: dict[str, Any]) -> FittedClusters:
        """Fit classes to all images and videos, or with the setting `classes` load them from a file."""
        cls = FITTED_METHODS[self.name]
        if "classes" in settings:
            if len(settings) > 1:
                raise ValueError("--classes brings its own number of classes; leave --count, --passes and --steps out")
            return cls.load(settings["classes"], next(self.backbone.parameters()).device)

        def read_all() -> Iterator[SizedImage]:
            yield from self._read("learning classes")
            for video in self.videos:
                yield from self._read_frames(video)

        def stream() -> Iterator[Tensor]:
            self.unreadable.clear()
            for batch in batches(read_all(), self.batch):
                yield self._features(batch)

        fitted = cls.fit(stream, **settings)
        self.unreadable.clear()
        return fitted

    def similarities(self, point: tuple[float, float]) -> None:
        """Write NAME_similarity.png of every image to the feature at a point (x, y) of the first image, and a sheet."""
        query, cells = None, list[Picture]()
        for image in self._read("images"):
            features = self._features([image])
            if query is None:
                if image.stem != self.images[0][1]:
                    raise ValueError(f"--point is in the first image, which cannot be read: {self.unreadable[0]}")
                query = feature_at(features[0], point, (image.original.shape[0], image.original.shape[1]))
            picture = similarity_picture(image.original, similarity(features, query)[0])
            write_picture(self.output / f"{image.stem}_similarity.png", picture)
            cells += sheet_cells(image, picture) if len(cells) < 2 * CELLS else []
        if cells:
            write_picture(self.output / "sheet.png", sheet([cells[i : i + 8] for i in range(0, len(cells), 8)]))
            print(f"{len(self.images) - len(self.unreadable)} images: {self.output / 'sheet.png'}")

    def _features(self, batch: Sequence[SizedImage]) -> Tensor:
        with torch.inference_mode():
            return self.source(self.backbone, stack_normalised(batch, self.backbone))

    def _predict(self, images: Iterable[SizedImage], method: Any) -> Iterator[tuple[SizedImage, Prediction]]:
        """Yield each image with its prediction, refined and at the image's own size."""
        for batch in batches(images, self.batch):
            prediction = on_grid(self.backbone, stack_normalised(batch, self.backbone), method, self.source)
            for i, image in enumerate(batch):
                yield image, full_size(prediction, i, image, self.refinement)

    def _write_video(self, path: Path, method: Any) -> None:
        """Write OUTPUT/NAME_discovered.mp4, the video with its masks drawn."""
        target = self.output / f"{path.stem}_discovered.mp4"
        with VideoWriter(target, Video(path).rate) as writer:
            for image, prediction in self._predict(self._read_frames(path), method):
                writer.add(draw_prediction(image.original, prediction))
        print(f"wrote {target}")

    def _read(self, description: str) -> Iterator[SizedImage]:
        images = read_images(self.images, self.size, self.backbone.spec.patch, self.unreadable)
        return progress(images, description, len(self.images))

    def _read_frames(self, path: Path) -> Iterator[SizedImage]:
        video = Video(path)
        for frame in progress(video, path.name, video.length or None):
            yield resize_for_backbone(frame, Path(path.stem), self.size, self.backbone.spec.patch)
