"""Claim: the views of one 500x375 image (2x224 + 8x96), on one core, are at least 4x as fast as with torchvision.

The peer is the published recipe on PIL images, written with torchvision's transforms. Like ours, it returns uint8
tensors; a second one returns normalised floats, as published, where ours leaves the normalisation to the device. All
are seeded per image, which the times include. Prints medians, and the medians of the ratios of alternating runs.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from functools import partial

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import PIL  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from _claims import record, versioned  # noqa: E402
from _measure import arguments, seconds  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402
from torch import Tensor  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import transforms as v1  # noqa: E402

from dense.data.loader import init_worker  # noqa: E402
from pretrain.views import MultiCrop  # noqa: E402


class Blur:
    """Gaussian blur of PIL with probability p and a radius uniform in 0.1 to 2."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Peer:
    """Multi-crop with torchvision on PIL images, to uint8 or to normalised floats."""

    def __init__(self, normalise: bool = False) -> None:
        ending = [v1.PILToTensor()]
        if normalise:
            ending = [v1.ToTensor(), v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

        def view(size: int, scale: tuple[float, float], blur: float, solarise: float) -> v1.Compose:
            return v1.Compose(
                [
                    v1.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC),
                    v1.RandomHorizontalFlip(0.5),
                    v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                    v1.RandomGrayscale(0.2),
                    Blur(blur),
                    *([v1.RandomSolarize(128, p=solarise)] if solarise else []),
                    *ending,
                ]
            )

        local = view(96, (0.05, 0.4), 0.5, 0.0)
        self.views = [view(224, (0.4, 1.0), 1.0, 0.0), view(224, (0.4, 1.0), 0.1, 0.2), *[local] * 8]

    def __call__(self, image: Image.Image, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        random.seed(seed)
        return [view(image) for view in self.views]


def random_image(height: int = 375, width: int = 500) -> np.ndarray:
    """Return a smooth coloured image (H, W, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=150, help="measured views of the image")
    options = parser.parse_args()
    init_worker()
    image = random_image()
    pil = Image.fromarray(image)
    views, peer, published = MultiCrop(), Peer(), Peer(normalise=True)
    runs: list[Callable[[int], object]] = [
        lambda seed: views(image, (0, 0, seed)),
        lambda seed: peer(pil, seed),
        lambda seed: published(pil, seed),
    ]
    times = [[seconds(partial(run, seed)) for run in runs] for seed in range(-5, options.images)][
        5:
    ]  # the first warm up
    ours, *theirs = ([1e3 * one for one in column] for column in zip(*times, strict=True))
    versions = (
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, torch {torch.__version__}, "
        f"OpenCV {cv2.__version__}"
    )
    print(f"one thread, 500x375 to 2x224 + 8x96, medians of {options.images} images; {versions}")
    print(f"pretrain.MultiCrop, uint8          {statistics.median(ours):6.2f} ms per image")
    for name, column in zip(("uint8", "normalised floats"), theirs, strict=True):
        low, middle, high = statistics.quantiles([b / a for a, b in zip(ours, column, strict=True)], n=4)
        print(
            f"torchvision, {name:21s} {statistics.median(column):6.2f} ms, ratio {middle:.2f}x "
            f"(quartiles {low:.2f} to {high:.2f})"
        )
        record(
            "views of a 500x375 image, one core", peer=f"{versioned('torchvision')}, {name}",
            ours=f"{statistics.median(ours):.1f} ms", theirs=f"{statistics.median(column):.1f} ms", ratio=middle,
            least=4,
        )  # fmt: skip


if __name__ == "__main__":
    main()
