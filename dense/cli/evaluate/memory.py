"""Measures of memories of patches: of a backbone, or of a model that was fitted."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from dense.cli.evaluate.shared import add_common, measured_backbone
from dense.cli.memory_options import add_good, add_memory, good_options, memory_options
from dense.cli.parser import Parser, add_backbone, usable_device
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result


def add_in_context(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, voc2012_aug, ade20k, cityscapes")
    parser.add_argument("--train-split", default="train", help="the images that are remembered")
    parser.add_argument("--split", default="val", help="the images that are measured")
    parser.add_argument("--train-images", type=int, help="remember so many of them, drawn by --seed; all if left out")
    parser.add_argument("--scenes", type=int, default=200, help="number of embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes")
    parser.add_argument("--hungarian", action="store_true", help="also mIoU after matching classes by Hungarian IoU")
    parser.add_argument(
        "--score-at", choices=["image", "input"], default="image",
        help="size of the masks that are compared: their own (image), or that of the resized image (input)",
    )  # fmt: skip
    add_memory(parser, new=True)


def in_context(options: Namespace) -> Result:
    from dense.evaluate.in_context import measure_in_context

    chosen = memory_options(options) | {"seed": options.seed, "method": options.method}
    names = ("layout", "train_split", "split", "train_images", "scenes", "side", "hungarian", "score_at")
    backbone = measured_backbone(options, "in-context", frozen=True)
    return measure_in_context(backbone, options.data, **{name: getattr(options, name) for name in names}, **chosen)


def add_labels_needed(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, voc2012_aug, ade20k, cityscapes")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1, 2, 5, 10, 50], help="numbers of annotated images; all are added"
    )
    parser.add_argument("--draws", type=int, default=3, help="random choices of each number")
    parser.add_argument(
        "--methods", nargs="+", default=["memory", "linear", "dpt"], metavar="METHOD", help="memory, linear, dpt"
    )
    parser.add_argument("--recipe", default="segmentation/small_data", help="of the trained heads")
    parser.add_argument("--resize", type=int, default=448, help="shorter side of images, for all methods")
    parser.add_argument("--patches", type=int, default=100_000, help="largest number of patches in memory")
    parser.add_argument("--steps", type=int, help="of the trained heads; those of the recipe if left out")


def labels_needed(options: Namespace) -> Result:
    from dense.evaluate.labels_needed import measure_labels_needed

    if options.output is None:
        raise UsageError("labels-needed keeps its runs; add --output FOLDER, where the same command goes on")
    names = ("counts", "draws", "methods", "layout", "recipe", "resize", "patches", "steps")
    backbone = measured_backbone(options, "labels-needed", frozen=True)
    return measure_labels_needed(
        backbone, options.backbone, options.weights, options.data, options.output,
        **{name: getattr(options, name) for name in names},
    )  # fmt: skip


def add_anomaly(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", help="a model of dense anomaly fit; without one, the backbone is fitted to the good images"
    )
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with train/good, test/KIND and ground_truth/KIND")
    parser.add_argument("--layout", choices=["folder", "mvtec", "visa"], default="folder", help="of that folder")
    parser.add_argument("--category", action="append", help="one of mvtec or visa, several times; all if left out")
    parser.add_argument(
        "--shots", type=int, help="good images to fit, by the published rule with --seed; all if left out"
    )
    parser.add_argument(
        "--foreground-of", nargs="+", default=[], metavar="CATEGORY",
        help="categories with --foreground, all if left out; published for mvtec are capsule hazelnut pill screw "
        "toothbrush",
    )  # fmt: skip
    add_good(parser)


def anomaly(options: Namespace) -> Result:
    from dense.data.anomaly import open_anomaly
    from dense.evaluate.anomaly import measure_anomaly

    sets = open_anomaly(options.data, options.layout, options.category or ())
    words: dict[str, Any] = {"data": str(options.data), "layout": options.layout, "shots": options.shots}
    if options.model is None:
        backbone = measured_backbone(options, "anomaly", frozen=True)
        given = good_options(options) | {"foreground_of": options.foreground_of}
        return measure_anomaly(backbone, sets, seed=options.seed, **words, **given)
    from dense.model.network import DenseModel

    fitting = Parser("", "")
    add_backbone(fitting)
    add_good(fitting)
    defaults = vars(fitting.parse_args([])) | {"foreground_of": []}
    for name, default in defaults.items():
        if name != "device" and getattr(options, name) != default:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is of fitting, and {options.model} is fitted already; leave it out")
    model = DenseModel.from_pretrained(options.model).to(usable_device(options.device))
    return measure_anomaly(model, sets, **words)
