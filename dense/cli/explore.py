"""`dense explore`: features and predictions of images in one interactive HTML page."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.cli.parser import (
    OPENING,
    Parser,
    add_backbone,
    backbone_in_words,
    check_sources,
    choose_levels,
    model_config,
    model_of_run,
    open_backbone,
    opening_words,
    usable_device,
    warn_if_random,
)
from dense.console import hint, say
from dense.files import check_writable, megabytes

EXAMPLES = (
    ("dense explore IMAGES --output page.html", "click a patch, and see what resembles it in every image"),
    ("dense explore runs/mine/model LABELLED --output page.html", "where a model fails: worst images first"),
)


def parser(**options: bool) -> Parser:
    words = "Write one HTML page, without a server or the network, on which the features of images are explored."
    parser = Parser("dense explore", words, EXAMPLES, **options)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="images, videos or folders; before them, a trained model")
    add("--output", type=Path, default=Path("explore.html"), help="the page")
    add("--model", help="directory that dense train wrote: its predictions, uncertainty and errors")
    add("--layout", help="with a model: layout of labelled images, as in dense evaluate; that of the training")
    add("--split", help="with a model: which of the labelled images, val if left out; all those of an unsplit folder")
    add("--val-ratio", type=float, help="with a model: as in dense evaluate; that of the training, or 0.1")
    add("--split-by", metavar="PATTERN", help="with a model: as in dense evaluate; that of the training")
    add("--classes", metavar="YAML", help="with a model: classes of the values in masks, instead of classes.yaml")
    add("--depth", metavar="YAML", help="with a model: how depth is stored, instead of depth.yaml")
    add("--most", type=int, default=100, help="images, evenly spaced among those that there are")
    add("--size", type=int, default=320, help="shorter side of the backbone's input; 0: as it is")
    add("--no-attention", action="store_true", help="leave attention out, which makes the page smaller")
    add_backbone(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.model is None and len(options.images) > 1 and model_config(model_of_run(options.images[0])):
        options.model = options.images.pop(0)
    if options.size < 0 or options.most < 1:
        of_verb.error(f"--size {options.size} --most {options.most}: expected 0 or more pixels and 1 or more images")
    given = [name for name in OPENING if getattr(options, name) is not None]
    if given and options.model is None:
        option = f"--{given[0].replace('_', '-')}"
        of_verb.error(f"{option} is of a model's labelled images; name the model before the images, or leave it out")
    if options.output.suffix not in (".html", ".htm"):
        of_verb.error(f"--output {options.output}: expected the name of a page, such as page.html")
    check_writable(options.output.parent)
    named = options.backbone is not None
    if options.model and not named:
        options.backbone = ""  # the model's own
    check_sources(options)
    choose_levels(options, options.images)
    return explore(options, named)


def explore(options: Namespace, named: bool) -> int:
    """Write the page; return the exit status."""
    from dense.explore.run import explore
    from dense.predict import load

    device = usable_device(options.device)
    model = load(options.model, device) if options.model else None
    source = options.images if model is None else ground_truth(options, model)
    labelled = source is not options.images
    page = explore(
        source, options.output, model=model,
        backbone=open_backbone(options, frozen=True) if named or model is None else None,
        size=options.size, most=options.most, attention=not options.no_attention,
    )  # fmt: skip
    if page.unreadable:
        some = "\n  ".join(page.unreadable[:20])
        print(f"could not be read: {len(page.unreadable)}\n  {some}", file=sys.stderr)
    size = megabytes(options.output.stat().st_size, up=True)
    print(f"wrote {options.output}: {len(page.images)} images, {size}; open it in a browser")
    if model is None:
        say(f"backbone: {backbone_in_words(options)}")
        warn_if_random(options)
        hint(training(options), "a head of your own")
    else:
        task = "depth" if model.model.task == "joint" else model.model.task
        words = ["dense", "evaluate", task, options.model, "--data"]
        words += [options.images[0], *opening_words(options)] if labelled else ["LABELLED"]
        hint(shlex.join(words), "the errors as numbers, by a named protocol")
    return 0


def training(options: Namespace) -> str:
    """Return the command that trains a head on the backbone of the page, on its images if they are labelled."""
    task, data = "segmentation", "LABELLED"
    for folder in options.images[:1]:
        for kind, name in {"depth": "depth", "masks": "segmentation"}.items():
            if any((Path(folder) / part / kind).is_dir() for part in ("", "train")):
                task, data = name, folder
    words = ["dense", "train", "--config", f"{task}/small_data", "--data.root", data, "--output", "runs/mine"]
    if not options.at_hand:
        words += ["--model.backbone.name", options.backbone, "--model.backbone.weights", options.weights or "null"]
    return shlex.join(words)


def ground_truth(options: Namespace, model: Any) -> Any:
    """Return labelled images, for a model of objects with masks of them, or the images without ground truth."""
    from dense.data.labelled.open import as_in_training, class_target, open_labelled
    from dense.data.labelled.sample import UNCOVERED

    if len(options.images) == 1 and not Path(options.images[0]).is_file():
        given = {name: getattr(options, name) for name in OPENING if name != "split"} | {"annotations": None}
        folder, split = options.images[0], options.split or "val"
        try:
            opening = as_in_training(model.model.facts, folder, **given)
            target = "masks" if model.objects else "labels"
            if not model.objects and "depth" not in model.model.outputs:
                target = class_target(folder, split, opening["layout"], opening["annotations"])
            if target == "labels":
                del opening["annotations"]
            source = open_labelled(
                folder, split, partial=True, targets=("masks",) if target == "masks" else ("labels", "depth"),
                reading=model.inference.reading, **opening,
            )  # fmt: skip
            if model.objects or getattr(source, "covers", True):
                return source
            say(f"without ground truth: {UNCOVERED}")
        except FileNotFoundError as reason:
            if options.split is not None:
                raise
            say(f"without ground truth: {reason}")
    return options.images
