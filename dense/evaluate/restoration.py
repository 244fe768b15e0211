"""Restoration measured: `dense evaluate restoration`, PSNR and SSIM by kind and level of degradation."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any

import torch

from dense.cli.evaluate_options import add_labelled, add_output, open_data
from dense.cli.parser import Parser
from dense.console import progress
from dense.data.degrade import Degradation, Degrade
from dense.data.labelled.check import check_all
from dense.data.labelled.sample import LabelledSource
from dense.evaluate.dense import CHECKED
from dense.evaluate.protocol import Protocol
from dense.metrics import RestorationMetrics
from dense.model.inference import augmented, through
from dense.model.network import DenseModel, Inference
from dense.tasks.degraded import DegradedImages, check_plan

INPUT = "input"  # the degraded image as it is, for comparison


@torch.inference_mode()
def evaluate_restoration(
    model: DenseModel,
    source: LabelledSource,
    plan: Degrade | None,
    inference: Inference | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """Numbers of `RestorationMetrics` with a row for each kind and level of degradation, and those of the degraded degraded
    themselves under "input". plan: None for degraded that come with their degradation. inference: how degraded meet the model;
    None for as it was saved."""
    if "restored" not in model.outputs:
        raise ValueError(
            f"the model predicts {' and '.join(model.outputs)}, no restored image; train a RestorationTask"
        )
    where = next(model.eval().parameters()).device
    degraded = DegradedImages(source, plan, every=True)
    names = tuple(label(group[0]) for group in degraded.groups)
    ours, theirs = (RestorationMetrics(names).to(where) for _ in range(2))
    network = augmented(through(model, inference or model.inference), flip=flip)
    for index in progress(range(len(degraded)), "degraded"):
        sample = degraded[index]
        if sample.clean is None:
            raise ValueError(f"{sample.name} has no clean image to be compared with; use layout paired or --degrade")
        name = names[index % len(names)]
        images, clean = sample.image[None].to(where), sample.clean[None].to(where).float() / 255
        ours.update(network(model.backbone.normalise(images))["restored"], clean, [name])
        theirs.update(images.float() / 255, clean, [name])
    return ours.compute() | {INPUT: theirs.compute()}


def label(degradation: Degradation) -> str:
    """noise 25, or noise 35, unseen."""
    if not degradation.level:
        return degradation.kind
    return f"{degradation.kind} {degradation.level:g}{'' if degradation.seen else ', unseen'}"


def run(parser: Parser, argv: Sequence[str]) -> tuple[Any, Namespace]:
    """The sub-verb."""
    from dense.cli.evaluate import Outcome

    add_options(parser)
    options = parser.parse_args(argv)
    plan = None if options.layout == "paired" else Degrade(dict(options.degrade), dict(options.unseen) or None)
    source = open_data(options)
    check_plan(plan, source, options.layout)
    model = DenseModel.from_pretrained(options.model).to(options.device)
    inference = seen_through(model, options)
    check_all({options.split: source}, limit=CHECKED)
    found = evaluate_restoration(model, source, plan, inference, options.flip)
    print(table(found))
    described = Protocol(
        name="restoration",
        train=str(model.facts.get("images", "unknown")),
        val=f"{options.data} {options.split} ({len(source)} images)",
        view="as they are",
        resolution=inference.window or 0,
        features=f"layers {', '.join(map(str, model.layers))}",
        norm=model.norm,
        statistics="of training (evaluation mode)",
        classes=0,
        settings={
            "kinds": {} if plan is None else plan.kinds, "unseen": {} if plan is None else plan.unseen,
            "window": inference.window, "stride": inference.stride, "flip": options.flip, "kb_crop": options.kb_crop,
            "pixels": "8 bits; psnr and ssim of RGB, psnr_y and ssim_y of Y (BT.601, 16 to 235)",
        },
    )  # fmt: skip
    options.backbone, options.weights = str(options.model), None
    return Outcome(described, found, model.backbone), options


def seen_through(model: DenseModel, options: Namespace) -> Inference:
    """The windows that are asked for, or those saved with the model."""
    if options.window is None and options.stride is None:
        return model.inference
    window = model.inference.window if options.window is None else options.window
    return Inference(window=window, stride=options.stride)


def add_options(parser: Parser) -> None:
    """Which model, which images, which degradation."""
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("--data", required=True, help="folder of clean images, of input/ and target/, or scenes")
    parser.add_argument("--layout", default="pictures", help="images, paired, or one with depth: folder, nyuv2, ...")
    parser.add_argument("--split", default="val", help="train, val, test or all")
    for name, words in (("degrade", "degradation"), ("unseen", "degradation that was not trained on")):
        parser.add_argument(
            f"--{name}", type=levels, nargs="+", default=[], metavar="KIND=LEVELS",
            help=f"{words}, such as noise=15,25 or noise for the usual levels",
        )  # fmt: skip
    parser.add_argument("--window", type=int, help="side of sliding windows, instead of those saved with the model")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    add_labelled(parser, scenes=50)
    add_output(parser)


def levels(words: str) -> tuple[str, list[float]]:
    """noise=15,25"""
    kind, _, numbers = words.partition("=")
    try:
        return kind, [float(n) for n in numbers.split(",") if n]
    except ValueError:
        raise ArgumentTypeError(f"{words}: expected KIND=LEVELS with numbers, such as noise=15,25") from None


def table(found: dict[str, Any]) -> str:
    """A row a kind and level, with the PSNR of the degraded images."""
    rows, before = found["per_degradation"], found[INPUT]["per_degradation"]
    width = max(map(len, (*rows, "all")))
    lines = [f"{'degradation':<{width}}   input    psnr    ssim  psnr_y  ssim_y"]
    for name, row in (*rows.items(), ("all", found)):
        start = before[name]["psnr"] if name in before else found[INPUT]["psnr"]
        lines.append(
            f"{name:<{width}}  {start:>6.2f}  {row['psnr']:>6.2f}  {row['ssim']:>6.3f}  {row['psnr_y']:>6.2f}  "
            f"{row['ssim_y']:>6.3f}"
        )
    return "\n".join(lines)
