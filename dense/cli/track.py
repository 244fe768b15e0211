"""The verb."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dense.cli.backbone_options import add_backbone, open_backbone, say_if_random
from dense.cli.discover_options import SETTINGS_OF_TRACKING, add_features, add_tracking, tracking_source_of
from dense.cli.parser import Parser
from dense.console import check_writable, progress
from dense.data.image import read_image
from dense.data.video import list_frames, objects_of, read_objects
from dense.discover import Source, Tracking, track, tracking
from dense.discover.drawing import Spread, drawn
from dense.discover.writing import write_index
from dense.media.draw import Picture, write_picture
from dense.media.video import Video, VideoWriter

RATE = 24.0  # frames a second of a folder, as in DAVIS


class Frames:
    """A video or a folder of images as frames with names, read one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = None if path.is_dir() else Video(path)
        self.images = list_frames(path) if self.video is None else []
        self.rate = RATE if self.video is None else self.video.rate
        twice = len(self.images) - len({image.stem for image in self.images})
        if twice:
            raise ValueError(f"{twice} of the frames in {path} have a name that another has, but for the ending")

    def __len__(self) -> int:
        """As far as it is known; 0 if it is not."""
        return len(self.images) if self.video is None else self.video.length

    def __iter__(self) -> Iterator[Picture]:
        yield from self.video or map(read_image, self.images)

    def name(self, number: int) -> str:
        """Of a frame, for its mask."""
        return self.images[number].stem if self.video is None else f"{number:05d}"


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(prog="dense track", description="Follow the objects of a first frame through a video.")
    parser.add_argument("video", type=Path, help="a video, or a folder of frames")
    parser.add_argument(
        "--mask", type=Path, required=True, help="PNG of the first frame with numbers of objects, 0: none"
    )
    add_backbone(parser)
    parser.add_argument("--out", "--output", type=Path, default=Path("tracked"), help="folder for the predictions")
    add_tracking(parser)
    add_features(parser)
    parser.add_argument("--overlays", action="store_true", help="also write every frame with its objects as an image")
    parser.add_argument(
        "--no-video", "--no-film", action="store_true", help="write no video of frames with their objects"
    )
    options = parser.parse_args(argv)
    frames, mask = Frames(options.video), read_objects(options.mask)
    objects = objects_of(mask)
    check_writable(options.out)
    backbone = open_backbone(options, frozen=True)
    changes = {name: getattr(options, name) for name in SETTINGS_OF_TRACKING}
    how, source = tracking(options.protocol, backbone.spec.patch, **changes), tracking_source_of(backbone.spec, options)
    seen, shown = tee(frames)
    followed = track(backbone, seen, mask, source=source, **asdict(how))
    labels = (numbers.cpu().numpy() for numbers in followed)
    both = progress(zip(shown, labels, strict=True), options.video.name, len(frames) or None)
    count = write(frames, both, max(objects), options)
    info = describe(options, how, source, objects) | {"backbone": backbone.spec.to_dict()}
    (options.out / "tracked.json").write_text(json.dumps(info, indent=2) + "\n")
    say_if_random(options)
    print(f"{len(objects)} objects in {count} frames: masks in {options.out / 'masks'}, {options.out / 'sheet.png'}")
    return 0


def write(
    frames: Frames, followed: Iterable[tuple[Picture, NDArray[np.uint8]]], highest: int, options: Namespace
) -> int:
    """Masks, images, the video and the sheet, one frame at a time; how many frames there were."""
    masks, images, some = options.out / "masks", options.out / "overlays", Spread()
    video = VideoWriter(options.out / f"{options.video.stem}_tracked.mp4", frames.rate)
    masks.mkdir(parents=True, exist_ok=True)
    try:
        for number, (image, labels) in enumerate(followed):
            name = frames.name(number)
            write_index(masks / f"{name}.png", labels, highest + 1, background=True)
            drawing = drawn(image, labels)
            if options.overlays:
                write_picture(images / f"{name}.png", drawing)
            if not options.no_video:
                video.add(drawing)
            some.add(drawing)
    finally:
        video.close()
    write_picture(options.out / "sheet.png", some.sheet())
    return some.count


def describe(options: Namespace, how: Tracking, source: Source, objects: Sequence[int]) -> dict[str, object]:
    """Everything that decides the predictions, as plain data."""
    settings = {"protocol": options.protocol, "settings": asdict(how), "features": asdict(source)}
    return {"video": str(options.video), "objects": list(objects), "weights": options.weights, **settings}
