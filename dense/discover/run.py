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
from dense.discover import FittedClusters, KMeans, Prediction, Source, Spectral, feature_at, on_grid, similarity
from dense.discover.methods import FITTED_METHODS, describe_run
from dense.discover.reading import Seen, batches, pixels, read, show
from dense.discover.refine import Refinement
from dense.discover.writing import Album, drawn, full_size, similarity_picture
from dense.media.draw import Picture, contain, sheet, write_picture
from dense.media.video import Video, VideoWriter


@dataclass
class DiscoveryRun:
    """The inputs, features and outputs of one run.

    images: paths, each with the stem of its outputs below `output`. size: shorter side in pixels at which the backbone
    sees images, 0 for their own. batch: images of equal size per batch. weights: as the user named them, for the record.
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
        album = Album(self.output, info, regions, self.overlays, self.maps)
        for one, prediction in self.predictions(self._read("images"), method):
            album.add(one, prediction)
        if self.name in FITTED_METHODS:
            self.output.mkdir(parents=True, exist_ok=True)
            method.save(self.output / "classes.safetensors")
        if album.images:
            written = ", ".join(str(path) for path in album.close())
            print(f"{len(album.images)} images, {len(album.annotations)} masks: {written}")
        for video in self.videos:
            self._write_video(video, method)

    def predictions(self, seen: Iterable[Seen], method: Any) -> Iterator[tuple[Seen, Prediction]]:
        """Yield each image with its prediction, refined and at the image's own size."""
        for batch in batches(seen, self.batch):
            prediction = on_grid(self.backbone, pixels(batch, self.backbone), method, self.source)
            for i, one in enumerate(batch):
                yield one, full_size(prediction, i, one, self.refinement)

    def fit(self, settings: dict[str, Any]) -> FittedClusters:
        """Fit classes to all images and videos, or with the setting `classes` load them from a file."""
        cls = FITTED_METHODS[self.name]
        if "classes" in settings:
            if len(settings) > 1:
                raise ValueError("--classes brings its own number of classes; leave --count, --passes and --steps out")
            return cls.load(settings["classes"], next(self.backbone.parameters()).device)

        def stream() -> Iterator[Tensor]:
            self.unreadable.clear()
            for batch in batches(self._read_all(), self.batch):
                with torch.inference_mode():
                    yield self.source(self.backbone, pixels(batch, self.backbone))

        fitted = cls.fit(stream, **settings)
        self.unreadable.clear()
        return fitted

    def similarities(self, point: tuple[float, float]) -> None:
        """Write NAME_similarity.png for every image, by the feature at a point (x, y) of the first one, and a sheet."""
        query, cells = None, list[Picture]()
        for batch in batches(self._read("images"), 1):
            one = batch[0]
            with torch.inference_mode():
                features = self.source(self.backbone, pixels(batch, self.backbone))
                if query is None:
                    if one.stem != self.images[0][1]:
                        raise ValueError(f"--point is in the first image, which cannot be read: {self.unreadable[0]}")
                    query = feature_at(features[0], point, (one.image.shape[0], one.image.shape[1]))
                picture = similarity_picture(one.image, similarity(features, query)[0])
            write_picture(self.output / f"{one.stem}_similarity.png", picture)
            cells += [contain(one.image, 160), contain(picture, 160)] if len(cells) < 96 else []
        if cells:
            write_picture(self.output / "sheet.png", sheet([cells[i : i + 8] for i in range(0, len(cells), 8)]))
            print(f"{len(self.images) - len(self.unreadable)} images: {self.output / 'sheet.png'}")

    def _write_video(self, path: Path, method: Any) -> None:
        """Write OUTPUT/NAME_discovered.mp4, the video with its masks drawn."""
        self.output.mkdir(parents=True, exist_ok=True)
        target = self.output / f"{path.stem}_discovered.mp4"
        writer = VideoWriter(target, Video(path).rate)
        try:
            for one, prediction in self.predictions(self._read_frames(path), method):
                writer.add(drawn(one.image, prediction))
        finally:
            writer.close()
        print(f"wrote {target}")

    def _read(self, description: str) -> Iterator[Seen]:
        some = read(self.images, self.size, self.backbone.spec.patch, self.unreadable)
        return progress(some, description, len(self.images))

    def _read_frames(self, path: Path) -> Iterator[Seen]:
        video = Video(path)
        for frame in progress(video, path.name, video.length or None):
            yield show(frame, Path(path.stem), self.size, self.backbone.spec.patch)

    def _read_all(self) -> Iterator[Seen]:
        yield from self._read("learning classes")
        for video in self.videos:
            yield from self._read_frames(video)
