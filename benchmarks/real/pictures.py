"""Pictures of the documentation: three validation images of each trained model, and copies of photographs.

    python benchmarks/real/pictures.py --output docs --camvid runs/camvid/small_data/model CAMVID \
      --kitchen runs/kitchen/small_data/model KITCHEN --copies SKIMAGE/data dinov2_vits14.pth
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch
import torch.nn.functional as F
from _measure import arguments

import dense
from dense.data.image import read_image
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import to_tensors
from dense.data.transforms import resize_image
from dense.media.draw import Picture, sheet, write_picture
from dense.predict.sheet import predictions_sheet

# NASA; S. van der Walt; R. Michetti; SpaceX
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    for name in ("camvid", "kitchen"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("MODEL", "DATA"))
    parser.add_argument("--copies", nargs=2, metavar=("SKIMAGE/data", "WEIGHTS"), help="of DINOv2-S")
    options = parser.parse_args()
    for name in ("camvid", "kitchen"):
        if given := getattr(options, name):
            model, source = dense.load(given[0]).model, open_labelled(given[1], "val")
            samples = [to_tensors(source.read(i * (len(source) - 1) // 2)) for i in range(3)]
            kind = source.depth_kind
            write_picture(options.output / f"{name}.png", predictions_sheet(model, samples, source.classes, kind))
    if options.copies:
        write_picture(options.output / "retrieval.png", copies(*options.copies))
    return 0


def copies(folder: str, weights: str, side: int = 224) -> Picture:
    """Return rows of a photograph and what class tokens find for it among altered copies of all, the nearest first."""
    backbone = dense.load_backbone("dinov2_vits14", weights, frozen=True)
    photographs = [resize_image(read_image(Path(folder, name)), (side, side)) for name in PHOTOGRAPHS]
    alterations: list[Callable[[Picture], Picture]] = [
        lambda image: resize_image(image[side // 4 :, : 3 * side // 4], (side, side)),
        lambda image: np.ascontiguousarray(image[:, ::-1] // 2),
        lambda image: resize_image(resize_image(image, (side // 8, side // 8)), (side, side)),
        lambda image: np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, 2),
    ]
    database = [alter(image) for image in photographs for alter in alterations]
    with torch.inference_mode():
        queries, found = (
            F.normalize(backbone.image_feature(backbone.normalise(torch.from_numpy(np.stack(images)))), dim=1)
            for images in (photographs, database)
        )
    rows = []
    for image, query in zip(photographs, queries, strict=True):
        order = (found @ query).argsort(descending=True)[: len(alterations) + 2].tolist()
        rows.append([resize_image(cell, (96, 96)) for cell in (image, *(database[i] for i in order))])
    return sheet(rows)


if __name__ == "__main__":
    sys.exit(main())
