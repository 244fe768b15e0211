"""Objects and regions found without labels, measured against masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.base import pad_to_multiple
from dense.console import progress
from dense.discover import (
    Attention,
    FittedClusters,
    MaskCut,
    Method,
    Objects,
    Prediction,
    Refinement,
    Source,
    boxes,
    on_grid,
    refine,
)
from dense.discover.methods import FITTED_METHODS, METHODS, suited
from dense.evaluate.objects import ObjectTarget, ObjectTargets
from dense.evaluate.protocol import Protocol, Result
from dense.metrics.discovery import HungarianIoU, Saliency, box_iou, jaccard
from dense.metrics.segmentation import nanmean

IOU = 0.5  # from which a box counts as found


class Score:
    """Accumulate the measures of a method over a set of images.

    ``jaccard``: of each object with the best-matching mask, region or head; mean over objects, then over images.
    ``corloc``: share of images in which the box of the highest-scoring mask has an IoU of 0.5 with an object's box.
    ``max_f``, ``iou``, ``accuracy``: all objects of an image against the highest-scoring mask (of MaskCut: all masks),
    and for max_f against its soft map. ``miou``: of the regions after Hungarian matching with classes, per image, or
    once for the set if regions mean the same in all images.
    """

    def __init__(self, method: Method, classes: int) -> None:
        self.method, self.classes = method, classes
        self.jaccards: list[float] = []
        self.hits: list[bool] = []
        self.mious: list[float] = []
        self.saliency = Saliency()
        self.matching = HungarianIoU(method.count, classes) if isinstance(method, FittedClusters) else None

    def add(self, prediction: Prediction, target: ObjectTarget) -> None:
        """Add the prediction for one image, a batch of one at the size of the image."""
        objects, valid = torch.from_numpy(target.objects), torch.from_numpy(target.valid)
        labels = prediction.labels.cpu()
        if isinstance(prediction, Objects):
            masks = prediction.masks[0].cpu()
            if len(objects):
                self._objects(prediction, masks, objects, valid)
            regions = len(masks) + 1
        else:
            regions = prediction.count
            masks = F.one_hot(labels[0].long(), regions).permute(2, 0, 1).bool()
        if len(objects):
            self.jaccards.append(float(jaccard(masks, objects, valid).amax(1).mean()))
        matching = self.matching or HungarianIoU(regions, self.classes)
        matching.update(labels, torch.from_numpy(target.labels)[None])
        if self.matching is None:
            self.mious.append(matching.compute()["miou"])

    def _objects(self, prediction: Objects, masks: Tensor, objects: Tensor, valid: Tensor) -> None:
        best = int(prediction.scores[0].argmax())
        hit = masks[best].any() & (box_iou(boxes(masks[best])[None], boxes(objects)) >= IOU).any()
        self.hits.append(bool(hit))
        soft, mask = prediction.maps[:, best : best + 1].float().cpu(), masks[best]
        if isinstance(self.method, MaskCut):
            mask = masks.any(0)
            soft = F.interpolate(mask[None, None].float(), size=soft.shape[-2:], mode="area")
        soft = F.interpolate(soft, size=mask.shape, mode="bilinear", align_corners=False)[0, 0]
        self.saliency.update(soft, mask, objects.any(0), valid)

    def numbers(self) -> dict[str, float]:
        """Return the measures that apply to the method."""
        found = {"jaccard": nanmean(self.jaccards)}
        if self.hits:
            found |= {"corloc": sum(self.hits) / len(self.hits)} | self.saliency.compute()
        found["miou"] = self.matching.compute()["miou"] if self.matching else nanmean(self.mious)
        return found


@torch.inference_mode()
def evaluate_discovery(
    backbone: Backbone,
    targets: ObjectTargets,
    method: Method,
    source: Source | None = None,
    refinement: Refinement = "none",
    shorter: int = 0,
) -> dict[str, float]:
    """Return the numbers of `Score`; images are passed one by one, with a shorter side of `shorter` (0: as it is)."""
    score = Score(method, len(targets.classes))
    device = next(backbone.parameters()).device
    for target in progress(targets, "images", len(targets)):
        pixels = torch.from_numpy(np.ascontiguousarray(target.image)).permute(2, 0, 1)[None].to(device)
        prediction = on_grid(
            backbone, backbone.normalise(to_grid(pixels, shorter, backbone.spec.patch)), method, source
        )
        score.add(refine(prediction, pixels, refinement), target)
    return score.numbers()


def to_grid(pixels: Tensor, shorter: int, patch: int) -> Tensor:
    """Resize uint8 images (B, 3, H, W) to multiples of the patch, with a shorter side of `shorter` (0: as it is)."""
    if shorter:
        height, width = pixels.shape[-2:]
        factor = shorter / min(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        pixels = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    whole = pad_to_multiple(pixels.float(), patch, "resize", smallest=1)[0]
    return whole.round().clamp(0, 255).to(torch.uint8)


def fit_clusters(
    name: str, backbone: Backbone, targets: ObjectTargets, source: Source, shorter: int, **settings: Any
) -> FittedClusters:
    """Fit clusters to the images of a set, without their masks."""
    device = next(backbone.parameters()).device

    def stream() -> Iterator[Tensor]:
        for target in progress(targets, "fitting clusters", len(targets)):
            pixels = torch.from_numpy(np.ascontiguousarray(target.image)).permute(2, 0, 1)[None].to(device)
            with torch.inference_mode():
                yield source(backbone, backbone.normalise(to_grid(pixels, shorter, backbone.spec.patch)))

    return FITTED_METHODS[name].fit(stream, **settings)


def measure_discovery(
    backbone: Backbone,
    targets: ObjectTargets,
    methods: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Source],
    *,
    fit_to: ObjectTargets | None = None,
    refinement: Refinement = "none",
    shorter: int = 0,
    baselines: bool = False,
    seed: int = 0,
    names: Mapping[str, str] = {},
) -> Result:
    """Measure methods (name -> settings) on images with masks, each with its features.

    fit_to: images to which cocluster and stego are fitted; the measured ones if left out. baselines: also the same
    backbone, randomly initialised. names: "data", "split" and "learn", for the protocol.
    """
    backbones = {"": backbone}
    if baselines:
        torch.manual_seed(seed)
        fresh = Backbone.from_spec(backbone.spec).freeze().to(next(backbone.parameters()).device)
        backbones["random "] = fresh
    numbers: dict[str, Any] = {}
    settings: dict[str, Any] = {name: dict(given) for name, given in methods.items()}
    for prefix, one in backbones.items():
        for name, source in sources.items():
            if name in FITTED_METHODS:
                method: Any = fit_clusters(name, one, fit_to or targets, source, shorter, **settings[name])
            else:
                given = {"mode": "heads"} if name == "attention" else {}
                method = suited(METHODS[name](**given | settings[name]), one.spec, source)
            how: Refinement = "none" if isinstance(method, Attention) else refinement
            numbers[f"{prefix}{name}"] = evaluate_discovery(one, targets, method, source, how, shorter)
            if name not in FITTED_METHODS:
                settings[name] = asdict(method)
    split = names.get("split", "")
    protocol = Protocol(
        name="discovery",
        train=f"cocluster and stego are fitted to the images of {names.get('learn') or split}; others to nothing",
        val=f"{names.get('data', '')} {split} ({len(targets)} images)",
        view=f"shorter side {shorter}" if shorter else "as they are, multiples of the patch",
        resolution=shorter,
        features="; ".join(
            f"{name}: {', '.join(f'{k} {v}' for k, v in asdict(source).items())}"
            for name, source in sources.items()
            if name != "attention"
        ),
        norm=any(source.norm for source in sources.values()),
        statistics="of training (evaluation mode)",
        classes=len(targets.classes),
        settings={
            "objects": f"{targets.objects}, at least {targets.least} of the image",
            "refine": f"{refinement}; none for attention",
            "jaccard": "best mask per object, mean over objects, then images",
            "corloc": f"highest-scoring mask, box IoU {IOU}",
            "miou": "Hungarian, per image; cocluster, stego: once for the set",
            "methods": settings,
        },
    )
    return Result(protocol, numbers, backbone.spec, table=table(numbers))


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line per method; numbers that a method lacks are left empty."""
    columns = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    width = max(map(len, rows))
    lines = [f"{'method':<{width}}  " + "  ".join(f"{name:>8}" for name in columns)]
    for name, numbers in rows.items():
        cells = [f"{numbers[c]:>8.3f}" if c in numbers else " " * 8 for c in columns]
        lines.append(f"{name:<{width}}  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
