"""Objects and regions found without labels, measured against masks: `dense evaluate discovery`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.base import pad_to_multiple
from dense.cli.backbone_options import open_backbone
from dense.cli.discover_options import LEARNT, METHODS, add_settings, given_settings, source_of
from dense.cli.evaluate_options import add_common
from dense.cli.parser import Parser
from dense.console import progress
from dense.data.labelled.sample import open_labelled
from dense.discover import (
    Attention,
    Learnt,
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
from dense.evaluate.objects import GroundTruth, GroundTruths
from dense.evaluate.protocol import Protocol
from dense.metrics.discovery import HungarianIoU, Saliency, box_iou, jaccard
from dense.metrics.segmentation import nanmean

IOU = 0.5  # at which a box is right
SETTINGS = ("tau", "count", "share", "mode", "k_patches", "passes", "steps")


class Score:
    """Sums up what a method finds.

    ``jaccard``: of each object with the mask, region or head that fits it best; mean over objects, then over images.
    ``corloc``: share of images in which the box of the highest-scoring mask has an IoU of 0.5 with an object's box.
    ``max_f``, ``iou``, ``accuracy``: all objects of an image against the highest-scoring mask (of MaskCut: all masks), and
    for max_f what it was cut from. ``miou``: of the index image after Hungarian matching with classes, in each
    image by itself, or once for the set if regions mean the same in all.
    """

    def __init__(self, method: Method, classes: int) -> None:
        self.method, self.classes = method, classes
        self.jaccards: list[float] = []
        self.hits: list[bool] = []
        self.mious: list[float] = []
        self.saliency = Saliency()
        self.matching = HungarianIoU(method.count, classes) if isinstance(method, Learnt) else None

    def add(self, prediction: Prediction, ground_truth: GroundTruth) -> None:
        """The prediction for one image, as a batch of one, at its size."""
        objects, valid = torch.from_numpy(ground_truth.objects), torch.from_numpy(ground_truth.valid)
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
        matching.update(labels, torch.from_numpy(ground_truth.labels)[None])
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
        """What could be measured."""
        found = {"jaccard": nanmean(self.jaccards)}
        if self.hits:
            found |= {"corloc": sum(self.hits) / len(self.hits)} | self.saliency.compute()
        found["miou"] = self.matching.compute()["miou"] if self.matching else nanmean(self.mious)
        return found


@torch.inference_mode()
def evaluate_discovery(
    backbone: Backbone,
    ground_truths: GroundTruths,
    method: Method,
    source: Source | None = None,
    how: Refinement = "none",
    shorter: int = 0,
) -> dict[str, float]:
    """`Score`'s numbers of a method; images are shown one by one, at their size or with `shorter` pixels a side."""
    score = Score(method, len(ground_truths.classes))
    device = next(backbone.parameters()).device
    for ground_truth in progress(ground_truths, "pictures", len(ground_truths)):
        pixels = torch.from_numpy(np.ascontiguousarray(ground_truth.image)).permute(2, 0, 1)[None].to(device)
        prediction = on_grid(backbone, backbone.normalise(shown(pixels, shorter, backbone.spec.patch)), method, source)
        score.add(refine(prediction, pixels, how), ground_truth)
    return score.numbers()


def shown(pixels: Tensor, shorter: int, patch: int) -> Tensor:
    """uint8 images (B, 3, H, W) with a shorter side of about `shorter` pixels (0: as it is), both sides whole patches."""
    if shorter:
        height, width = pixels.shape[-2:]
        factor = shorter / min(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        pixels = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    whole = pad_to_multiple(pixels.float(), patch, "resize", smallest=1)[0]
    return whole.round().clamp(0, 255).to(torch.uint8)


def classes_of(
    name: str, backbone: Backbone, ground_truths: GroundTruths, source: Source, shorter: int, **settings: Any
) -> Learnt:
    """Classes learnt from images, without their masks."""
    device = next(backbone.parameters()).device

    def stream() -> Iterator[Tensor]:
        for ground_truth in progress(ground_truths, "learning classes", len(ground_truths)):
            pixels = torch.from_numpy(np.ascontiguousarray(ground_truth.image)).permute(2, 0, 1)[None].to(device)
            with torch.inference_mode():
                yield source(backbone, backbone.normalise(shown(pixels, shorter, backbone.spec.patch)))

    return LEARNT[name].fit(stream, **settings)


def run(parser: Parser, argv: Sequence[str]) -> tuple[Any, Namespace]:
    """The sub-verb."""
    from dense.cli.evaluate import Outcome

    add_options(parser)
    options = parser.parse_args(argv)
    names = [*METHODS, *LEARNT] if "all" in options.method else list(dict.fromkeys(options.method))
    settings = given_settings(parser, options, names, SETTINGS)
    if options.size < 0 or not 0 <= options.least < 1:
        parser.error(
            f"--size {options.size} --least {options.least}: expected 0 or more pixels and a share from 0 to 1"
        )

    def ground_truths_of(split: str) -> GroundTruths:
        data = open_labelled(
            options.data, split, layout=options.layout, targets=("labels",),
            length=options.scenes, size=options.side, seed=options.seed,
        )  # fmt: skip
        return GroundTruths(data, options.background, options.least)

    ground_truths = ground_truths_of(options.split)
    pool = ground_truths_of(options.learn) if options.learn else ground_truths
    backbone = open_backbone(options, frozen=True)
    sources = {name: source_of(backbone.spec, name, options) for name in names}
    backbones = {"": backbone}
    if options.baselines:
        torch.manual_seed(options.seed)
        backbones["random "] = Backbone.from_spec(backbone.spec).freeze().to(options.device)
    numbers: dict[str, Any] = {}
    for prefix, one in backbones.items():
        for name, source in sources.items():
            if name in LEARNT:
                method: Any = classes_of(name, one, pool, source, options.size, **settings[name])
            else:
                method = METHODS[name](**({"mode": "heads"} if name == "attention" else {}) | settings[name])
            how: Refinement = "none" if isinstance(method, Attention) else options.refine
            found = evaluate_discovery(one, ground_truths, method, source, how, options.size)
            numbers[f"{prefix}{name}"] = found
            if name not in LEARNT:
                settings[name] = asdict(method)
    print(table(numbers))
    described = Protocol(
        name="discovery",
        train=f"cocluster and stego learn classes from the images of {options.learn or options.split}; others nothing",
        val=f"{options.data} {options.split} ({len(ground_truths)} images)",
        view=f"shorter side {options.size}" if options.size else "as they are, whole patches",
        resolution=options.size,
        features="; ".join(f"{name}: {said(source)}" for name, source in sources.items() if name != "attention"),
        norm=any(source.norm for source in sources.values()),
        statistics="of training (evaluation mode)",
        classes=len(ground_truths.classes),
        settings={
            "objects": f"{ground_truths.objects}, at least {options.least} of the image",
            "refine": f"{options.refine}; none for attention",
            "jaccard": "best mask an object, mean over objects, then images",
            "corloc": f"highest-scoring mask, box IoU {IOU}",
            "miou": "Hungarian, an image at a time; cocluster, stego: once for the set",
            "methods": settings,
        },
    )
    return Outcome(described, numbers, backbone), options


def said(source: Source) -> str:
    """A source in words."""
    return ", ".join(f"{k} {v}" for k, v in asdict(source).items())


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line a method; what a method has no number for is left empty."""
    columns = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    width = max(map(len, rows))
    lines = [f"{'method':<{width}}  " + "  ".join(f"{name:>8}" for name in columns)]
    for name, numbers in rows.items():
        cells = [f"{numbers[c]:>8.3f}" if c in numbers else " " * 8 for c in columns]
        lines.append(f"{name:<{width}}  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def add_options(parser: Parser) -> None:
    """Which backbone, which images, which methods."""
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, ade20k, cityscapes")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--learn", help="split whose images cocluster and stego learn from; --split if left out")
    parser.add_argument(
        "--method", nargs="+", default=["attention", "lost", "tokencut"], choices=[*METHODS, *LEARNT, "all"],
        help="what is measured; attention with a mask a head unless --mode says otherwise",
    )  # fmt: skip
    add_settings(parser)
    parser.add_argument("--refine", default="none", choices=["none", "guided", "grabcut"], help="edges of masks")
    parser.add_argument("--size", type=int, default=0, help="shorter side that the backbone sees; 0: as it is")
    parser.add_argument(
        "--background", nargs="+", help="classes that are no objects; background, sky and ground if left out"
    )
    parser.add_argument("--least", type=float, default=0.002, help="share of the image that an object has at least")
    parser.add_argument("--baselines", action="store_true", help="also the same backbone with random initialisation")
    parser.add_argument("--scenes", type=int, default=200, help="how many embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="their side in pixels")
