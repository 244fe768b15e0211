"""Pictures of the documentation: three validation images of each trained model.

    python benchmarks/real/pictures.py --output docs --camvid runs/camvid/small_data/model CAMVID \
      --kitchen runs/kitchen/small_data/model KITCHEN
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import arguments

import dense
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import to_tensors
from dense.media.draw import write_picture
from dense.predict.sheet import predictions_sheet


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    for name in ("camvid", "kitchen"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("MODEL", "DATA"))
    options = parser.parse_args()
    for name in ("camvid", "kitchen"):
        if given := getattr(options, name):
            model, source = dense.load(given[0]).model, open_labelled(given[1], "val")
            samples = [to_tensors(source.read(i * (len(source) - 1) // 2)) for i in range(3)]
            kind = source.depth_kind
            write_picture(options.output / f"{name}.png", predictions_sheet(model, samples, source.classes, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
