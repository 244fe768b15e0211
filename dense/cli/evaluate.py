"""`dense evaluate`: measure a backbone or a trained model by a named protocol."""

from __future__ import annotations

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dense.cli.discover_options import (
    METHODS,
    SETTINGS_OF_TRACKING,
    add_features,
    add_settings,
    add_tracking,
    given_features,
    given_settings,
    tracking_source_of,
)
from dense.cli.memory_options import add_memory, memory_options
from dense.cli.parser import (
    Parser,
    add_backbone,
    add_device,
    again,
    check_sources,
    epilogue,
    layers,
    open_backbone,
    usable_device,
    weights_in_words,
    writable,
)
from dense.console import hint
from dense.suggest import UsageError, did_you_mean

if TYPE_CHECKING:
    from dense.evaluate.classification.data import Pair
    from dense.evaluate.protocol import Result

PROTOCOLS = ("plain", "nyuv2", "kitti_eigen", "relative", "slide_512", "dinov2_ms")
CROPS = ("none", "nyu_eigen", "garg", "eigen_kitti")
READOUTS = ("class", "average", "class_average", "last4", "last4_average")
DISCOVERY = ("tau", "foreground", "count", "share", "mode", "k_patches", "passes", "steps")  # settings of methods
FINETUNING = {  # options of fine-tuning and their defaults
    "epochs": 100, "batch_size": 128, "lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 5.0, "layer_decay": 0.75,
    "weight_decay": 0.05, "label_smoothing": 0.1,
}  # fmt: skip
FINETUNING_HELP = {
    "epochs": "passes over the training images",
    "batch_size": "images per step",
    "lr": "peak learning rate of the head at a batch of 256; scaled linearly with the batch",
    "min_lr": "learning rate at the end of the cosine",
    "warmup_epochs": "epochs of linear warm-up of the learning rate",
    "layer_decay": "factor of the learning rate from each block to the one below",
    "weight_decay": "weight decay of AdamW",
    "label_smoothing": "label smoothing of the cross-entropy",
}
EXAMPLES = (
    ("dense evaluate probe --backbone scenes_tiny --baselines", "a backbone, on embedded scenes"),
    ("dense evaluate depth runs/depth/model --data MINE --flip", "a trained model, on your images"),
)


# ---- backbones, on images with one label each


def add_common(parser: Parser) -> None:
    """Add the backbone, the seed and the folder of results."""
    add_backbone(parser, seed="of scenes, of random initialisation and of all training here")
    add_output(parser)


def add_output(parser: Parser) -> None:
    parser.add_argument("--output", type=writable, help="folder for results.json; nothing is written if left out")


def add_pair(parser: Parser) -> None:
    """Add the training and validation set, and the crop of their images."""
    where = "folder with one folder per class, list file, shards, or scenes:train, scenes:val, scenes:test"
    parser.add_argument("--train", required=True, help=where)
    parser.add_argument("--val", required=True, help=where)
    parser.add_argument("--resize", type=int, default=256, help="shorter side before the crop; not for scenes")
    parser.add_argument("--crop", type=int, help="side of the centre crop, or of scenes (224, or 96 for scenes)")
    parser.add_argument(
        "--resample", choices=("bicubic", "bilinear"), default="bicubic", help="interpolation of validation images"
    )
    parser.add_argument("--train-scenes", type=int, default=2000, help="number of embedded scenes to train on")
    parser.add_argument("--val-scenes", type=int, default=500, help="number of embedded scenes to validate on")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")


def open_pair(options: Namespace) -> Pair:
    """Return the training and validation set, checked before any work."""
    from dense.evaluate.classification.data import Pair

    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    return Pair.open(
        options.train, options.val, resize=options.resize, crop=options.crop, resample=options.resample,
        scenes=(options.train_scenes, options.val_scenes), seed=options.seed,
    )  # fmt: skip


def several(text: str) -> list[str | int]:
    """Layers of which each is measured by itself: a name, an index, or several separated by commas."""
    found = layers(text)
    return [found] if isinstance(found, str) else list(found)


def add_sweep(parser: Parser, readout: str) -> None:
    """Add what may be compared in one pass over the images."""
    group = parser.add_argument_group("layers, norms and readouts, all of them from one pass over the images")
    group.add_argument(
        "--layers", type=several, nargs="+", default=["last"], help="all, or last, last4, 7, -2, ...: each by itself"
    )
    group.add_argument("--norm", nargs="+", choices=("true", "false", "all"), help="final norm; true if left out")
    group.add_argument("--readout", nargs="+", choices=(*READOUTS, "all"), help=readout)
    group.add_argument(
        "--holdout", type=float,
        help="fraction of train on which the best of several is chosen; 0 chooses on val (a tenth if left out)",
    )  # fmt: skip
    group.add_argument(
        "--baselines", action="store_true", help="also raw pixels, and random initialisation by each readout"
    )
    group.add_argument("--cache", type=writable, metavar="DIR", help="folder of features, which the next call reads")


def sweep_of(options: Namespace) -> dict[str, Any]:
    """Return the options of `add_sweep`, as `measure_knn` and `measure_linear` take them."""
    flat = [one for given in options.layers for one in (given if isinstance(given, list) else [given])]
    return {
        "layers": "last" if flat == ["last"] else flat,
        "norm": norms_of(options),
        **{name: getattr(options, name) for name in ("readout", "holdout", "baselines", "cache", "seed", "workers")},
    }


def norms_of(options: Namespace) -> Any:
    """The values of --norm, "all" or None."""
    given = options.norm
    return given if given is None else "all" if "all" in given else [value == "true" for value in given]


def measured_backbone(options: Namespace, verb: str, **overrides: Any) -> Any:
    """Return the backbone; refuse layers and a norm that --set gives, and this measure would ignore."""
    given = dict(options.set)
    for name in ("layers", "norm"):
        if name in given and not (name == "layers" and "default" in (getattr(options, "layers", None) or ())):
            value = str(given[name]).strip("[]").replace(" ", "").lower()
            remedy = f"write --{name} {value}" if name in options else "leave it out: it reads the last layer"
            raise UsageError(f"--set {name}={value}: {verb} would ignore it; {remedy}")
    return open_backbone(options, **overrides)


def add_knn(parser: Parser) -> None:
    add_common(parser)
    add_pair(parser)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=0.07, help="temperature T of the votes, exp(cosine / T)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch")
    add_sweep(parser, "class if there is a class token, else average")


def knn(options: Namespace) -> Result:
    from dense.evaluate.classification.knn import check_votes
    from dense.evaluate.classification.measure import measure_knn

    check_votes(options.k, options.temperature)
    pair = open_pair(options)
    return measure_knn(
        measured_backbone(options, "knn", frozen=True), pair, k=options.k, temperature=options.temperature,
        batch_size=options.batch_size, **sweep_of(options),
    )  # fmt: skip


def add_linear(parser: Parser) -> None:
    add_common(parser)
    add_pair(parser)
    parser.add_argument("--recipe", choices=("dino", "dinov2"), default="dinov2", help="the published protocol")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="length in epochs, instead of the recipe's")
    length.add_argument("--steps", type=int, help="length in steps, instead of the recipe's")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument(
        "--no-augment", action="store_true", help="centre crops only: features are computed once, which is much faster"
    )
    add_sweep(parser, "those of the recipe if left out")


def linear(options: Namespace) -> Result:
    from dense.evaluate.classification.measure import measure_linear

    pair = open_pair(options)
    if options.cache is not None and not options.no_augment:
        raise UsageError("--cache keeps features of centre crops, and training uses random crops; add --no-augment")
    return measure_linear(
        measured_backbone(options, "linear", frozen=True), pair, recipe=options.recipe, epochs=options.epochs,
        steps=options.steps, batch_size=options.batch_size, augment=not options.no_augment, **sweep_of(options),
    )  # fmt: skip


def add_finetune(parser: Parser) -> None:
    add_common(parser)
    add_pair(parser)
    for name, value in FINETUNING.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=FINETUNING_HELP[name])
    parser.add_argument("--drop-path", type=float, default=0.1, help="drop path rate of the deepest block")
    parser.add_argument("--readout", choices=READOUTS, help="class if there is a class token")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of forward and backward"
    )


def finetune(options: Namespace) -> Result:
    from dense.evaluate.classification.finetune import FineTuneRecipe
    from dense.evaluate.classification.measure import measure_finetune

    if not 0 <= options.drop_path < 1:
        raise ValueError(f"--drop-path {options.drop_path}: expected 0 or more, below 1")
    chosen: Any = {name: getattr(options, name) for name in (*FINETUNING, "readout", "precision")}
    recipe = FineTuneRecipe(**chosen)
    pair = open_pair(options)
    return measure_finetune(
        measured_backbone(options, "finetune", drop_path_rate=options.drop_path), pair, recipe,
        drop_path=options.drop_path,
        seed=options.seed, workers=options.workers, output=options.output,
    )  # fmt: skip


def add_probe(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--baselines", action="store_true", help="also random initialisation, raw pixels and colours")
    parser.add_argument(
        "--layers", type=layers, nargs="+",
        help="last, last4, even4, default, or 2,5, which are concatenated; last if left out. With --data each of "
        "several by itself, or all, every layer, if left out",
    )  # fmt: skip
    parser.add_argument("--size", type=int, nargs="+", help="side of the scenes, a multiple of the patch (96); with "
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
        size=(options.size or [96])[0], seed=options.seed, layers=(options.layers or ["last"])[0],
        baselines=options.baselines,
    )  # fmt: skip


# ---- trained models, on images with dense annotations


def add_labelled(parser: Parser, scenes: int) -> None:
    """Add the storage of labelled images, the embedded scenes, and the device."""
    parser.add_argument("--depth", metavar="YAML", help="how depth is stored, instead of depth.yaml")
    parser.add_argument(
        "--val-ratio", type=float, default=0.1, help="data.val_ratio of the training, for a folder without splits"
    )
    parser.add_argument("--split-by", metavar="PATTERN", help="data.split_by of the training, for such a folder")
    parser.add_argument("--kb-crop", action="store_true", help="crop KITTI's images to 352x1216 at the bottom centre")
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
        "--layout", default="folder", help="folder, ade20k, voc2012, voc2012_aug, cityscapes, nyuv2, kitti_eigen"
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


DATA = ("layout", "split", "depth", "val_ratio", "split_by", "kb_crop", "scenes", "size", "camera_height", "seed")


def dense(options: Namespace, what: str) -> Result:
    from dense.evaluate.model import evaluate

    names = ("protocol", "classes", "resize", "window", "stride", "flip", "scales", "crop", "cap", "alignment")
    given = {name: getattr(options, name) for name in (*DATA, *names, "boundary")}
    return evaluate(options.model, options.data, what=what, device=usable_device(options.device), **given)


def add_restoration(parser: Parser) -> None:
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("--data", required=True, help="folder of clean images, of input/ and target/, or scenes")
    parser.add_argument("--layout", default="images", help="images, paired, or one with depth: folder, nyuv2, ...")
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
    from dense.evaluate.model import evaluate

    given = {name: getattr(options, name) for name in (*DATA, "window", "stride", "flip")}
    return evaluate(
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


# ---- discovery and tracking


def add_discovery(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, ade20k, cityscapes")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--learn", help="split on which cocluster and stego are fitted; --split if left out")
    parser.add_argument(
        "--method", nargs="+", default=["attention", "lost", "tokencut"], choices=[*METHODS, "all"],
        help="methods to measure; attention makes one mask per head unless --mode is given",
    )  # fmt: skip
    add_settings(parser)
    parser.add_argument("--refine", default="none", choices=["none", "guided", "grabcut"], help="edges of masks")
    parser.add_argument("--size", type=int, default=0, help="shorter side for the backbone; 0: as it is")
    parser.add_argument(
        "--background", nargs="+", help="classes that are no objects; background, sky and ground if left out"
    )
    parser.add_argument("--least", type=float, default=0.002, help="smallest share of the image that is an object")
    parser.add_argument("--baselines", action="store_true", help="also the same backbone, randomly initialised")
    parser.add_argument("--scenes", type=int, default=200, help="number of embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes in pixels")


def add_video(parser: Parser) -> None:
    add_common(parser)
    where = "folder of DAVIS-2017, or scenes for a camera that moves past them"
    parser.add_argument("--data", required=True, help=where)
    parser.add_argument("--split", default="val", help="train, val, or another list in ImageSets/2017")
    add_tracking(parser, "v1")
    add_features(parser)
    parser.add_argument(
        "--baselines", action="store_true", help="also random initialisation, and the first mask left in place"
    )
    parser.add_argument("--clips", type=int, default=20, help="number of embedded clips")
    parser.add_argument("--frames", type=int, default=24, help="frames per clip")
    parser.add_argument("--side", type=int, default=128, help="side of the frames in pixels")


def add_in_context(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, voc2012_aug, ade20k, cityscapes")
    parser.add_argument("--train-split", default="train", help="the images that are remembered")
    parser.add_argument("--split", default="val", help="the images that are measured")
    parser.add_argument("--train-images", type=int, help="remember so many of them, drawn by --seed; all if left out")
    parser.add_argument("--scenes", type=int, default=200, help="number of embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes")
    add_memory(parser)


def in_context(options: Namespace) -> Result:
    from dense.data.labelled.open import open_labelled
    from dense.evaluate.dense import find_protocol, measure
    from dense.memory import build_memory

    def opened(split: str, length: int) -> Any:
        return open_labelled(
            options.data, split, layout=options.layout, targets=("labels",), length=length, size=options.side,
            seed=options.seed,
        )  # fmt: skip

    scenes = options.data == "scenes"
    source = opened(options.train_split, options.train_images if scenes and options.train_images else options.scenes)
    val = opened(options.split, options.scenes)
    if options.train_images is not None and not scenes:
        import numpy as np

        if not 1 <= options.train_images <= len(source):
            raise ValueError(
                f"--train-images {options.train_images}: expected 1 to {len(source)}, the images there are"
            )
        chosen = np.random.default_rng(options.seed).permutation(len(source))[: options.train_images]
        source = source.take(sorted(map(int, chosen)))
    chosen_options = memory_options(options)
    facts = {"images": str(options.data), "remembered": f"{len(source)} images of {options.train_split}"}
    model = build_memory(measured_backbone(options, "in-context", frozen=True), source, **chosen_options, facts=facts)
    words = {"data": options.data, "split": options.split}
    protocol = find_protocol("plain", resize=options.resize or None)
    settings = chosen_options | {"patches": len(model.head.bank), "view of the memory": "whole images, no augmentation"}
    settings = {name: value for name, value in settings.items() if name not in ("norm", "resize", "layers")}
    return measure(model, val, protocol, "segmentation", **words, **settings)


def discovery(options: Namespace) -> Result:
    names = list(METHODS) if "all" in options.method else list(dict.fromkeys(options.method))
    of_verb = parser("discovery")
    settings = given_settings(of_verb, options, names, DISCOVERY)
    if options.size < 0 or not 0 <= options.least < 1:
        of_verb.error(f"--size {options.size} --least {options.least}: expected 0 or more pixels and a share below 1")
    from dense.data.labelled.open import open_labelled
    from dense.discover.methods import source_of
    from dense.evaluate.discovery import measure_discovery
    from dense.evaluate.objects import ObjectTargets

    def targets_of(split: str) -> ObjectTargets:
        data = open_labelled(
            options.data, split, layout=options.layout, targets=("labels",),
            length=options.scenes, size=options.side, seed=options.seed,
        )  # fmt: skip
        return ObjectTargets(data, options.background, options.least)

    targets = targets_of(options.split)
    fit_to = targets_of(options.learn) if options.learn else None
    backbone = open_backbone(options, frozen=True)
    sources = {name: source_of(backbone.spec, name, **given_features(options)) for name in names}
    described = {name: getattr(options, name) for name in ("data", "split", "learn")}
    return measure_discovery(
        backbone, targets, settings, sources, fit_to=fit_to, refinement=options.refine, shorter=options.size,
        baselines=options.baselines, seed=options.seed, names=described,
    )  # fmt: skip


def video(options: Namespace) -> Result:
    from dense.data.video import davis, scene_clips
    from dense.discover import tracking
    from dense.evaluate.video import measure_video

    scenes = options.data == "scenes"
    if scenes:
        clips: Any = scene_clips(options.split, options.clips, options.frames, options.side, options.seed)
        options.size = 0 if options.size is None else options.size
    else:
        clips = davis(options.data, options.split)
    backbone = open_backbone(options, frozen=True)
    changes = {name: getattr(options, name) for name in SETTINGS_OF_TRACKING}
    settings = tracking(options.protocol, backbone.spec.patch, **changes)
    names = {name: getattr(options, name) for name in ("data", "split", "protocol")}
    return measure_video(
        backbone, clips, settings, tracking_source_of(backbone.spec, options), baselines=options.baselines,
        seed=options.seed, names=names | {"side": options.side if scenes else 0},
    )  # fmt: skip


# measure -> (description, options, what runs it, examples)
MEASURES: dict[str, tuple[str, Callable[[Parser], None], Callable[[Namespace], Result], Sequence[tuple[str, str]]]] = {
    "knn": (
        "weighted k-nearest-neighbour classification of frozen features", add_knn, knn,
        [
            ("dense evaluate knn --backbone runs/mine/backbone --train A --val B --output results",
             "one folder per class"),
            ("dense evaluate knn --backbone NAME --weights FILE --train A --val B --layers all --norm all "
             "--readout all --cache features", "which layer, norm and readout are best"),
        ],
    ),
    "linear": (
        "linear classification of frozen features, by DINO's or DINOv2's protocol", add_linear, linear,
        [
            ("dense evaluate linear --backbone dino_vits16 --weights FILE --train A --val B", "DINOv2's grid of heads"),
            ("dense evaluate linear --backbone scenes_tiny --train A --val B --no-augment --steps 500", "quick"),
        ],
    ),
    "finetune": (
        "classification with the whole backbone trained, layer-wise learning rates", add_finetune, finetune,
        [
            ("dense evaluate finetune --backbone dino_vits16 --weights FILE --train A --val B --epochs 30",
             "the whole backbone"),
        ],
    ),
    "probe": (
        "linear and k-NN probes of patches, on labelled images or on the embedded scenes", add_probe, probe,
        [
            ("dense evaluate probe --backbone NAME --weights FILE --data MINE", "which layer is best for your images"),
            ("dense evaluate probe --backbone scenes_tiny --baselines", "beside random initialisation and raw pixels"),
        ],
    ),
    "depth": (
        "depth of a trained model, by a named protocol", add_dense, partial(dense, what="depth"),
        [
            ("dense evaluate depth runs/depth/model --data MINE --flip", "MINE/images and MINE/depth"),
            ("dense evaluate depth runs/depth/model --data NYU --layout nyuv2 --protocol nyuv2",
             "a published protocol"),
        ],
    ),
    "segmentation": (
        "segmentation of a trained model, by a named protocol", add_dense, partial(dense, what="segmentation"),
        [
            ("dense evaluate segmentation runs/mine/model --data MINE --boundary", "MINE/images and MINE/masks"),
            ("dense evaluate segmentation runs/mine/model --data ADE --layout ade20k --protocol slide_512",
             "sliding windows"),
        ],
    ),
    "restoration": (
        "restored images, by kind and level of degradation", add_restoration, restoration,
        [
            ("dense evaluate restoration runs/restore/model --data CLEAN --degrade noise=25 rain",
             "any folder of images"),
            ("dense evaluate restoration runs/restore/model --data PAIRS --layout paired",
             "PAIRS/input and PAIRS/target"),
        ],
    ),
    "in-context": (
        "segmentation without training, by the nearest patches of annotated images", add_in_context, in_context,
        [
            ("dense evaluate in-context --backbone dinov2_vits14 --weights FILE --data MINE --patches 102400",
             "MINE/train and MINE/val with images/ and masks/"),
            ("dense evaluate in-context --backbone NAME --weights FILE --data VOC --layout voc2012_aug "
             "--temperature 0.07", "Pascal VOC"),
        ],
    ),
    "discovery": (
        "objects and regions found without labels, against masks", add_discovery, discovery,
        [
            ("dense evaluate discovery --backbone scenes_tiny --data scenes --method all --baselines",
             "embedded scenes"),
            ("dense evaluate discovery --backbone dino_vits16 --weights FILE --data VOC --layout voc2012 --method lost",
             "Pascal VOC"),
        ],
    ),
    "video": (
        "objects of a first frame followed through videos, by DAVIS-2017's J and F", add_video, video,
        [
            ("dense evaluate video --backbone scenes_tiny --data scenes --baselines", "embedded clips"),
            ("dense evaluate video --backbone dino_vits16 --weights FILE --data DAVIS", "DAVIS-2017"),
        ],
    ),
}  # fmt: skip


def parser(name: str, **options: bool) -> Parser:
    """Return the parser of a measure."""
    description, add, _, examples = MEASURES[name]
    words = f"{description[:1].upper()}{description[1:]}."
    of_measure = Parser(f"dense evaluate {name}", words, examples, **options)
    add(of_measure)
    return of_measure


def parsers(**options: bool) -> dict[str, Parser]:
    """Return the parsers of all measures."""
    return {name: parser(name, **options) for name in MEASURES}


def usage() -> str:
    """The help of `dense evaluate`."""
    lines = "\n".join(f"  {name:<12} {line}" for name, (line, *_) in MEASURES.items())
    return (
        "usage: dense evaluate VERB [options]      dense evaluate VERB --help\n\n"
        f"Measure a backbone or a model by a named protocol, saved with the numbers.\n\nverbs:\n{lines}\n"
        f"{epilogue(EXAMPLES)}"
    )


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    name, *rest = argv
    if name not in MEASURES:
        meant = did_you_mean(name, MEASURES)
        print(f"dense evaluate: error: unknown verb {name!r}.{meant} See dense evaluate --help.", file=sys.stderr)
        return 2
    options = parser(name).parse_args(rest)
    check_sources(options)
    start = time.perf_counter()
    result = MEASURES[name][2](options)
    seconds = time.perf_counter() - start
    weights = weights_in_words(options) if "backbone" in options else str(options.model)
    print(f"{result}\nweights: {weights}")
    if result.skipped:
        some = "\n  ".join(result.skipped[:10])
        print(f"skipped, because they could not be read: {len(result.skipped)} of the images\n  {some}")
    if options.output is None:
        print("nothing was saved; --output FOLDER keeps it")
    else:
        print(f"wrote {result.save(options.output, weights=weights, seed=options.seed, seconds=seconds)}")
    if "backbone" in options:
        hint(again(options, "explore", "IMAGES", "--output", "page.html"), "its features, to touch")
    else:
        hint(f"dense explore {options.model} {options.data} --output page.html", "where it fails: worst images first")
    return 0
