"""Depth and segmentation measured by the book: `dense evaluate depth` and `dense evaluate segmentation`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dense.cli.evaluate_options import add_labelled, add_output, open_data
from dense.cli.parser import Parser
from dense.console import progress, say
from dense.data.labelled.check import check_all
from dense.data.labelled.sample import LabelledSource
from dense.data.transforms import EvalTransform
from dense.evaluate.protocol import Protocol
from dense.metrics import CROPS, BoundaryIoU, DepthMetrics, RelativeDepthMetrics, SegmentationMetrics
from dense.model.inference import Edges, Maps, Network, augmented, slid
from dense.model.network import DenseModel, Inference
from dense.suggest import did_you_mean
from heads.resize import resize

TARGETS = {"depth": ("depth",), "segmentation": ("labels",)}
CHECKED = 100  # labelled images that are looked into before the first is measured


@dataclass(frozen=True)
class DenseProtocol:
    """Everything that decides a dense number besides the weights.

    resize: shorter side of the images; predictions are resized to the targets before they are compared. window,
    stride, edges: sliding windows. scales, flip: averages of logits (of depth itself), over whole images, or over
    each window by itself (`over`). crop, cap, alignment, average: see DepthMetrics. ignore: label that does not count.
    """

    name: str
    resize: int | None = None
    window: int | None = None
    stride: int | None = None
    edges: Edges = "inward"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    over: Literal["picture", "window"] = "picture"
    crop: str = "none"
    cap: tuple[float, float] = (1e-3, 80.0)
    alignment: Literal["none", "median", "lsq"] = "none"
    average: Literal["image", "pixel"] = "image"
    ignore: int = 255
    boundary: bool = False

    def __post_init__(self) -> None:
        Inference(self.resize, self.window, self.stride)  # checks them

    def around(self, network: Network) -> Network:
        """The network as this protocol uses it."""
        run = network
        if self.over == "window":
            run = augmented(run, self.scales, self.flip)
        if self.window is not None:
            run = slid(run, self.window, self.stride or self.window, self.edges)
        return augmented(run, self.scales, self.flip) if self.over == "picture" else run


PROTOCOLS: dict[str, DenseProtocol] = {
    p.name: p
    for p in (
        DenseProtocol("plain"),
        DenseProtocol("nyuv2", crop="nyu_eigen", cap=(1e-3, 10.0), flip=True),
        DenseProtocol("kitti_eigen", crop="garg", cap=(1e-3, 80.0), flip=True),
        DenseProtocol("relative", alignment="lsq", cap=(1e-3, 80.0)),
        DenseProtocol("slide_512", resize=512, window=512, stride=341),
        DenseProtocol("dinov2_ms", resize=640, window=640, stride=320, scales=(1.0, 1.32, 1.73, 2.28, 3.0), flip=True),
    )
}


def find_protocol(name: str) -> DenseProtocol:
    """By name."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: known are {', '.join(PROTOCOLS)}.{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


@torch.inference_mode()
def evaluate_dense(model: DenseModel, source: LabelledSource, protocol: DenseProtocol) -> dict[str, dict[str, Any]]:
    """Numbers of a model on labelled images: "depth", "segmentation" or both, as far as model and images go."""
    device = next(model.eval().parameters()).device
    measured = metrics(model, source, protocol)
    for metric in measured.values():
        metric.to(device)
    network = protocol.around(model.maps)
    transform = EvalTransform(protocol.resize)
    for index in progress(range(len(source)), "pictures"):
        sample = transform(source.read(index))
        maps = network(model.backbone.normalise(sample.image[None].to(device)))
        if sample.depth is not None and "depth" in measured:
            target = sample.depth[None].to(device)
            measured["depth"].update(resized(maps, "depth", target), target, target.isfinite())
        if sample.labels is not None and "segmentation" in measured:
            labels = sample.labels[None].to(device)
            predicted = resized(maps, "labels", labels).argmax(1)
            for name in ("segmentation", "boundary"):
                if name in measured:
                    measured[name].update(predicted, labels)
    return {name: table(name, metric) for name, metric in measured.items()}


def metrics(model: DenseModel, source: LabelledSource, protocol: DenseProtocol) -> dict[str, Any]:
    """What can be measured; an error if nothing can."""
    found: dict[str, Any] = {}
    if "depth" in model.outputs and source.depth_kind is not None:
        kind = model.depth_kind
        if source.depth_kind == "inverse_relative" and kind != "inverse_relative":
            raise ValueError(
                f"the data hold inverse relative depth, against which a model of {kind} depth cannot be measured; "
                "measure it on metric depth"
            )
        if source.depth_kind == "inverse_relative":
            return {"depth": RelativeDepthMetrics()} | label_metrics(model, source, protocol)
        if kind == "inverse_relative" and protocol.alignment == "none":
            raise ValueError(
                "this model predicts inverse relative depth, which has no metres; choose a protocol with an alignment, "
                "such as --protocol relative, or --alignment lsq"
            )
        found["depth"] = DepthMetrics(kind, protocol.alignment, protocol.cap, protocol.crop, protocol.average)  # type: ignore[arg-type]
    found |= label_metrics(model, source, protocol)
    if not found:
        raise ValueError(
            f"the model predicts {' and '.join(model.outputs)}, the data have "
            f"{'depth' if source.depth_kind else 'classes' if source.classes else 'no answers'}: nothing to compare"
        )
    return found


def label_metrics(model: DenseModel, source: LabelledSource, protocol: DenseProtocol) -> dict[str, Any]:
    """Of classes, where model and data have them and mean the same ones."""
    if "labels" not in model.outputs or source.classes is None:
        return {}
    ours, theirs = model.classes or (), source.classes
    if len(ours) != len(theirs):
        raise ValueError(f"the model knows {len(ours)} classes, the data have {len(theirs)}: {', '.join(theirs[:10])}")
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other:
            raise ValueError(
                f"class {number} is {own!r} to the model and {other!r} in the data; name the classes of the data as the "
                "model does, and in its order"
            )
    found: dict[str, Any] = {"segmentation": SegmentationMetrics(len(theirs), protocol.ignore, theirs)}
    if protocol.boundary:
        found["boundary"] = BoundaryIoU(len(theirs), ignore=protocol.ignore)
    return found


def resized(maps: Maps, name: str, target: Tensor) -> Tensor:
    """A map at the size of the target."""
    return resize(maps[name], (target.shape[-2], target.shape[-1]), align_corners=False)


def table(name: str, metric: Any) -> dict[str, Any]:
    """Numbers, and with classes a table of them."""
    numbers = metric.compute()
    return numbers | {"per_class": metric.per_class()} if name == "segmentation" else numbers


def run(parser: Parser, argv: Sequence[str], what: str) -> tuple[Any, Namespace]:
    """The sub-verbs: options, the model, the images, numbers."""
    from dense.cli.evaluate import Outcome

    add_options(parser)
    options = parser.parse_args(argv)
    protocol = settle(options)
    source = open_data(options, targets=TARGETS[what], classes=options.classes)
    model = DenseModel.from_pretrained(options.model).to(options.device)
    measured = metrics(model, source, protocol)  # raises before the images are looked at
    if what not in measured:
        raise ValueError(
            f"there is no {what} to measure: the model or the data lack it; measured would be {', '.join(measured)}"
        )
    if (whole := getattr(source, "whole", 0)) and str(options.data) != model.facts.get("images"):
        say(
            f"{options.data} is not split, and the model was trained on other images: {len(source)} of its {whole} count; "
            "--split all counts every one"
        )
    check_all({options.split: source}, limit=CHECKED)
    found = evaluate_dense(model, source, protocol)
    numbers = {k: v for k, v in found[what].items() if k != "per_class"}
    if "boundary" in found and what == "segmentation":
        numbers |= found["boundary"]
    if per_class := found[what].get("per_class"):
        print(per_class_table(per_class))
        numbers["per_class"] = per_class
    settings = {k: v for k, v in vars(protocol).items() if k != "name"} | {"kb_crop": options.kb_crop}
    described = Protocol(
        name=f"{what}, {protocol.name}",
        train=str(model.facts.get("images", "unknown")),
        val=f"{options.data} {options.split} ({len(source)} images)",
        view=f"shorter side {protocol.resize}" if protocol.resize else "as they are",
        resolution=protocol.window or protocol.resize or 0,
        features=f"layers {', '.join(map(str, model.layers))}",
        norm=model.norm,
        statistics="of training (evaluation mode)",
        classes=len(model.classes or ()),
        settings=settings,
    )
    options.backbone, options.weights = str(options.model), None
    return Outcome(described, numbers, model.backbone), options


def add_options(parser: Parser) -> None:
    """Which model, which images, how."""
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("--data", required=True, help="folder with images/ and masks/ or depth/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, ade20k, voc2012, cityscapes, nyuv2, kitti_eigen")
    parser.add_argument("--split", default="val", help="train, val or test; all, of a folder that is not split")
    parser.add_argument("--classes", metavar="YAML", help="what values in masks mean, instead of classes.yaml")
    parser.add_argument("--protocol", default="plain", help=", ".join(PROTOCOLS))
    parser.add_argument("--resize", type=int, help="shorter side")
    parser.add_argument("--window", type=int, help="side of sliding windows")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", help="average over sizes")
    parser.add_argument("--crop", choices=tuple(CROPS), help="part of the image that counts")
    parser.add_argument("--cap", type=float, nargs=2, metavar=("NEAR", "FAR"), help="metres that count")
    parser.add_argument("--alignment", choices=("none", "median", "lsq"), help="of relative depth")
    parser.add_argument("--boundary", action="store_true", help="boundary IoU too")
    add_labelled(parser, scenes=200)
    add_output(parser)


def settle(options: Namespace) -> DenseProtocol:
    """The named protocol with what the command line changes; a changed one says so in its name."""
    protocol = find_protocol(options.protocol)
    given = ("resize", "window", "stride", "scales", "crop", "cap", "alignment")
    changes: dict[str, Any] = {k: getattr(options, k) for k in given if getattr(options, k) is not None}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    changes |= {k: True for k in ("flip", "boundary") if getattr(options, k)}
    if "window" in changes and protocol.stride is None:
        changes.setdefault("stride", Inference(window=options.window).step)
    changes = {k: v for k, v in changes.items() if v != getattr(protocol, k)}
    return replace(protocol, name=f"{protocol.name}, changed", **changes) if changes else protocol


def per_class_table(rows: dict[str, dict[str, float]]) -> str:
    """IoU, accuracy and Dice of every class."""
    width = max(map(len, rows))
    lines = [f"{'class':<{width}}     IoU  accuracy    Dice"]
    lines += [f"{n:<{width}}  {r['iou']:>6.3f}    {r['accuracy']:>6.3f}  {r['dice']:>6.3f}" for n, r in rows.items()]
    return "\n".join(lines)
