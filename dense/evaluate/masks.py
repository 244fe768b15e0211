"""Instances and panoptic segments of a trained model, measured by a named protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from dense.console import progress, warn
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import LabelledSource
from dense.data.transforms import new_size, resize_image
from dense.data.windows import Targets, large_image
from dense.evaluate.dense import check_before, check_classes, working_size
from dense.evaluate.large import compare_instances, compare_segments, large_settings, refuse_large
from dense.evaluate.protocol import Protocol, Result, named
from dense.metrics import MaskAP, PanopticQuality
from dense.model.inference import whole_size
from dense.model.network import DenseModel, Inference
from dense.model.queries import TOP, Found, Partition
from dense.model.tiles import best, finder, in_tiles, joined_instances, search
from heads.features import Size
from heads.layers import resize

FIRST = {"instance": "ap", "panoptic": "pq"}  # the number of a class


@dataclass(frozen=True)
class MaskProtocol:
    """Everything that decides a number of masks besides the weights.

    Predictions are compared at the images' own size. resize, longer: working size, of the shorter or the longer side;
    by default the model's. square: see `Inference`; as the model says or here. window, stride: of tiles, which are
    merged as in `dense.model.tiles`; by default the model's. top: instances of an image. mask_threshold,
    overlap_threshold: see `dense.model.queries.panoptic`.
    """

    name: str
    resize: int | tuple[int, int] | None = None
    longer: int | None = None
    window: int | None = None
    stride: int | None = None
    top: int = TOP
    mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    square: bool = False

    def with_model(self, inference: Inference) -> MaskProtocol:
        """Return the protocol with a model's working size and tiles where it names none itself."""
        found = replace(self, square=self.square or inference.square)
        if self.resize is None and self.longer is None:
            found = replace(found, resize=inference.resize, longer=inference.longer)
            if self.window is None and inference.window is not None:
                found = replace(found, window=inference.window, stride=inference.step)
        return found

    @property
    def inference(self) -> Inference:
        return Inference(self.resize, self.window, self.stride, longer=self.longer, square=self.square)


MASK_PROTOCOLS: dict[str, MaskProtocol] = {
    p.name: p
    for p in (
        MaskProtocol("plain"),
        MaskProtocol("eomt_640", longer=640, square=True),
        MaskProtocol("eomt_1280", longer=1280, square=True),
    )
}


def find_mask_protocol(name: str, **changes: Any) -> MaskProtocol:
    """Return a protocol by name; fields that change it are noted in its name."""
    found = named(MASK_PROTOCOLS, name, changes)
    return found if changes.get("resize") is None else replace(found, longer=None)


@torch.inference_mode()
def evaluate_masks(model: DenseModel, source: LabelledSource, what: str, protocol: MaskProtocol) -> Any:
    """Return the metric of a model on labelled images, after all of them: `MaskAP` or `PanopticQuality`."""
    device = next(model.eval().parameters()).device
    classes, things = source.classes or (), getattr(source, "things", None) or ()
    metric: Any = MaskAP(classes) if what == "instance" else PanopticQuality(things, classes)
    predict = predictor(model, protocol, what, things)
    for index in progress(range(len(source)), "images"):
        if large_image(source, index) is not None:
            _measure_large(model, Targets(cast("FileSource", source), index), protocol, metric, things)
            continue
        sample = source.read(index)
        if sample.segments is None:
            raise ValueError(f"{sample.name} has no masks of objects")
        size = (sample.image.shape[0], sample.image.shape[1])
        small = resize_image(sample.image, whole_size(protocol.inference, size))
        pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))[None].to(device)
        found = predict(pixels[0], size)
        target = sample.segments
        if what == "instance":
            target = target.of_things(things)
        metric.update([type(found)(*(values.cpu() for values in found))], [target])
    return metric


def _measure_large(
    model: DenseModel, targets: Targets, protocol: MaskProtocol, metric: Any, things: tuple[bool, ...]
) -> None:
    """Add an image that does not fit into memory: found in tiles, compared block by block."""
    image, inference, full = targets.windows, protocol.inference, targets.size
    assert image is not None
    device = next(model.parameters()).device
    shrunk = new_size(whole_size(inference, full), *full)
    pixels: Any = image.pixels(device)
    if shrunk != full:
        pixels = torch.from_numpy(image.shrunk(shrunk).transpose(2, 0, 1)).to(device)
    find = finder(model, protocol.top, protocol.mask_threshold, protocol.overlap_threshold)
    places, found = in_tiles(model.maps_of_pixels, pixels, inference, find, top=protocol.top)
    if isinstance(metric, MaskAP):
        compare_instances(joined_instances(places, list(found))[: protocol.top], shrunk, targets, metric, things)
    else:
        compare_segments(places, found, shrunk, targets, metric, things)
    if damaged := targets.damaged:
        warn(f"{targets.path}: {len(damaged)} tiles are damaged; panoptic quality leaves out their pixels, AP does not")


def predictor(
    model: DenseModel, protocol: MaskProtocol, what: str, things: tuple[bool, ...]
) -> Callable[[Tensor, Size], Any]:
    """Return what turns a uint8 image (3, h, w) into the instances or segments of its original size."""
    if "masks" in model.outputs:
        find = finder(model, protocol.top, protocol.mask_threshold, protocol.overlap_threshold)

        def found_in(image: Tensor, size: Size) -> Any:
            found = search(model.maps_of_pixels, image, size, protocol.inference, find, things, top=protocol.top)
            return best(found, 0.0, protocol.top)

        return found_in

    def components(image: Tensor, size: Size) -> Any:
        labels = model.maps_of_pixels(image[None])["labels"].float()
        scores = resize(labels, size, align_corners=False).softmax(1)[0].cpu()
        found = connected(scores, things)
        return partition(found, scores, things) if what == "panoptic" else best(found, 0, protocol.top)

    return components


def connected(scores: Tensor, things: tuple[bool, ...]) -> Found:
    """Return the connected parts of the predicted classes that are things, from probabilities (C, H, W): a baseline.

    The score of a part is the mean probability of its class.
    """
    sure, labels = scores.max(0)
    rows: list[tuple[float, int, Tensor]] = []
    for label in (k for k in labels.unique().tolist() if things[k]):
        count, parts = cv2.connectedComponents((labels == label).numpy().astype(np.uint8))
        for mask in (torch.from_numpy(parts == number) for number in range(1, count)):
            rows.append((float(sure[mask].mean()), label, mask))
    rows.sort(key=lambda row: -row[0])
    masks = torch.stack([row[2] for row in rows]) if rows else torch.zeros(0, *labels.shape, dtype=torch.bool)
    return Found(
        masks, torch.tensor([row[1] for row in rows], dtype=torch.long), torch.tensor([row[0] for row in rows])
    )


def partition(found: Found, scores: Tensor, things: tuple[bool, ...]) -> Partition:
    """Return `connected` parts, and the stuff of probabilities (C, H, W), as panoptic segments."""
    sure, labels = scores.max(0)
    stuff = [k for k in labels.unique().tolist() if not things[k]]
    segments = torch.full(labels.shape, -1, dtype=torch.long)
    for place, mask in enumerate([*found.masks, *(labels == k for k in stuff)]):
        segments[mask] = place
    means = torch.tensor([float(sure[labels == k].mean()) for k in stuff])
    classes = torch.cat([found.classes, torch.tensor(stuff, dtype=torch.long)])
    return Partition(segments, classes, torch.cat([found.scores, means]))


def measure_masks(
    model: DenseModel, source: LabelledSource, protocol: MaskProtocol, what: str, *, data: str = "", split: str = ""
) -> Result:
    """Measure instances or panoptic segments of a model on labelled images.

    what: instance or panoptic. A model of classes is measured by its connected parts, as a baseline.
    """
    output = model.outputs.get("masks")
    if output is not None and output.kind != what:
        raise ValueError(f"the model predicts {output.kind} masks; measure it with dense evaluate {_verb(output.kind)}")
    if output is None and "labels" not in model.outputs:
        raise ValueError(f"the model predicts {' and '.join(model.outputs)}, no masks of objects")
    check_classes(model, source)
    protocol = protocol.with_model(model.inference)
    if output is None:
        protocol = replace(protocol, square=False)
        refuse_large(source, "finding connected parts of classes")
    settings = large_settings(source)
    check_before(model, source, data, split)
    metric = evaluate_masks(model, source, what, protocol)
    numbers: dict[str, Any] = metric.compute()
    per_class = metric.per_class()
    described = Protocol(
        name=f"{what}, {protocol.name}",
        train=str(model.facts.get("images", "unknown")),
        val=f"{data} {split} ({len(source)} images)",
        view=working_size(protocol.resize, protocol.longer),
        resolution=protocol.longer or (protocol.resize if isinstance(protocol.resize, int) else 0),
        features=f"layers {', '.join(map(str, model.layers))}",
        norm=model.norm,
        statistics="of training (evaluation mode)",
        classes=len(model.classes or source.classes or ()),
        settings={k: v for k, v in vars(protocol).items() if k != "name"}
        | {"masks": "of queries" if output else "connected parts of classes"}
        | settings,
    )
    return Result(
        described, numbers | {"per_class": per_class}, model.backbone.spec, table=_table(per_class, FIRST[what])
    )


def _verb(kind: str) -> str:
    return "segmentation" if kind == "semantic" else kind


def _table(rows: dict[str, dict[str, float]], first: str) -> str:
    """The numbers of every class that appears."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [f"{'class':<{width}}" + "".join(f"  {name.upper():>6}" for name in columns)]
    for name, row in rows.items():
        if row[first] == row[first]:
            lines.append(f"{name:<{width}}" + "".join(f"  {row[column]:>6.3f}" for column in columns))
    return "\n".join(lines)
