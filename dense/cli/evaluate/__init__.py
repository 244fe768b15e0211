"""`dense evaluate`: measure a backbone or a trained model by a named protocol."""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dense.cli.evaluate.classification import add_finetune, add_knn, add_linear, finetune, knn, linear
from dense.cli.evaluate.discovery import add_discovery, add_video, discovery, video
from dense.cli.evaluate.labelled import (
    add_dense,
    add_masks,
    add_probe,
    add_restoration,
    dense,
    masks,
    probe,
    restoration,
)
from dense.cli.evaluate.memory import (
    add_anomaly,
    add_in_context,
    add_labels_needed,
    anomaly,
    in_context,
    labels_needed,
)
from dense.cli.evaluate.retrieval import add_retrieval, retrieval
from dense.cli.parser import (
    Parser,
    again,
    check_sources,
    epilogue,
    images_of,
    model_config,
    opening_words,
    weights_in_words,
)
from dense.console import hint
from dense.files import RunFolder
from dense.suggest import UsageError, did_you_mean

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result

EXAMPLES = (
    ("dense evaluate probe --backbone scenes_tiny --baselines", "a backbone, on embedded scenes"),
    ("dense evaluate depth runs/depth/model --data MINE --flip", "a trained model, on your images"),
)


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
            ("dense evaluate linear --backbone photos_tiny --train A --val B --no-augment --steps 500", "quick"),
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
    "instance": (
        "mask AP of instances, by COCO's protocol", add_masks, partial(masks, what="instance"),
        [
            ("dense evaluate instance runs/objects/model --data MINE", "MINE/images and MINE/instances.json"),
            ("dense evaluate instance EOMT --data COCO --layout coco --protocol eomt_640", "a published model"),
        ],
    ),
    "panoptic": (
        "panoptic quality of things and stuff", add_masks, partial(masks, what="panoptic"),
        [
            ("dense evaluate panoptic runs/panoptic/model --data scenes", "embedded scenes"),
            ("dense evaluate panoptic EOMT --data COCO --layout coco_panoptic --protocol eomt_640",
             "a published model"),
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
    "labels-needed": (
        "mIoU against the number of annotated images, for memories and trained heads", add_labels_needed,
        labels_needed,
        [
            ("dense evaluate labels-needed --backbone dinov2_vits14 --weights FILE --data MINE --output runs/labels",
             "before you annotate more: a table and a plot"),
        ],
    ),
    "retrieval": (
        "images of the same class, landmark or original found by cosine of frozen features", add_retrieval, retrieval,
        [
            ("dense evaluate retrieval --backbone NAME --weights FILE --data MINE", "one folder per class"),
            ("dense evaluate retrieval --backbone dino_vits16 --weights FILE --data OXFORD --layout roxford5k "
             "--multi-scale", "revisited Oxford: easy, medium and hard"),
        ],
    ),
    "anomaly": (
        "anomalies of images and pixels, by a fitted model, or by a backbone and good images", add_anomaly, anomaly,
        [
            ("dense evaluate anomaly runs/parts --data MINE",
             "MINE/train/good, test/good, test/KIND, ground_truth/KIND"),
            ("dense evaluate anomaly --backbone dinov2_vits14 --weights FILE --data MVTEC --layout mvtec --shots 1",
             "one good image per category, as published"),
        ],
    ),
    "discovery": (
        "objects and regions found without labels, against masks", add_discovery, discovery,
        [
            ("dense evaluate discovery --backbone photos_tiny --data scenes --method all --baselines",
             "embedded scenes"),
            ("dense evaluate discovery --backbone dino_vits16 --weights FILE --data VOC --layout voc2012 --method lost",
             "Pascal VOC"),
        ],
    ),
    "video": (
        "objects of a first frame followed through videos, by DAVIS-2017's J and F", add_video, video,
        [
            ("dense evaluate video --backbone photos_tiny --data scenes --baselines", "embedded clips"),
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
    check_model(name, getattr(options, "model", None))
    if options.output is None:
        return measure(name, options)
    with RunFolder(options.output, f"evaluate {name}"):
        return measure(name, options)


PREDICTED = {  # by a model of a task, and the measures of it
    "depth": ("depth", ("depth",)),
    "segmentation": ("classes", ("segmentation", "instance", "panoptic")),
    "joint": ("depth and classes", ("depth", "segmentation", "instance", "panoptic")),
    "restoration": ("restored images", ("restoration",)),
    "instance": ("instances", ("instance",)),
    "panoptic": ("panoptic segments", ("panoptic", "segmentation")),
    "anomaly": ("anomalies", ("anomaly",)),
}


def check_model(name: str, model: str | None) -> None:
    """Raise for a model of another task than the measure's, before anything is opened."""
    task = (model_config(model) or {}).get("task") if model else None
    if task not in PREDICTED:
        return
    predicted, measures = PREDICTED[task]
    if name not in measures:
        raise UsageError(f"{model} predicts {predicted}; measure it with dense evaluate {measures[0]} {model}")


def measure(name: str, options: Namespace) -> int:
    """Measure, print and save the numbers; return the exit status."""
    start = time.perf_counter()
    result = MEASURES[name][2](options)
    seconds = time.perf_counter() - start
    of_backbone = getattr(options, "model", None) is None
    weights = weights_in_words(options) if of_backbone else str(options.model)
    print(f"{result}\nweights: {weights}")
    if result.skipped:
        some = "\n  ".join(result.skipped[:10])
        print(f"skipped, because they could not be read: {len(result.skipped)} of the images\n  {some}")
    if options.output is None:
        print("nothing was saved; --output FOLDER keeps it")
    else:
        print(f"wrote {result.save(options.output, weights=weights, seed=options.seed, seconds=seconds)}")
    data, layout = getattr(options, "data", None), getattr(options, "layout", None)
    if of_backbone:
        images = images_of(data or getattr(options, "val", None), layout)
        hint(again(options, "explore", images, "--output", "page.html"), "its features, interactively")
    elif name == "anomaly":
        command = ("dense", "predict", options.model, images_of(data, layout), "--output", "predictions")
        hint(shlex.join(map(str, command)), "scores and maps of its images")
    else:
        arranged = [] if name == "restoration" else opening_words(options)
        command = ("dense", "explore", options.model, data, *arranged, "--output", "page.html")
        hint(shlex.join(map(str, command)), "where it fails: worst images first")
    return 0
