"""Followed objects over their frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.discover import track
from dense.visual import Picture, contain, objects_picture, sheet

CELL, COLUMNS, CELLS = 240, 4, 16  # of the contact sheet: pixels, frames a row, frames at most


def drawn(image: Picture, labels: NDArray[np.uint8]) -> Picture:
    """Objects of a frame (H, W, 3) by their numbers (H, W), in colour with their contours, the rest darker."""
    return objects_picture(image, labels, ((int(n), labels == n) for n in np.unique(labels) if n))


def overlays(
    backbone: Backbone, frames: Iterable[Picture], mask: NDArray[np.integer], **options: Any
) -> Iterator[Picture]:
    """Every frame with the objects of the first frame's `mask` (H, W) on it; options are those of `dense.track`."""
    shown, seen = tee(frames)  # holds the two frames that tracking is ahead
    for frame, labels in zip(shown, track(backbone, seen, mask, **options), strict=True):
        yield drawn(frame, labels.cpu().numpy())


class Spread:
    """Some frames of a video of any length, evenly spread: when there are too many, every other one goes."""

    def __init__(self, most: int = CELLS) -> None:
        self.most, self.step, self.count = most, 1, 0
        self.kept: list[Picture] = []

    def add(self, picture: Picture) -> None:
        """One frame after another."""
        if self.count % self.step == 0:
            if len(self.kept) == self.most:
                self.kept, self.step = self.kept[::2], 2 * self.step
            if self.count % self.step == 0:
                height, width = picture.shape[:2]
                share = CELL / max(height, width)
                self.kept.append(
                    contain(picture, CELL)[: max(1, round(share * height)), : max(1, round(share * width))]
                )
        self.count += 1

    def sheet(self) -> Picture:
        """The frames on one page."""
        return sheet([self.kept[i : i + COLUMNS] for i in range(0, len(self.kept), COLUMNS)])
