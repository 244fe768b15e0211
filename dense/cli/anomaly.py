"""`dense anomaly fit`: a model that finds what differs from good images, without training."""

from __future__ import annotations

import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.memory_options import add_good, good_options
from dense.cli.parser import (
    Parser,
    add_backbone,
    add_overwrite,
    check_sources,
    choose_levels,
    open_backbone,
    reading_of,
    run_folder,
    warn_if_random,
)
from dense.console import hint

EXAMPLES = (
    (
        "dense anomaly fit GOOD_IMAGES --output runs/parts",
        "a model of good images; then dense predict runs/parts IMAGES",
    ),
    ("dense anomaly fit GOOD_IMAGES --rotations 8 --output runs/parts", "of parts that lie in any direction"),
)


def parser(**options: bool) -> Parser:
    words = "Fit a model to good images; it scores how far patches of other images are from theirs."
    usage = "dense anomaly fit GOOD_IMAGES ... --output MODEL [options]"
    parser = Parser("dense anomaly", words, EXAMPLES, usage=usage, **options)
    parser.add_argument("action", type=action, choices=["fit"], help="what is done")
    parser.add_argument(
        "images", nargs="+", metavar="GOOD_IMAGES", help="images and folders of images, all of them good"
    )
    parser.add_argument("--output", type=Path, default=Path("anomaly"), help="folder for the model")
    add_backbone(parser, "of the choice of patches, and of random initialisation")
    add_good(parser)
    add_overwrite(parser)
    return parser


def action(text: str) -> str:
    """fit, since the model that it writes is one like any other."""
    if text != "fit":
        raise ArgumentTypeError(f"{text!r}: expected fit; a fitted model is applied by dense predict MODEL IMAGES")
    return text


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    check_sources(options)
    choose_levels(options, options.images)
    with run_folder("anomaly", options.output, options, but=["action"]):
        return fit(options)


def fit(options: Namespace) -> int:
    """Build the bank, choose the threshold and save the model."""
    from dense.data.image import list_images
    from dense.memory import build_anomaly

    images = list_images(options.images, reading=reading_of(options))
    backbone = open_backbone(options, frozen=True)
    warn_if_random(options)
    facts = {"images": ", ".join(options.images)}
    model = build_anomaly(backbone, images, **good_options(options), seed=options.seed, facts=facts)
    model.save_pretrained(options.output)
    print(
        f"kept {model.facts['patches']} patches of {model.facts['good images']} good images\n"
        f"threshold: {model.facts['threshold']}\nwrote {options.output}"
    )
    tested = Path(options.images[0]).parent.parent / "test"  # beside train/good
    others = str(tested) if tested.is_dir() else "IMAGES"
    hint(shlex.join(["dense", "predict", str(options.output), others]), "scores and maps of other images")
    return 0
