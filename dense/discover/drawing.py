"""Followed objects over their frames."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any, get_args

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.cli.parser import Parser
from dense.discover import PCA, track
from dense.discover.pca import Colours
from dense.media.draw import Picture, contain, objects_picture, sheet, to_picture
from heads.features import Features

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


SHARED = 64  # pictures, spread evenly, that settle the colours of all


def add_pca(parser: Parser) -> None:
    """Whether and how there are pictures."""
    parser.add_argument(
        "--pca", action="store_true", help="also write the deepest map's main directions as NAME_pca.png"
    )
    parser.add_argument("--pca-shared", action="store_true", help="the same colours mean the same in all pictures")
    parser.add_argument(
        "--pca-foreground", action="store_true", help="the first direction cuts out the object, the rest colour it"
    )
    parser.add_argument("--pca-colours", default="rgb", choices=get_args(Colours), help="of three directions")
    parser.add_argument("--pca-smooth", action="store_true", help="blend cells instead of showing them as squares")


def wants_pca(options: Namespace) -> bool:
    """Whether any of its options asks for pictures."""
    return options.pca or options.pca_shared or options.pca_foreground or options.pca_smooth


def settle(features: Iterable[Features], options: Namespace) -> PCA:
    """Directions and colours of some pictures together."""
    return PCA.fit((f.maps[-1] for f in features), options.pca_foreground)


def coloured(features: Features, options: Namespace, shared: PCA | None = None) -> Picture:
    """One picture's features (a batch of one), by their own main directions or by shared ones."""
    pca = shared or settle([features], options)
    colours = pca(features.maps[-1], options.pca_colours, features.padded_size, options.pca_smooth)
    if features.resized:
        colours = F.interpolate(colours, size=features.image_size, mode="nearest-exact")
    else:
        colours = features.to_image(colours)
    return to_picture(colours[0])
