"""Depth and segmentation of a trained model, measured by a named protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dense.console import progress, say, warn
from dense.data.labelled.check import check_all
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import UNCOVERED, LabelledSource, with_labels
from dense.data.transforms import EvalTransform
from dense.data.windows import Targets, large_image
from dense.evaluate.large import compare, large_settings, refuse_large, size_for
from dense.evaluate.protocol import Protocol, Result, named
from dense.metrics import BoundaryIoU, DepthEdges, DepthMetrics, RelativeDepthMetrics, SegmentationMetrics
from dense.metrics.discovery import HungarianIoU
from dense.model.inference import Edges, Maps, Network, augmented, slid, window_of
from dense.model.network import DenseModel, Inference
from dense.model.queries import as_classes
from heads.features import Size
from heads.layers import resize

TARGETS = {"depth": ("depth",), "segmentation": ("labels",)}
CHECKED = 100  # labelled images that are checked before the first is measured


@dataclass(frozen=True)
class DenseProtocol:
    """Everything that decides a dense number besides the weights.

    resize, longer: working size of the images, of the shorter or the longer side, by default the model's; predictions
    are resized to the targets before they are compared. window, stride, edges: sliding windows, by default the model's.
    scales, flip: test-time augmentation, averages of logits (or of depth) over whole images, or within each window
    (`over`). crop, cap, alignment, average: see DepthMetrics. ignore: label that is not counted. boundary, hungarian:
    also boundary measures; also mIoU after predicted classes were matched with true ones. score_at: targets keep their
    size (image), or are resized with the image (input).
    """

    name: str
    resize: int | tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    edges: Edges = "inward"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    over: Literal["image", "window"] = "image"
    crop: str = "none"
    cap: tuple[float, float] = (1e-3, 80.0)
    alignment: Literal["none", "median", "lsq"] = "none"
    average: Literal["image", "pixel"] = "image"
    ignore: int = 255
    boundary: bool = False
    hungarian: bool = False
    score_at: Literal["image", "input"] = "image"
    longer: int | None = None

    def __post_init__(self) -> None:
        Inference(self.resize, self.window, self.stride, longer=self.longer)  # checks them
        if self.over not in ("image", "window"):
            raise ValueError(f"over={self.over!r}: expected image or window")
        if self.score_at not in ("image", "input"):
            raise ValueError(f"score_at={self.score_at!r}: expected image or input")

    def with_model(self, inference: Inference, source: LabelledSource | None = None) -> DenseProtocol:
        """Return the protocol with a model's working size and windows where it names none itself.

        source: the images; where they and the model know their focal lengths, the working size follows from both.
        """
        found, focal = self, getattr(source, "focal", None)
        own = self.resize is None and self.longer is None
        if own:
            size = inference.resize
            if source is not None and focal and inference.focal and inference.longer is None:
                windows = large_image(source, 0)
                height, width = (source.read(0).image if windows is None else windows).shape[:2]
                size = min(cast("tuple[int, int]", inference.size_of((height, width), focal)))
            found = replace(self, resize=size, longer=inference.longer)
        if found.window is None and inference.window is not None and own:
            found = replace(found, window=inference.window, stride=inference.step, edges="even")
        return found

    def size_of(self, image: Size) -> int | Size | None:
        """Return the working size of an image of this height and width."""
        return Inference(self.resize, longer=self.longer).size_of(image)

    def around(self, network: Network) -> Network:
        """Wrap the network with the windows and the test-time augmentation of this protocol."""
        run = network
        if self.over == "window":
            run = augmented(run, self.scales, self.flip)
        if self.window is not None:
            run = slid(run, self.window, self.stride or self.window, self.edges)
        return augmented(run, self.scales, self.flip) if self.over == "image" else run


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


def find_protocol(name: str, **changes: Any) -> DenseProtocol:
    """Return a protocol by name; fields that change it are noted in its name."""
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    if changes.get("window") is not None and changes.get("stride") is None and name in PROTOCOLS:
        changes["stride"] = PROTOCOLS[name].stride or Inference(window=changes["window"]).step
    return named(PROTOCOLS, name, changes)


@torch.inference_mode()
def evaluate_dense(
    model: DenseModel, source: LabelledSource, protocol: DenseProtocol, measured: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the numbers of a model on labelled images under "depth", "segmentation" or both, whatever both have.

    measured: what `metrics` returned, if it was called before.
    """
    device = next(model.eval().parameters()).device
    measured = measured or metrics(model, source, protocol)
    for metric in measured.values():
        metric.to(device)
    plain = as_classes(model.maps) if "masks" in model.outputs else model.maps
    network = protocol.around(plain)
    targets: Literal["keep", "resize"] = "resize" if protocol.score_at == "input" else "keep"
    for index in progress(range(len(source)), "images"):
        if large_image(source, index) is not None:
            _measure_large(model, cast("FileSource", source), index, protocol, plain, measured, device)
            continue
        read = with_labels(source.read(index))
        sample = EvalTransform(protocol.size_of((read.image.shape[0], read.image.shape[1])), targets)(read)
        given, (height, width) = model.inference.padded(sample.image[None].to(device)), sample.image.shape[-2:]
        maps = {k: v[..., :height, :width] for k, v in network(model.backbone.normalise(given)).items()}
        if sample.depth is not None and "depth" in measured:
            target = sample.depth[None].to(device)
            for name in measured.keys() & {"depth", "edges"}:
                measured[name].update(resized(maps, "depth", target), target, target.isfinite())
        if sample.labels is not None and "segmentation" in measured:
            labels = sample.labels[None].to(device)
            predicted = resized(maps, "labels", labels).argmax(1)
            for name in measured.keys() & {"segmentation", "boundary", "hungarian"}:
                measured[name].update(predicted, labels)
    return {name: table(name, metric) for name, metric in measured.items()}


def _measure_large(
    model: DenseModel, source: FileSource, index: int, protocol: DenseProtocol, plain: Network,
    measured: dict[str, Any], device: torch.device,
) -> None:  # fmt: skip
    """Add an image that does not fit into memory, in the windows of the protocol or else of prediction."""
    normalise, around = model.backbone.normalise, protocol.around(plain)
    inside = augmented(plain, protocol.scales, protocol.flip) if protocol.over == "window" else plain
    window = protocol.window or window_of(model.backbone.spec.patch)
    stride = (protocol.stride or window) if protocol.window else Inference(window=window).step
    targets = Targets(source, index)
    size = size_for(targets.size, protocol.size_of(targets.size), protocol.window, "depth" in model.outputs)
    compare(
        lambda images: inside(normalise(images)), lambda images: around(normalise(images)), targets, size, measured,
        device, window, stride, protocol.edges if protocol.window else "even",
    )  # fmt: skip
    if targets.windows is not None and (damaged := targets.windows.damaged):
        warn(f"{targets.path}: {len(damaged)} tiles are damaged; their pixels are not measured")


def check_large(source: LabelledSource, protocol: DenseProtocol, measured: Mapping[str, Any]) -> dict[str, str]:
    """Raise if images are too large for what is measured; return how many are measured in windows, for the protocol."""
    whole = {
        "boundary": bool({"boundary", "edges"} & measured.keys()),
        f"crop={protocol.crop}": "depth" in measured and protocol.crop != "none",
        f"alignment={protocol.alignment}": "depth" in measured and protocol.alignment != "none",
        "inverse relative depth": isinstance(measured.get("depth"), RelativeDepthMetrics),
        "score_at=input": protocol.score_at == "input",
        "averaging over scales and flips": protocol.resize is None
        and protocol.longer is None
        and protocol.over == "image"
        and (protocol.flip or protocol.scales != (1.0,)),
    }
    if needed := [name for name, used in whole.items() if used]:
        refuse_large(source, needed[0])
        return {}
    return large_settings(source)


def metrics(model: DenseModel, source: LabelledSource, protocol: DenseProtocol) -> dict[str, Any]:
    """Return the metrics that model and data allow; raise if there are none."""
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
        options: Any = (kind, protocol.alignment, protocol.cap, protocol.crop, protocol.average)
        found["depth"] = DepthMetrics(*options)
        if protocol.boundary and kind != "inverse_relative":
            found["edges"] = DepthEdges(log=kind == "log")
    found |= label_metrics(model, source, protocol)
    if not found:
        raise ValueError(
            f"the model predicts {' and '.join(model.outputs)}, the data have "
            f"{'depth' if source.depth_kind else 'classes' if source.classes else 'no targets'}: nothing to compare"
        )
    return found


def label_metrics(model: DenseModel, source: LabelledSource, protocol: DenseProtocol) -> dict[str, Any]:
    """Return the metrics of classes; raise if model and data mean different classes."""
    if not {"labels", "masks"} & model.outputs.keys() or source.classes is None:
        return {}
    if not getattr(source, "covers", True):
        raise ValueError(f"classes of pixels cannot be measured: {UNCOVERED}")
    check_classes(model, source)
    found: dict[str, Any] = {"segmentation": SegmentationMetrics(len(source.classes), protocol.ignore, source.classes)}
    if protocol.boundary:
        found["boundary"] = BoundaryIoU(len(source.classes), ignore=protocol.ignore)
    if protocol.hungarian:
        found["hungarian"] = HungarianIoU(len(source.classes), len(source.classes), protocol.ignore)
    return found


def check_classes(model: DenseModel, source: LabelledSource) -> None:
    """Raise if model and data mean different classes; of a model without names, the number alone is compared."""
    theirs = source.classes or ()
    count = len(model.classes) if model.classes else (model.outputs.get("labels") or model.outputs["masks"]).count
    if count != len(theirs):
        raise ValueError(f"the model has {count} classes, the data have {len(theirs)}: {', '.join(theirs[:10])}")
    for number, (own, other) in enumerate(zip(model.classes or theirs, theirs, strict=True)):
        if own != other:
            raise ValueError(
                f"class {number} is {own!r} to the model and {other!r} in the data; name the classes of the data like "
                "the model, and in its order"
            )


def check_before(model: DenseModel, source: LabelledSource, data: str, split: str) -> None:
    """Check the first images, and say where only a part of other images than those of training is measured."""
    if (whole := getattr(source, "whole", 0)) and data != model.facts.get("images"):
        say(
            f"{data} has no validation images of its own, and the model was trained on other images: {len(source)} of "
            f"its {whole} images are used; --split all uses all of them, if there are no splits"
        )
    check_all({split: source}, limit=CHECKED)


def resized(maps: Maps, name: str, target: Tensor) -> Tensor:
    """Resize a map to the size of the target."""
    return resize(maps[name], (target.shape[-2], target.shape[-1]), align_corners=False)


def table(name: str, metric: Any) -> dict[str, Any]:
    """Compute a metric; add the numbers per class of a segmentation."""
    numbers = metric.compute()
    if name == "hungarian":
        return {"miou_hungarian": numbers["miou"]}
    return numbers | {"per_class": metric.per_class()} if name == "segmentation" else numbers


def measure(
    model: DenseModel, source: LabelledSource, protocol: DenseProtocol, what: str | None = None, *, data: str = "",
    split: str = "", **settings: Any,
) -> Result:  # fmt: skip
    """Measure a model on labelled images.

    what: depth or segmentation; None for all that model and data have. data, split: how the images are named in the
    protocol. settings: more fields of the protocol, such as kb_crop.
    """
    protocol = protocol.with_model(model.inference, source)
    measured = metrics(model, source, protocol)  # raises before the images are checked
    if what is not None and what not in measured:
        raise ValueError(f"the model or the data have no {what}; they have {', '.join(measured)}")
    settings = check_large(source, protocol, measured) | settings
    check_before(model, source, data, split)
    found = evaluate_dense(model, source, protocol, measured)
    more = {"segmentation": ("boundary", "hungarian"), "depth": ("edges",)}
    chosen = list(found) if what is None else [what, *more[what]]
    numbers: dict[str, Any] = {}
    for name in chosen:
        numbers |= found.get(name, {})
    described = Protocol(
        name=f"{what or ' and '.join(n for n in chosen if n in TARGETS)}, {protocol.name}",
        train=str(model.facts.get("images", "unknown")),
        val=f"{data} {split} ({len(source)} images)",
        view=working_size(protocol.resize, protocol.longer),
        resolution=protocol.window or protocol.longer or (protocol.resize if isinstance(protocol.resize, int) else 0),
        features=f"layers {', '.join(map(str, model.layers))}",
        norm=model.norm,
        statistics="of training (evaluation mode)",
        classes=len(model.classes or source.classes or ()),
        settings={k: v for k, v in vars(protocol).items() if k != "name"}
        | ({"refine": model.inference.refine} if model.inference.refine != "none" else {})
        | settings,
    )
    per_class = numbers.pop("per_class", None)
    if per_class:
        numbers["per_class"] = per_class
    return Result(described, numbers, model.backbone.spec, table=per_class_table(per_class) if per_class else "")


def working_size(resize: int | tuple[int, int] | None, longer: int | None = None) -> str:
    """Return a working size in words."""
    if longer is not None:
        return f"longer side {longer}"
    if resize is None:
        return "as they are"
    return f"shorter side {resize}" if isinstance(resize, int) else f"{resize[0]}x{resize[1]}"


def per_class_table(rows: dict[str, dict[str, float]]) -> str:
    """IoU, accuracy and Dice of every class."""
    width = max(map(len, rows))
    lines = [f"{'class':<{width}}     IoU  accuracy    Dice"]
    lines += [f"{n:<{width}}  {r['iou']:>6.3f}    {r['accuracy']:>6.3f}  {r['dice']:>6.3f}" for n, r in rows.items()]
    return "\n".join(lines)
