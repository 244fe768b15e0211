"""`dense evaluate`: k-NN, linear and fine-tuned classification of anybody's images, and probes on embedded scenes."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dense.backbone import Backbone
from dense.cli.backbone_options import open_backbone
from dense.cli.evaluate_options import (
    add_common,
    add_images,
    describe_protocol,
    open_pair,
    random_crop,
    source_of_weights,
)
from dense.cli.parser import Parser, epilogue
from dense.console import progress
from dense.data.scenes import CLASSES
from dense.evaluate import dense, discovery, restoration, video
from dense.evaluate.classification.features import READOUTS, blocks_of, default_readout, extract, final_norm, statistics
from dense.evaluate.classification.finetune import FineTuneRecipe, classification_accuracy, fine_tune
from dense.evaluate.classification.knn import NEIGHBOURS, TEMPERATURE, accuracy, check_votes, knn_classify
from dense.evaluate.classification.linear import RECIPES, linear_evaluation
from dense.evaluate.probe import K, SceneProbe
from dense.evaluate.protocol import Protocol, write_results
from dense.model.card import format_number
from dense.suggest import did_you_mean

Numbers = dict[str, Any]


@dataclass
class Outcome:
    """What a sub-verb hands back to be printed and saved."""

    protocol: Protocol
    numbers: Numbers
    backbone: Backbone
    skipped: Sequence[str] = ()


def usage() -> str:
    """The help of `dense evaluate`."""
    lines = "\n".join(f"  {name:<12} {line}" for name, (_, line) in VERBS.items())
    return (
        "usage: dense evaluate VERB [options]      dense evaluate VERB --help\n\n"
        f"Measure a backbone or a model by a named protocol, saved with the numbers.\n\nverbs:\n{lines}\n"
        f"{epilogue('dense evaluate')}"
    )


def main(argv: Sequence[str]) -> int:
    """The verb."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        print(f"dense evaluate: error: unknown verb {verb!r}.{hint} See dense evaluate --help.", file=sys.stderr)
        return 2
    start = time.perf_counter()
    function, description = VERBS[verb]
    parser = Parser(prog=f"dense evaluate {verb}", description=description.capitalize() + ".")
    outcome, options = function(parser, rest)
    seconds = time.perf_counter() - start
    weights = source_of_weights(options)
    print(f"{outcome.protocol.name} of {outcome.backbone.spec.name}, {weights}\n{outcome.protocol}")
    for name, value in outcome.numbers.items():
        if not isinstance(value, dict):
            print(f"{name}: {format_number(value)}")
    if outcome.skipped:
        some = "\n  ".join(sorted(outcome.skipped)[:10])
        print(f"skipped, because they could not be read: {len(outcome.skipped)} of the images\n  {some}")
    if options.output is not None:
        target = write_results(
            options.output,
            outcome.protocol,
            outcome.numbers,
            backbone=outcome.backbone.spec,
            weights=weights,
            seed=options.seed,
            seconds=seconds,
            skipped=outcome.skipped,
        )
        print(f"wrote {target}")
    else:
        print("nothing was saved; --output FOLDER keeps it")
    return 0


def knn(parser: Parser, argv: Sequence[str]) -> tuple[Outcome, Namespace]:
    """Weighted k-NN."""
    add_common(parser)
    add_images(parser)
    parser.add_argument("--k", type=int, nargs="+", default=list(NEIGHBOURS), help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="of the votes, exp(cosine / T)")
    parser.add_argument(
        "--readout", choices=READOUTS, default=None, help="class if there is a class token, else average"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at once")
    options = parser.parse_args(argv)
    check_votes(options.k, options.temperature)
    train, val, view = open_pair(options)
    backbone = open_backbone(options, frozen=True)
    kind = options.readout or default_readout(backbone.spec.class_token)
    load = {"batch_size": options.batch_size, "workers": options.workers}
    bank, queries = (
        extract(
            backbone,
            progress(s.batches(view, **load), name, -(-len(s) // options.batch_size)),
            blocks=blocks_of([kind]),
        )
        for name, s in (("features of train", train), ("features of val", val))
    )
    assert bank.labels is not None
    assert queries.labels is not None
    device = torch.device(options.device)
    found = knn_classify(
        bank.readout(kind), bank.labels, queries.readout(kind), options.k, options.temperature, device=device
    )
    numbers = {f"top{top} k={k}": accuracy(v, queries.labels, top) for k, v in found.items() for top in (1, 5)}
    protocol = describe_protocol("knn", options, backbone, train, val, view, kind)
    settings = {"k": list(options.k), "temperature": options.temperature, "similarity": "cosine", "bank": len(bank)}
    return Outcome(
        replace(protocol, settings=settings), numbers, backbone, sorted(train.skipped | val.skipped)
    ), options


def linear(parser: Parser, argv: Sequence[str]) -> tuple[Outcome, Namespace]:
    """Linear classification."""
    add_common(parser)
    add_images(parser)
    parser.add_argument("--recipe", choices=list(RECIPES), default="dinov2", help="whose published protocol")
    parser.add_argument("--epochs", type=int, default=None, help="length in passes, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=None, help="length in steps, instead of the recipe's")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step")
    parser.add_argument(
        "--no-augment", action="store_true", help="centre crops alone: features are computed once, which is much faster"
    )
    options = parser.parse_args(argv)
    if options.epochs is not None and options.steps is not None:
        parser.error("--epochs and --steps are two ways to say the same; give one")
    train, val, view = open_pair(options)
    backbone = open_backbone(options, frozen=True)
    recipe = RECIPES[options.recipe](backbone.spec)
    recipe = replace(recipe, batch_size=options.batch_size, augment=not options.no_augment)
    if options.epochs is not None or options.steps is not None:
        recipe = replace(recipe, epochs=options.epochs, steps=options.steps)
    result = linear_evaluation(
        backbone, train, val, recipe, train_view=random_crop(options, recipe.resample), val_view=view,
        seed=options.seed, workers=options.workers,
    )  # fmt: skip
    numbers = {
        "top1": result.top1,
        "top5": result.top5,
        "readout": result.readout,
        "learning rate": result.learning_rate,
        "heads": result.heads,
    }
    protocol = describe_protocol(
        f"linear-{recipe.name}", options, backbone, train, val, view, ", ".join(recipe.readouts)
    )
    settings = {
        "epochs": recipe.epochs, "steps": recipe.length(len(train))[0], "batch_size": recipe.batch_size,
        "learning_rates_at_256": list(recipe.learning_rates), "momentum": 0.9, "weight_decay": 0.0,
        "schedule": f"cosine to 0, each {recipe.anneal}",
        "training_view": f"random crop and flip, {recipe.resample}" if recipe.augment else "as validation",
        "choice": "best head on val" if len(result.heads) > 1 else "one head",
    }  # fmt: skip
    return Outcome(
        replace(protocol, settings=settings), numbers, backbone, sorted(train.skipped | val.skipped)
    ), options


def finetune(parser: Parser, argv: Sequence[str]) -> tuple[Outcome, Namespace]:
    """Fine-tuning."""
    add_common(parser)
    add_images(parser)
    default = FineTuneRecipe()
    for name in ("epochs", "batch_size", "lr", "min_lr", "warmup_epochs", "layer_decay", "weight_decay"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=name.replace("_", " "))
    parser.add_argument("--label-smoothing", type=float, default=default.label_smoothing, help="label smoothing")
    parser.add_argument("--drop-path", type=float, default=0.1, help="of the deepest block")
    parser.add_argument("--readout", choices=READOUTS, default=None, help="class if there is a class token")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of forward and backward")
    options = parser.parse_args(argv)
    if not 0 <= options.drop_path < 1:
        raise ValueError(f"--drop-path {options.drop_path}: expected 0 or more, below 1")
    recipe = FineTuneRecipe(
        options.epochs, options.batch_size, options.lr, options.min_lr, options.warmup_epochs, options.layer_decay,
        options.weight_decay, options.label_smoothing, options.readout, options.precision,
    )  # fmt: skip
    train, val, view = open_pair(options)
    backbone = open_backbone(options, drop_path_rate=options.drop_path)
    classifier = fine_tune(
        backbone, train, recipe, view=random_crop(options, "bicubic"), seed=options.seed, workers=options.workers
    )
    found = classification_accuracy(classifier, val.batches(view, 64, workers=options.workers), (1, 5))
    numbers = {f"top{top}": value for top, value in found.items()}
    protocol = describe_protocol("finetune", options, backbone, train, val, view, classifier.readout)
    settings = vars(recipe) | {"drop_path": options.drop_path, "training_view": "random crop and flip, bicubic"}
    settings.pop("readout")
    if options.output is not None:
        from safetensors.torch import save_file

        backbone.save_pretrained(options.output / "backbone")
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in classifier.head.state_dict().items()},
            options.output / "head.safetensors",
            metadata={"classes": "\n".join(train.classes), "readout": classifier.readout},
        )
    return Outcome(
        replace(protocol, settings=settings), numbers, backbone, sorted(train.skipped | val.skipped)
    ), options


def probe(parser: Parser, argv: Sequence[str]) -> tuple[Outcome, Namespace]:
    """Probes on embedded scenes."""
    add_common(parser)
    parser.add_argument("--train-scenes", type=int, default=500, help="how many scenes to learn from")
    parser.add_argument("--val-scenes", type=int, default=250, help="how many scenes to judge by")
    parser.add_argument("--size", type=int, default=96, help="side of the scenes, a multiple of the patch")
    parser.add_argument("--layers", default="last", help="last, last4, even4, default, or indices such as 2,5")
    parser.add_argument("--baselines", action="store_true", help="also random initialisation, raw pixels and colours")
    options = parser.parse_args(argv)
    layers = options.layers if options.layers.isidentifier() else tuple(int(i) for i in options.layers.split(","))
    backbone = open_backbone(options, frozen=True)
    scenes = SceneProbe(options.train_scenes, options.val_scenes, options.size, options.seed)
    numbers: Numbers = scenes(backbone, layers) | (scenes.baselines(backbone, layers) if options.baselines else {})
    protocol = Protocol(
        name="probe",
        train=f"scenes:train ({options.train_scenes} images)",
        val=f"scenes:val ({options.val_scenes} images)",
        view="as rendered",
        resolution=options.size,
        features=f"patches of layers {options.layers}",
        norm=final_norm(backbone),
        statistics=statistics(backbone),
        classes=len(CLASSES),
        settings={
            "segmentation": "logistic regression of patches, L-BFGS, weight decay 1e-3",
            "depth": "ridge regression of log depth, penalty 1e-3",
            "k": K,
            "temperature": TEMPERATURE,
        },
    )
    return Outcome(protocol, numbers, backbone), options


VERBS: dict[str, tuple[Callable[[Parser, Sequence[str]], tuple[Outcome, Namespace]], str]] = {
    "knn": (knn, "weighted k-nearest-neighbour classification of frozen features"),
    "linear": (linear, "linear classification of frozen features, by DINO's or DINOv2's protocol"),
    "finetune": (finetune, "classification with the whole backbone trained, layer-wise learning rates"),
    "probe": (probe, "segmentation, depth and k-NN probes on the embedded scenes"),
    "depth": (partial(dense.run, what="depth"), "depth of a trained model, by a named protocol"),
    "segmentation": (partial(dense.run, what="segmentation"), "segmentation of a trained model, by a named protocol"),
    "restoration": (restoration.run, "restored images, by kind and level of degradation"),
    "discovery": (discovery.run, "objects and regions found without labels, against masks"),
    "video": (video.run, "objects of a first frame followed through videos, by DAVIS-2017's J and F"),
}
