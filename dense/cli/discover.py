"""The verb."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.cli.backbone_options import add_backbone, open_backbone, say_if_random
from dense.cli.discover_options import LEARNT, METHODS, add_method, describe, given_settings, source_of
from dense.cli.parser import Parser
from dense.cli.predict import sort_inputs
from dense.console import check_writable, progress
from dense.discover import KMeans, Learnt, Prediction, Source, Spectral, feature_at, on_grid, similarity
from dense.discover.reading import Seen, batches, pixels, read, show
from dense.discover.writing import Album, drawn, full_size, similarity_picture
from dense.media.draw import Picture, contain, sheet, write_picture
from dense.media.video import Video, VideoWriter


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense discover", description="Masks of objects and regions in images and videos, without labels."
    )
    parser.add_argument("images", nargs="+", help="images, folders of images, videos")
    add_backbone(parser)
    parser.add_argument("--out", "--output", type=Path, default=Path("discovered"), help="folder for the predictions")
    add_method(parser)
    parser.add_argument("--refine", default="guided", choices=["none", "guided", "grabcut"], help="edges of masks")
    parser.add_argument("--size", type=int, default=480, help="shorter side that the backbone sees; 0: as it is")
    parser.add_argument("--batch", type=int, default=4, help="images at once, where their sizes agree")
    parser.add_argument("--maps", action="store_true", help="also write what masks were cut from, as NAME_maps.png")
    parser.add_argument("--no-overlay", action="store_true", help="masks alone, no colours over images")
    options = parser.parse_args(argv)
    given = given_settings(parser, options, [options.method])[options.method]
    method = METHODS[options.method](**given) if options.method in METHODS else None
    if options.method == "similarity" and options.point is None:
        parser.error("similarity needs --point X,Y, in pixels of the first image")
    if options.size < 0 or options.batch < 1:
        parser.error(f"--size {options.size} --batch {options.batch}: expected 0 or more pixels and 1 or more images")
    images, videos = sort_inputs(options.images, without=options.out)
    if not images and not videos:
        parser.error(f"all images lie in {options.out}, where predictions go; choose another --out")
    if options.method == "similarity" and videos:
        parser.error(f"similarity is for images, not for videos: leave {videos[0]} out")
    check_writable(options.out)
    backbone = open_backbone(options, frozen=True)
    run = Run(backbone, source_of(backbone.spec, options.method, options), options, images, videos)
    if options.method == "similarity":
        run.similarities(point_of(parser, options.point))
    else:
        run.discover(method or run.classes(given))
    say_if_random(options)
    if run.failed:
        some = "\n  ".join(run.failed[:20])
        print(f"could not be read: {len(run.failed)}\n  {some}", file=sys.stderr)
    return 1 if run.failed and not videos and len(run.failed) == len(images) else 0


def point_of(parser: Parser, text: str) -> tuple[float, float]:
    """Numbers from 'X,Y'."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        parser.error(f"--point {text!r}: expected X,Y, two numbers of pixels such as 120,80")
    return x, y


@dataclass
class Run:
    """One call of the verb."""

    backbone: Backbone
    source: Source
    options: Namespace
    images: Sequence[tuple[Path, Path]]
    videos: Sequence[Path]

    def __post_init__(self) -> None:
        self.failed: list[str] = []

    def discover(self, method: Any) -> None:
        """Predictions of all images, then of all videos."""
        options = self.options
        regions = method.count if isinstance(method, Spectral | KMeans | Learnt) else None
        info = describe(options, method, self.source, self.backbone.spec)
        album = Album(options.out, info, regions, not options.no_overlay, options.maps)
        for one, prediction in self.predictions(self.seen("pictures"), method):
            album.add(one, prediction)
        if isinstance(method, Learnt):
            options.out.mkdir(parents=True, exist_ok=True)
            method.save(options.out / "classes.safetensors")
        if album.images:
            written = ", ".join(str(path) for path in album.close())
            print(f"{len(album.images)} images, {len(album.annotations)} masks: {written}")
        for video in self.videos:
            self.video(video, method)

    def predictions(self, seen: Iterable[Seen], method: Any) -> Iterator[tuple[Seen, Prediction]]:
        """Each image with its prediction, refined and at its own size."""
        for batch in batches(seen, self.options.batch):
            prediction = on_grid(self.backbone, pixels(batch, self.backbone), method, self.source)
            for i, one in enumerate(batch):
                yield one, full_size(prediction, i, one, self.options.refine)

    def video(self, path: Path, method: Any) -> None:
        """OUT/NAME_discovered.mp4, the video with its masks drawn."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        target = self.options.out / f"{path.stem}_discovered.mp4"
        writer = VideoWriter(target, Video(path).rate)
        try:
            for one, prediction in self.predictions(self.frames(path), method):
                writer.add(drawn(one.image, prediction))
        finally:
            writer.close()
        print(f"wrote {target}")

    def classes(self, given: dict[str, Any]) -> Learnt:
        """Classes that hold for all images and videos, learnt from them or read from a file."""
        if "classes" in given:
            if len(given) > 1:
                raise ValueError("--classes brings its own number of classes; leave --count, --passes and --steps out")
            return LEARNT[self.options.method].load(given["classes"], self.options.device)

        def stream() -> Iterator[Tensor]:
            self.failed.clear()
            for batch in batches(self.everything(), self.options.batch):
                with torch.inference_mode():
                    yield self.source(self.backbone, pixels(batch, self.backbone))

        found = LEARNT[self.options.method].fit(stream, **given)
        self.failed.clear()
        return found

    def similarities(self, point: tuple[float, float]) -> None:
        """NAME_similarity.png for every image, and a sheet."""
        query, cells = None, list[Picture]()
        for batch in batches(self.seen("pictures"), 1):
            one = batch[0]
            with torch.inference_mode():
                features = self.source(self.backbone, pixels(batch, self.backbone))
                if query is None:
                    if one.stem != self.images[0][1]:
                        raise ValueError(f"--point is in the first image, which cannot be read: {self.failed[0]}")
                    query = feature_at(features[0], point, (one.image.shape[0], one.image.shape[1]))
                image = similarity_picture(one.image, similarity(features, query)[0])
            write_picture(self.options.out / f"{one.stem}_similarity.png", image)
            cells += [contain(one.image, 160), contain(image, 160)] if len(cells) < 96 else []
        if cells:
            write_picture(self.options.out / "sheet.png", sheet([cells[i : i + 8] for i in range(0, len(cells), 8)]))
            print(f"{len(self.images) - len(self.failed)} images: {self.options.out / 'sheet.png'}")

    # ---- what is looked at

    def seen(self, description: str) -> Iterator[Seen]:
        """The images, one by one."""
        some = read(self.images, self.options.size, self.backbone.spec.patch, self.failed)
        return progress(some, description, len(self.images))

    def frames(self, path: Path) -> Iterator[Seen]:
        """The frames of a video."""
        video = Video(path)
        for frame in progress(video, path.name, video.length or None):
            yield show(frame, Path(path.stem), self.options.size, self.backbone.spec.patch)

    def everything(self) -> Iterator[Seen]:
        """Images, then frames."""
        yield from self.seen("learning classes")
        for video in self.videos:
            yield from self.frames(video)
