"""Augmented views of annotated images, as Hummingbird remembers them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from dense.data.labelled.sample import Labelled

AREA, RATIO, JITTER, TRIES = (0.5, 2.0), (3 / 4, 4 / 3), 0.1, 10


class MemoryView:
    """A crop of 0.5 to 2 times the image's area with changed colours; a crop that does not fit is the whole image."""

    def __init__(self) -> None:
        import albumentations as A

        around, same = (1 - JITTER, 1 + JITTER), (1.0, 1.0)
        changes = [(around, same, same, (0.0, 0.0)), (same, around, same, (0.0, 0.0)), (same, same, around, (0.0, 0.0))]
        steps = [A.ColorJitter(*change, p=0.5) for change in [*changes, (same, same, same, (-JITTER, JITTER))]]
        self.colours = A.Compose(steps)

    def __call__(self, sample: Labelled, seed: tuple[int, ...]) -> Labelled:
        """Return a view, a pure function of its arguments."""
        rng = np.random.default_rng(seed)
        top, left, height, width = crop_box(rng, *sample.image.shape[:2])
        box = slice(top, top + height), slice(left, left + width)
        self.colours.set_random_state(rng, random.Random(int(rng.integers(2**31))))
        image = np.ascontiguousarray(sample.image[box])
        if image.shape[2] == 3:
            image = self.colours(image=image)["image"]
        else:  # channels are no colours: each one's brightness by itself
            factors = np.where(rng.random(image.shape[2]) < 0.5, rng.uniform(1 - JITTER, 1 + JITTER, image.shape[2]), 1)
            image = (image * factors).round().clip(0, 255).astype(np.uint8)
        return replace(sample, image=image, labels=None if sample.labels is None else sample.labels[box])


def crop_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random crop, as torchvision's RandomResizedCrop draws it."""
    for _ in range(TRIES):
        area = height * width * rng.uniform(*AREA)
        ratio = np.exp(rng.uniform(*np.log(RATIO)))  # width to height
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    h = min(height, round(width / RATIO[0]))
    w = min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w
