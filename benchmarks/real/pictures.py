"""The pictures of the documentation: photographs without labels, and three validation images of each trained model.

    python benchmarks/real/pictures.py PHOTOS/*.png --weights dinov2_vits14.pth --output docs \
      --camvid runs/camvid/small_data/model CAMVID --kitchen runs/kitchen/small_data/model KITCHEN

PHOTOS are of a free licence, such as astronaut (NASA) and chelsea (CC0) of scikit-image's data folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import arguments

import dense
from dense.data.image import read_image
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import to_tensors
from dense.demo.discovery import feature_rows
from dense.discover import default_source
from dense.media.draw import contain, sheet, write_picture
from dense.predict.sheet import predictions_sheet

SIDE = 192


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("photographs", nargs="*", type=Path)
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--shorter", type=int, default=448, help="shorter side of the backbone's input")
    for name in ("camvid", "kitchen"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("MODEL", "DATA"))
    options = parser.parse_args()
    if options.photographs:
        backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
        images = [read_image(path) for path in options.photographs]
        rows = feature_rows(backbone, images, options.shorter, default_source(backbone.spec))
        cells = [[contain(picture, SIDE) for picture in row.values()] for row in rows]
        write_picture(options.output / "photographs.png", sheet(cells, headings=list(rows[0])))
    for name in ("camvid", "kitchen"):
        if given := getattr(options, name):
            model, source = dense.load(given[0]).model, open_labelled(given[1], "val")
            samples = [to_tensors(source.read(i * (len(source) - 1) // 2)) for i in range(3)]
            kind = source.depth_kind
            write_picture(options.output / f"{name}.png", predictions_sheet(model, samples, source.classes, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
