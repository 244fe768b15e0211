"""Measures of a backbone on images with one label each: k-NN, linear classification, fine-tuning."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from dense.cli.evaluate.shared import add_common, measured_backbone, norms_of, several
from dense.cli.parser import Parser, reading_of, writable
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.evaluate.classification.data import Pair
    from dense.evaluate.protocol import Result

READOUTS = ("class", "average", "class_average", "last4", "last4_average")
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
        scenes=(options.train_scenes, options.val_scenes), seed=options.seed, reading=reading_of(options),
    )  # fmt: skip


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
