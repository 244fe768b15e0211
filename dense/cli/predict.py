"""`dense predict`: predictions for files, folders and videos."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import (
    Parser,
    add_device,
    add_overwrite,
    add_published,
    check_sources,
    published_options,
    run_folder,
    usable_device,
)
from dense.console import hint
from dense.files import RunFolder

EXAMPLES = (
    ("dense predict runs/mine/model PHOTO.jpg FOLDER --output predictions", "images and folders"),
    ("dense predict runs/mine/model VIDEO.mp4 --window 518 --stride 345", "a video, in sliding windows"),
)


def parser(**options: bool) -> Parser:
    parser = Parser(
        "dense predict",
        "Predict depth, classes, objects, restored images or anomalies of images and videos with a trained or "
        "published model.",
        EXAMPLES,
        usage="dense predict MODEL IMAGES ... [options]",
        **options,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="MODEL IMAGES",
        help="a model (a directory of dense train, segment or anomaly, a published file or directory), then images, "
        "folders, videos",
    )
    parser.add_argument("--model", help="the model, if it is not the first of these")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the predictions")
    parser.add_argument("--resize", type=int, help="resize the shorter side to so many pixels first")
    parser.add_argument(
        "--focal", type=float, help="focal length of the images in pixels, for a model that knows its own"
    )
    parser.add_argument("--window", type=int, help="side of sliding windows in pixels")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument(
        "--refine", choices=("none", "guided"), help="move edges of classes and depth to those of the image"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over sizes of the image")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the network")
    parser.add_argument("--batch", type=int, default=1, help="windows per batch")
    parser.add_argument("--raw-depth", action="store_true", help="depth as the head predicts it, such as its logarithm")
    parser.add_argument("--score", type=float, default=0.5, help="least score of an instance")
    parser.add_argument("--mask-threshold", type=float, help="least probability of a panoptic segment's class (0.8)")
    parser.add_argument("--overlap-threshold", type=float, help="least share of its mask that a segment keeps (0.8)")
    parser.add_argument(
        "--large", type=float, default=100.0, metavar="MEGAPIXELS",
        help="read images of more than so many in windows, from tiled TIFF, and write tiled predictions",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument("--no-overlay", action="store_true", help="write values only, no overlays on the images")
    add_overwrite(parser)
    add_published(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.model is None:
        options.model = options.inputs.pop(0)
    if not options.inputs:
        of_verb.error("the following arguments are required: IMAGES (an image, a folder or a video)")
    check_sources(options)
    with run_folder("predict", options.output, options, but=["inputs"], shared=True) as run:
        return predict(of_verb, options, run)


def predict(of_verb: Parser, options: Namespace, run: RunFolder) -> int:
    """Write the predictions of all inputs; return the exit status."""
    from dense.media.inputs import sort_inputs
    from dense.predict import load
    from dense.predict.files import predict_files

    names = (
        "resize", "window", "stride", "refine", "flip", "scales", "precision", "batch", "raw_depth", "focal", "score",
        "mask_threshold", "overlap_threshold", "large",
    )  # fmt: skip
    how = {name: getattr(options, name) for name in names}
    predictor = load(options.model, usable_device(options.device), **published_options(options), **how)
    images, videos = sort_inputs(options.inputs, without=options.output, reading=predictor.inference.reading)
    if not images and not videos:
        of_verb.error(f"all images lie in {options.output}, the folder for predictions; choose another --output")
    failed = predict_files(predictor, images, videos, options.output, not options.no_overlay, run)
    if failed is None:
        return 0
    count = len(images) + len(videos)
    print(f"wrote predictions for {count - len(failed)} of {count} to {options.output}")
    if failed:
        some = "\n  ".join(failed[:20])
        print(f"could not be read: {len(failed)}\n  {some}", file=sys.stderr)
    hint(
        shlex.join(["dense", "explore", options.model, *options.inputs, "--output", "page.html"]),
        "the predictions, interactively",
    )
    return 1 if len(failed) == count else 0
