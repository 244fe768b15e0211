"""Values of a recipe that are `auto`: chosen from the images, the targets and the backbone, each with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dense.backbone.spec import BackboneSpec
from dense.data.image import spaced
from dense.data.labelled.check import header_sizes
from dense.data.labelled.sample import IGNORE, Labelled, LabelledSource
from dense.data.transforms import Augment, new_size
from dense.training.fit import check_batch_size

SURVEYED = 24  # images that are read
ACROSS = 2.0  # patches that a small object should span
SHORTEST, MOST_CPU, MOST_GPU = 18, 32, 46  # patches along the shorter side
Choice = tuple[Any, str]  # value and reason


@dataclass(frozen=True)
class Survey:
    """What a sample of labelled images shows.

    Args:
        count: images of the set.
        size: median height and width.
        sizes: every size (height, width) in the set, by the headers of its files.
        objects: side in pixels of small objects, the lower quartile over segments of the masks; None without masks.
        farthest: depth in metres below which 99.9 % of the known pixels lie; None without metric depth.
        relative: whether depth is an inverse depth of unknown scale.
    """

    count: int
    size: tuple[int, int]
    sizes: frozenset[tuple[int, int]]
    objects: float | None = None
    farthest: float | None = None
    relative: bool = False

    @classmethod
    def of(cls, source: LabelledSource, most: int = SURVEYED) -> Survey:
        """Read images spread over the set."""
        chosen = spaced(range(len(source)), most)
        sizes, sides, far = list[tuple[int, int]](), list[float](), list[float]()
        for sample in map(source.read, chosen):
            sizes.append((sample.image.shape[0], sample.image.shape[1]))
            sides += segment_sides(sample)
            known = sample.depth[np.isfinite(sample.depth)] if sample.depth is not None else np.zeros(0)
            far += [float(np.quantile(known, 0.999))] if known.size else []
        return cls(
            len(source),
            (int(np.median([h for h, _ in sizes])), int(np.median([w for _, w in sizes]))),
            frozenset(header_sizes(source) or sizes),
            float(np.quantile(sides, 0.25)) if sides else None,
            max(far) if far and source.depth_kind == "metric" else None,
            source.depth_kind == "inverse_relative",
        )


def segment_sides(sample: Labelled, smallest: int = 64) -> list[float]:
    """Return the square root of the area of every object, or connected segment, of at least `smallest` pixels."""
    if sample.segments is not None:
        areas = sample.segments.masks[~sample.segments.crowd].flatten(1).sum(1).tolist()
        return [float(np.sqrt(area)) for area in areas if area >= smallest]
    if sample.labels is None:
        return []
    areas = []
    for label in np.unique(sample.labels):
        if label != IGNORE:
            stats = cv2.connectedComponentsWithStats((sample.labels == label).astype(np.uint8))[2]
            areas += [int(area) for area in stats[1:, cv2.CC_STAT_AREA]]
    return [float(np.sqrt(area)) for area in areas if area >= smallest]


def choose(
    config: Any, open_source: Callable[[], LabelledSource], open_spec: Callable[[], BackboneSpec], accelerated: bool
) -> list[str]:
    """Replace every `auto` in the options of a run; return "key: value, reason" for each.

    config: the parsed options of `dense train`. open_source: opens the training images. open_spec: describes the
    backbone. accelerated: whether the run has an accelerator.
    """
    data, model = config.data, config.model.init_args
    head = model.head if isinstance(model.head, dict) else model.head.as_dict()
    depth = str(config.model.class_path).endswith("DepthTask")
    given = [data.resize, data.crop_size, data.batch_size, model.steps, model.optim.lr, model.backbone.layers]
    given += [model.loss, model.evaluation.cap] if depth else []
    if "auto" not in (*given, head.get("name")):
        return []
    if data.batch_size != "auto":
        check_batch_size(data.batch_size)
    survey, spec = Survey.of(open_source()), open_spec()
    lines = [f"{survey.count} training images of about {survey.size[1]}x{survey.size[0]} pixels"]

    def settle(key: str, owner: Any, name: str, choice: Choice) -> None:
        if getattr(owner, name) == "auto":
            value, reason = choice
            setattr(owner, name, value)
            lines.append(f"{key}: {value}, {reason}")

    task = str(config.model.class_path).rsplit(".", 1)[-1]
    if head.get("name") == "auto":
        chosen, reason = head_for(task)
        head = {**head, **chosen}
        model.head = head
        lines.append(f"model.head: {', '.join(f'{k} {v}' for k, v in chosen.items())}, {reason}")
    output = head.get("outputs", {}).get("depth", {})
    if depth and output.get("kind") == "auto":
        kind, reason = kind_for(survey)
        model.head = head | {"outputs": head["outputs"] | {"depth": output | {"kind": kind}}}
        lines.append(f"model.head.outputs.depth.kind: {kind}, {reason}")
    if depth:
        settle("model.loss", model, "loss", loss_for(survey))
        settle("model.evaluation.cap", model.evaluation, "cap", cap_for(survey))
    settle("model.backbone.layers", model.backbone, "layers", layers_for(str(head.get("name")), spec))
    if data.windows is not None:
        settle("data.resize", data, "resize", (None, "windows keep their pixels"))
        side = (MOST_GPU if accelerated else MOST_CPU) * spec.patch
        settle("data.crop_size", data, "crop_size", (side, f"windows of {side // spec.patch} patches of {spec.patch}"))
    settle("data.resize", data, "resize", working_size(survey, spec, accelerated))
    rescales = Augment(**data.augment.as_dict()).rescales
    settle("data.crop_size", data, "crop_size", crop_for(survey, data.resize, spec, rescales))
    settle("data.batch_size", data, "batch_size", batch_for(survey, accelerated))
    settle("model.steps", model, "steps", steps_for(task, survey, data.batch_size))
    settle("model.optim.lr", model.optim, "lr", rate_for(str(head.get("name"))))
    return lines


def head_for(task: str) -> Choice:
    """Return the options of a head."""
    if task == "SegmentationTask":
        return {
            "name": "linear",
            "batch_norm": True,
            "dropout": 0.1,
        }, "better than a decoder at equal minutes where it was measured"
    width = 48
    options = {"name": "dpt", "width": width, "resample": "bilinear", "input_norm": True, "reassemble": [width] * 4}
    return options, "a decoder draws sharper edges than a linear head"


def kind_for(survey: Survey) -> Choice:
    """Return the kind of depth that a head learns."""
    if survey.relative:
        return "inverse_relative", "the scale of the data's inverse depth is unknown"
    return "log", "errors count relative to the depth; predictions are in metres"


def loss_for(survey: Survey) -> Choice:
    """Return the losses of a depth head."""
    if survey.relative:
        return {"midas": {"weight": 1.0, "alpha": 0.5, "scales": 4}}, "invariant to scale and shift"
    edges = {"weight": 0.5, "log_space": True, "strides": [1, 2, 4], "distance": 1}
    return {"l1": 1.0, "gradient_log": edges}, "the gradient keeps the edges of objects"


def cap_for(survey: Survey, usual: float = 80.0) -> Choice:
    """Return the range of depth in metres that validation counts."""
    if survey.farthest is None or survey.farthest < usual:
        return (1e-3, usual), "the usual range, which holds the depth of the training images"
    return (1e-3, float(np.ceil(1.2 * survey.farthest))), f"training images reach {survey.farthest:.0f} m"


def layers_for(head: str, spec: BackboneSpec) -> Choice:
    """Return the layers that a head reads."""
    if spec.kind == "pyramid":
        return "default", "the stages of a convolutional backbone"
    if head == "linear":
        return "even4", "a linear head reads shallow layers, which hold edges, beside deep ones"
    reason = "a decoder combines shallow layers, which hold edges, with deep ones, which hold objects"
    return ("default" if spec.depth == 24 else "even4"), reason


def working_size(survey: Survey, spec: BackboneSpec, accelerated: bool) -> Choice:
    """Return the shorter side in pixels at which images are trained, validated and predicted."""
    most, patch, shorter = MOST_GPU if accelerated else MOST_CPU, spec.patch, min(survey.size)
    limit = f"at most {most} patches on {'an accelerator' if accelerated else 'a CPU'}"
    if survey.objects is None:
        patches = min(SHORTEST if not accelerated else 30, most)
        return patches * patch, f"{patches} patches of {patch}, since depth depends on the whole scene"
    wanted = shorter * ACROSS / survey.objects  # patches along the shorter side
    patches = round(min(max(wanted, SHORTEST), most))
    reason = f"small objects are {survey.objects:.0f} pixels wide and should span {ACROSS:.0f} patches of {patch}"
    return patches * patch, f"{patches} patches; {reason}; {limit}"


def crop_for(survey: Survey, resize: Any, spec: BackboneSpec, rescales: bool = False) -> Choice:
    """Return the training crop; rescales: the augmentation gives every image a size of its own."""
    if not rescales and resize is not None and len({new_size(resize, *size) for size in survey.sizes}) == 1:
        return None, "all images have one shape, so that training sees whole images, as prediction does"
    side = resize if isinstance(resize, int) else min(resize or survey.size)
    what = "the augmentation rescales images" if rescales else "images differ in shape"
    return max(side // spec.patch, 1) * spec.patch, f"{what}; a square of the working size"


def batch_for(survey: Survey, accelerated: bool) -> Choice:
    """Return the batch size."""
    size = max(1, min(16 if accelerated else 8, survey.count // 2))
    return size, "of an accelerator" if accelerated else "of a CPU"


def steps_for(task: str, survey: Survey, batch: int) -> Choice:
    """Return the optimiser steps."""
    if task == "MasksTask":
        steps = int(min(max(40 * survey.count / batch, 600), 6000)) // 10 * 10
        return steps, f"{steps * batch / survey.count:.0f} epochs of {survey.count} images, since queries learn slowly"
    epochs = 6 if task == "SegmentationTask" else 10
    steps = int(min(max(epochs * survey.count / batch, 150), 2000)) // 10 * 10
    return steps, f"{steps * batch / survey.count:.0f} epochs of {survey.count} images"


def rate_for(head: str) -> Choice:
    """Return the learning rate."""
    if head == "eomt":
        return 1e-4, "queries in the blocks of a backbone"
    return (5e-3, "a linear head") if head == "linear" else (1e-3, "a decoder")
