"""`dense predict`: predictions for files, folders and videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import Parser, device
from dense.cli.published_options import add_options, published_facts
from dense.console import check_writable, progress
from dense.data.image import ImageError, read_image
from dense.media.inputs import sort_inputs
from dense.media.video import Video, VideoError, VideoWriter
from dense.predict import load
from dense.predict.predictor import Predictor, torch_precision


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense predict", description="Depth and classes of images and videos, or their restoration, by a trained or a published model.",
        usage="dense predict MODEL IMAGES ... [options]",
    )  # fmt: skip
    parser.add_argument(
        "inputs", nargs="+", metavar="MODEL IMAGES",
        help="a model: a directory that dense train wrote, a published file or directory; then images, folders, videos",
    )  # fmt: skip
    parser.add_argument("--model", help="the model, if it is not the first of these")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the predictions")
    parser.add_argument("--resize", type=int, help="bring the shorter side to so many pixels first")
    parser.add_argument("--window", type=int, help="see images through windows of this side")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over sizes of the image")
    parser.add_argument("--precision", choices=tuple(torch_precision), default="fp32", help="of the network")
    parser.add_argument("--batch", type=int, default=1, help="windows at once")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--no-overlay", action="store_true", help="numbers alone, no colours over images")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.model is None:
        options.model = options.inputs.pop(0)
    if not options.inputs:
        parser.error("the following arguments are required: IMAGES (an image, a folder or a video)")
    images, videos = sort_inputs(options.inputs, without=options.output)
    if not images and not videos:
        parser.error(f"all images lie in {options.output}, where predictions go; choose another --output")
    check_writable(options.output)
    predictor = load(
        options.model, options.device, **published_facts(options), resize=options.resize, window=options.window, stride=options.stride,
        flip=options.flip, scales=options.scales, precision=options.precision, batch=options.batch,
    )  # fmt: skip
    failed = predict_images(predictor, images, options.output, overlays=not options.no_overlay)
    for video in videos:
        try:
            predict_video(predictor, video, options.output)
        except VideoError as error:
            failed.append(str(error))
    count = len(images) + len(videos)
    print(f"wrote predictions for {count - len(failed)} of {count} to {options.output}")
    if failed:
        some = "\n  ".join(failed[:20])
        print(f"could not be read: {len(failed)}\n  {some}", file=sys.stderr)
    return 1 if len(failed) == count else 0


def predict_images(
    predictor: Predictor, images: Sequence[tuple[Path, Path]], output: Path, overlays: bool = True
) -> list[str]:
    """Save the prediction of every image that can be read; those that cannot, in words."""
    failed = []
    for path, stem in progress(images, "pictures"):
        try:
            image = read_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        predictor(image).save(output / stem, image if overlays else None)
    return failed


def predict_video(predictor: Predictor, path: Path, output: Path) -> Path:
    """OUTPUT/NAME_predicted.mp4, the video in the colours of its predictions."""
    video = Video(path)
    target = output / f"{path.stem}_predicted.mp4"
    writer = VideoWriter(target, video.rate)
    try:
        for frame in progress(video, path.name, video.length or None):
            writer.add(predictor(frame).overlay(frame))
    finally:
        writer.close()
    return target
