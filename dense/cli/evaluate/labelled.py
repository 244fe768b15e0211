"""Measures on images with dense annotations: probes of a backbone, and trained models."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING

from dense.cli.evaluate.shared import add_common, add_output, measured_backbone, norms_of
from dense.cli.parser import Parser, add_device, layers, usable_device
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result

PROTOCOLS = ("plain", "nyuv2", "kitti_eigen", "relative", "slide_512", "dinov2_ms")
CROPS = ("none", "nyu_eigen", "garg", "eigen_kitti")


def add_probe(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--baselines", action="store_true", help="also random initialisation, raw pixels and colours")
    parser.add_argument(
        "--layers", type=layers, nargs="+",
        help="last, last4, even4, default, or 2,5, which are concatenated; last if left out. With --data each of "
        "several by itself, or all, every layer, if left out",
    )  # fmt: skip
    parser.add_argument("--size", type=int, nargs="+", help="side of the scenes, in whole patches (near 96); with "
                        "--data shorter sides of the images (224 336)")  # fmt: skip
    scenes = parser.add_argument_group("embedded scenes")
    scenes.add_argument("--train-scenes", type=int, default=500, help="number of scenes to train on")
    scenes.add_argument("--val-scenes", type=int, default=250, help="number of scenes to validate on")
    labelled = parser.add_argument_group("labelled images: linear and k-NN per patch for each layer, norm and size")
    labelled.add_argument("--data", help="folder with images/ and masks/ or depth/, instead of embedded scenes")
    labelled.add_argument("--norm", nargs="+", choices=("true", "false", "all"), help="final norm; both if left out")
    labelled.add_argument("--layout", default="folder", help="folder, ade20k, voc2012, cityscapes, nyuv2, ...")
    labelled.add_argument("--split", default="val", help="images that are measured: val or test")
    labelled.add_argument("--classes", metavar="YAML", help="classes of the values in masks, instead of classes.yaml")
    labelled.add_argument("--depth", metavar="YAML", help="how depth is stored, instead of depth.yaml")
    labelled.add_argument("--val-ratio", type=float, default=0.1, help="validation fraction of a folder without splits")
    labelled.add_argument("--split-by", metavar="PATTERN", help="data.split_by of the training, for such a folder")
    labelled.add_argument("--train-images", type=int, default=100, help="most training images")
    labelled.add_argument("--val-images", type=int, default=50, help="most validation images")
    labelled.add_argument("--patches", type=int, default=10_000, help="training patches; half as many for validation")


def probe(options: Namespace) -> Result:
    if options.data is not None:
        from dense.evaluate.layers import SIZES, measure_layers

        given = {
            name: getattr(options, name)
            for name in ("layout", "split", "classes", "depth", "val_ratio", "split_by", "patches")
        }
        return measure_layers(
            measured_backbone(options, "probe", frozen=True), options.data, layers=options.layers or "all",
            norm=norms_of(options) or "all", size=options.size or SIZES, train=options.train_images,
            val=options.val_images, baselines=options.baselines, seed=options.seed, **given,
        )  # fmt: skip
    for name in ("layers", "size"):
        if len(getattr(options, name) or ()) > 1:
            raise UsageError(f"--{name}: embedded scenes are probed at one choice; several need --data FOLDER")
    if options.norm is not None or options.layers == ["all"]:
        raise UsageError("--norm and --layers all are for labelled images; add --data FOLDER")
    from dense.evaluate.probe import measure_probe

    return measure_probe(
        measured_backbone(options, "probe", frozen=True), train=options.train_scenes, val=options.val_scenes,
        size=(options.size or [None])[0], seed=options.seed, layers=(options.layers or ["last"])[0],
        baselines=options.baselines,
    )  # fmt: skip


def add_labelled(parser: Parser, scenes: int) -> None:
    """Add the storage of labelled images, the embedded scenes, and the device."""
    parser.add_argument("--depth", metavar="YAML", help="how depth is stored, instead of depth.yaml")
    parser.add_argument(
        "--val-ratio", type=float, help="validation fraction of a folder without splits; that of the training, or 0.1"
    )
    parser.add_argument("--split-by", metavar="PATTERN", help="groups of such a folder; those of the training")
    parser.add_argument(
        "--kb-crop", action="store_true", default=None, help="crop KITTI's images to 352x1216 at the bottom centre"
    )
    parser.add_argument("--scenes", type=int, default=scenes, help="number of embedded scenes")
    parser.add_argument("--size", type=int, default=96, help="side of the scenes")
    parser.add_argument("--camera-height", type=float, nargs=2, help="range of the camera's height, in metres")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes")
    add_device(parser)
    add_output(parser)


def add_dense(parser: Parser) -> None:
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("--data", required=True, help="folder with images/ and masks/ or depth/, or scenes")
    parser.add_argument(
        "--layout",
        help="folder, ade20k, voc2012, voc2012_aug, cityscapes, nyuv2, kitti_eigen, ...; that of the training",
    )
    parser.add_argument("--split", default="val", help="train, val or test; all, of a folder without splits")
    parser.add_argument("--classes", metavar="YAML", help="classes of the values in masks, instead of classes.yaml")
    parser.add_argument("--protocol", default="plain", help=", ".join(PROTOCOLS))
    parser.add_argument("--resize", type=int, help="shorter side")
    parser.add_argument("--window", type=int, help="side of sliding windows")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", help="average over sizes")
    parser.add_argument("--crop", choices=CROPS, help="part of the image that is measured")
    parser.add_argument("--cap", type=float, nargs=2, metavar=("NEAR", "FAR"), help="range of depth in metres")
    parser.add_argument("--alignment", choices=("none", "median", "lsq"), help="alignment of relative depth")
    parser.add_argument(
        "--boundary", action="store_true", default=None, help="also boundary IoU, and the F1 of depth edges"
    )
    add_labelled(parser, scenes=200)


def add_masks(parser: Parser) -> None:
    parser.add_argument("model", help="directory that dense train wrote, or a published model of masks")
    parser.add_argument("--data", required=True, help="folder with images/ and their objects, a data set, or scenes")
    parser.add_argument("--layout", help="folder, coco, coco_panoptic, cityscapes, ade20k, ...; that of the training")
    parser.add_argument("--split", default="val", help="train, val or test; all, of a folder without splits")
    parser.add_argument("--annotations", metavar="JSON", help="COCO's file of a folder's images, instead of its own")
    parser.add_argument("--classes", metavar="YAML", help="classes of the values in masks, instead of classes.yaml")
    parser.add_argument("--protocol", default="plain", help="plain, eomt_640, eomt_1280")
    parser.add_argument("--resize", type=int, help="shorter side")
    parser.add_argument("--window", type=int, help="side of tiles, whose objects are merged")
    parser.add_argument("--stride", type=int, help="pixels between tiles")
    parser.add_argument("--top", type=int, help="instances of an image (100)")
    parser.add_argument("--mask-threshold", type=float, help="least probability of a panoptic segment's class (0.8)")
    parser.add_argument("--overlap-threshold", type=float, help="least share of its mask that a segment keeps (0.8)")
    add_labelled(parser, scenes=200)


def masks(options: Namespace, what: str) -> Result:
    from dense.evaluate.model import evaluate_model

    names = (
        "protocol", "classes", "annotations", "resize", "window", "stride", "top", "mask_threshold",
        "overlap_threshold",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in (*DATA, *names)}
    return evaluate_model(options.model, options.data, what=what, device=usable_device(options.device), **given)


DATA = ("layout", "split", "depth", "val_ratio", "split_by", "kb_crop", "scenes", "size", "camera_height", "seed")


def dense(options: Namespace, what: str) -> Result:
    from dense.evaluate.model import evaluate_model

    names = ("protocol", "classes", "resize", "window", "stride", "flip", "scales", "crop", "cap", "alignment")
    given = {name: getattr(options, name) for name in (*DATA, *names, "boundary")}
    return evaluate_model(options.model, options.data, what=what, device=usable_device(options.device), **given)


def add_restoration(parser: Parser) -> None:
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("--data", required=True, help="folder of clean images, of input/ and target/, or scenes")
    parser.add_argument("--layout", help="images, paired, or one with depth: folder, nyuv2, ...")
    parser.add_argument("--split", default="val", help="train, val, test or all")
    for name, words in (("degrade", "degradation"), ("unseen", "degradation that was not trained on")):
        parser.add_argument(
            f"--{name}", type=levels, nargs="+", default=[], metavar="KIND=LEVELS",
            help=f"{words}, such as noise=15,25 or noise for the usual levels",
        )  # fmt: skip
    parser.add_argument("--window", type=int, help="side of sliding windows, instead of the one saved with the model")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    add_labelled(parser, scenes=50)


def restoration(options: Namespace) -> Result:
    from dense.evaluate.model import evaluate_model

    given = {name: getattr(options, name) for name in (*DATA, "window", "stride", "flip")}
    return evaluate_model(
        options.model, options.data, degrade=dict(options.degrade), unseen=dict(options.unseen),
        device=usable_device(options.device), **given,
    )  # fmt: skip


def levels(words: str) -> tuple[str, list[float]]:
    """noise=15,25 -> ("noise", [15, 25])."""
    kind, _, numbers = words.partition("=")
    try:
        return kind, [float(n) for n in numbers.split(",") if n]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words}: expected KIND=LEVELS with numbers, such as noise=15,25") from None
