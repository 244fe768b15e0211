"""Images and frames as they are, and in batches as a backbone sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.data.image import ImageError, read_image
from dense.media.draw import Picture


@dataclass(frozen=True)
class Seen:
    """One image: where its predictions go, its own pixels, those that the backbone is shown, and how its file's name ends."""

    stem: Path
    image: Picture  # H, W, 3
    shown: Picture  # h, w, 3
    ending: str = ""

    @property
    def file(self) -> str:
        """The image's file, from the folder that was named."""
        return f"{self.stem}{self.ending}"


def show(image: Picture, stem: Path, shorter: int, patch: int, ending: str = "") -> Seen:
    """An image with its shorter side at about `shorter` pixels (0: as it is), both sides whole patches."""
    height, width = image.shape[:2]
    factor = shorter / min(height, width) if shorter else 1.0
    rows, columns = (max(patch, round(n * factor / patch) * patch) for n in (height, width))
    if (rows, columns) == (height, width):
        return Seen(stem, image, image, ending)
    how = cv2.INTER_AREA if rows * columns < height * width else cv2.INTER_CUBIC
    return Seen(stem, image, np.asarray(cv2.resize(image, (columns, rows), interpolation=how), np.uint8), ending)


def read(images: Sequence[tuple[Path, Path]], shorter: int, patch: int, failed: list[str]) -> Iterator[Seen]:
    """Images by path and stem; what cannot be read is told to `failed`, in words."""
    for path, stem in images:
        try:
            yield show(read_image(path), stem, shorter, patch, path.suffix)
        except ImageError as error:
            failed.append(str(error))


def batches(seen: Iterable[Seen], size: int) -> Iterator[list[Seen]]:
    """Up to `size` images that follow each other and are shown at one size."""
    batch: list[Seen] = []
    for one in seen:
        if batch and (len(batch) == size or one.shown.shape != batch[0].shown.shape):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def pixels(batch: Sequence[Seen], backbone: Backbone) -> Tensor:
    """What is shown, normalised: (B, 3, h, w)."""
    device = next(backbone.parameters()).device
    return backbone.normalise(torch.from_numpy(np.stack([one.shown for one in batch])).to(device))
