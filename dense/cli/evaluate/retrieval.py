"""Measure of a backbone by image retrieval."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from dense.cli.evaluate.shared import add_common, measured_backbone
from dense.cli.parser import Parser

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result

LAYOUTS = ("folder", "roxford5k", "rparis6k", "copydays")
READOUTS = ("class", "average", "gem", "class_gem")
VIEWS = ("crop", "longer", "square")


def add_retrieval(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder of the images, see --layout")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="folder",
        help="folder: one folder per class, each image a query, or such folders in query/ and gallery/",
    )  # fmt: skip
    parser.add_argument("--readout", choices=READOUTS, help="class if there is a class token, else average")
    parser.add_argument("--view", choices=VIEWS, help="centre crop, longer side, or square; that of the layout")
    parser.add_argument("--size", type=int, help="of the view (224; 320 for copydays; 512 for landmarks, multi-scale)")
    parser.add_argument("--multi-scale", action="store_true", help="average features at 1, 1/sqrt(2) and 1/2")
    parser.add_argument("--whiten", metavar="FOLDER", help="other images, on which a PCA whitening is learnt")
    parser.add_argument("--distractors", metavar="FOLDER", help="images that join the database and match no query")
    parser.add_argument("--no-query-crop", action="store_true", help="landmarks: whole queries instead of their boxes")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")


def retrieval(options: Namespace) -> Result:
    from dense.evaluate.retrieval import measure_retrieval

    names = ("layout", "readout", "view", "size", "multi_scale", "whiten", "distractors", "batch_size", "workers")
    chosen = {name: getattr(options, name) for name in names}
    backbone = measured_backbone(options, "retrieval", frozen=True)
    return measure_retrieval(backbone, options.data, query_crop=not options.no_query_crop, **chosen)
