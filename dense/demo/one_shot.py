"""Section: what is near in one photograph of a stereo pair, found in the other one by `dense segment`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.image import read_image
from dense.demo.disparity import TRUTH
from dense.demo.report import Command, Gallery, Section, section, thumbnail
from dense.media.draw import Picture

OTHER = "motorcycle_right.png"
METHODS = {"knn": (), "insid3": ("--no-square",)}
WORDS = (
    "The annotated object is the nearer half of the left photograph, the motorcycle and the floor before it, by its "
    "measured disparity. It is found in the right photograph without training: by the labels of the nearest patches "
    "(knn), and by clusters of patches that resemble the object (insid3). The pair is of D. Scharstein et al., "
    "Middlebury Stereo 2014."
)


def one_shot(image: Path, named: Sequence[str], folder: Path, size: int) -> Section:
    """Segment the right photograph like the left one. named: options that name the backbone."""
    with section("One annotated image") as part:
        left, truth = read_image(image), np.load(image.with_name(TRUTH))["arr_0"]
        mask = np.nan_to_num(truth, nan=0, posinf=0) > np.median(truth[np.isfinite(truth)])
        other, file = image.with_name(OTHER), folder / "near_mask.png"
        Image.fromarray(255 * mask.astype(np.uint8)).save(file)
        row = {"annotated": thumbnail(shown(left, mask))}
        for method, more in METHODS.items():
            out = folder / f"near_{method}"
            part.run([
                "segment", str(other), "--like", f"{image}={file}", "--method", method, *more, "--resize", str(size),
                "--refine", "guided", "--output", str(out), "--overwrite", *named,
            ])  # fmt: skip
            labels = np.asarray(Image.open(out / f"{other.stem}_labels.png"))
            row[method] = thumbnail(shown(read_image(other), labels > 0))
        part.galleries = [Gallery("The same object in another photograph", WORDS, [row])]
        own = "dense segment IMAGES --like IMAGE=MASK --output segmented"
        part.own = [Command("the object of one annotated image in all your images", own)]
    return part


def shown(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Return an image that is dark outside of a mask."""
    return np.where(mask[..., None], image, image // 4)
