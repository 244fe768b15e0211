"""A run of tracking over one video: a mask per frame, a video with the objects drawn, and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.console import progress
from dense.data.video import objects_of
from dense.discover.source import Source
from dense.discover.track import Tracking, track
from dense.discover.writing import index_colours
from dense.files import write
from dense.media.draw import Picture, captioned, contain, objects_picture, sheet, write_index, write_picture
from dense.media.inputs import Frames
from dense.media.video import VideoWriter

CELL, COLUMNS, CELLS = 240, 4, 16  # of the contact sheet: pixels, frames per row, frames at most


def track_to_files(
    backbone: Backbone, frames: Frames, mask: NDArray[np.integer], settings: Tracking, source: Source,
    output: Path, facts: dict[str, Any], pictures: bool = False, video: bool = True,
) -> str:  # fmt: skip
    """Track the objects of `mask` (H, W), the first frame's, through a video and write what is found below `output`.

    facts: entries of tracked.json besides the settings. pictures: also write every frame with its objects drawn. video:
    write NAME_tracked.mp4. Returns a summary for the user.
    """
    objects, masks, samples = objects_of(mask), output / "masks", FrameSamples()
    tracked = _tracked(backbone, frames, mask, source=source, **asdict(settings))
    with VideoWriter(output / f"{frames.path.stem}_tracked.mp4", frames.rate) as writer:
        for number, (image, labels) in enumerate(progress(tracked, frames.path.name, len(frames) or None)):
            name = frames.name(number)
            write_index(masks / f"{name}.png", labels, index_colours(max(objects) + 1))
            picture = draw_objects(image, labels)
            if pictures:
                write_picture(output / "overlays" / f"{name}.png", picture)
            if video:
                writer.add(picture)
            samples.add(picture, name)
    write_picture(output / "sheet.png", samples.sheet())
    record = {"video": str(frames.path), "objects": objects, **facts}
    smallest = min(int((mask == number).sum()) for number in objects)
    record["input_size"] = settings.input_size((mask.shape[0], mask.shape[1]), backbone.spec.patch, smallest)
    record |= {"settings": asdict(settings), "features": asdict(source), "backbone": backbone.spec.to_dict()}
    write(output / "tracked.json", json.dumps(record, indent=2) + "\n")
    return f"{len(objects)} objects in {samples.count} frames: masks in {masks}, {output / 'sheet.png'}"


def overlays(
    backbone: Backbone, frames: Iterable[Picture], mask: NDArray[np.integer], **options: Any
) -> Iterator[Picture]:
    """Yield every frame with the objects of the first frame's `mask` (H, W) drawn; options: those of `dense.track`."""
    for frame, labels in _tracked(backbone, frames, mask, **options):
        yield draw_objects(frame, labels)


def _tracked(
    backbone: Backbone, frames: Iterable[Picture], mask: NDArray[np.integer], **options: Any
) -> Iterator[tuple[Picture, NDArray[np.uint8]]]:
    """Yield every frame (H, W, 3) with the numbers (H, W) of its objects."""
    shown, tracked = tee(frames)  # holds the one or two frames by which tracking is ahead
    for frame, labels in zip(shown, track(backbone, tracked, mask, **options), strict=True):
        yield frame, labels.cpu().numpy()


def draw_objects(image: Picture, labels: NDArray[np.uint8]) -> Picture:
    """Draw the objects of a frame (H, W, 3) by their numbers (H, W), in colour with contours, the rest darker."""
    return objects_picture(image, labels, ((int(n), labels == n) for n in np.unique(labels) if n))


class FrameSamples:
    """At most `most` frames, evenly spaced over a video of unknown length: when full, every other one is dropped."""

    def __init__(self, most: int = CELLS) -> None:
        self.most, self.step, self.count = most, 1, 0
        self.kept: list[Picture] = []

    def add(self, picture: Picture, name: str) -> None:
        """Count the next frame, and keep it with its name if it is one of the evenly spaced ones."""
        if self.count % self.step == 0:
            if len(self.kept) == self.most:
                self.kept, self.step = self.kept[::2], 2 * self.step
            if self.count % self.step == 0:
                height, width = picture.shape[:2]
                scale = CELL / max(height, width)
                size = max(1, round(scale * height)), max(1, round(scale * width))
                self.kept.append(captioned(contain(picture, CELL)[: size[0], : size[1]], name))
        self.count += 1

    def sheet(self) -> Picture:
        """Draw the frames on one page."""
        return sheet([self.kept[i : i + COLUMNS] for i in range(0, len(self.kept), COLUMNS)])
