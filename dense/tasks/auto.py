"""Values of a recipe that are `auto`: chosen from the images, the targets and the backbone, each with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dense.backbone.spec import BackboneSpec
from dense.data.labelled.sample import IGNORE, Labelled, LabelledSource

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
        one_shape: whether all have one aspect ratio.
        objects: side in pixels of small objects, the lower quartile over segments of the masks; None without masks.
    """

    count: int
    size: tuple[int, int]
    one_shape: bool
    objects: float | None = None

    @classmethod
    def of(cls, source: LabelledSource, most: int = SURVEYED) -> Survey:
        """Read images spread over the set."""
        chosen = sorted({i * len(source) // most for i in range(most)})
        sizes, sides = list[tuple[int, int]](), list[float]()
        for sample in map(source.read, chosen):
            sizes.append((sample.image.shape[0], sample.image.shape[1]))
            sides += segment_sides(sample)
        return cls(
            len(source),
            (int(np.median([h for h, _ in sizes])), int(np.median([w for _, w in sizes]))),
            len({round(h / w, 2) for h, w in sizes}) == 1,
            float(np.quantile(sides, 0.25)) if sides else None,
        )


def segment_sides(sample: Labelled, smallest: int = 64) -> list[float]:
    """Return the square root of the area of every connected segment of at least `smallest` pixels."""
    if sample.labels is None:
        return []
    areas: list[int] = []
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
    given = (data.resize, data.crop_size, data.batch_size, model.steps, model.optim.lr, model.backbone.layers)
    if "auto" not in (*given, head.get("name")):
        return []
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
    settle("model.backbone.layers", model.backbone, "layers", layers_for(str(head.get("name")), spec))
    settle("data.resize", data, "resize", working_size(survey, spec, accelerated))
    settle("data.crop_size", data, "crop_size", crop_for(survey, data.resize, spec))
    settle("data.batch_size", data, "batch_size", batch_for(survey, accelerated))
    settle("model.steps", model, "steps", steps_for(task, survey, data.batch_size))
    settle("model.optim.lr", model.optim, "lr", rate_for(str(head.get("name"))))
    return lines


def head_for(task: str) -> Choice:
    """Return the options of a head."""
    if task == "SegmentationTask":
        return {"name": "linear", "batch_norm": True, "dropout": 0.1}, "as good for classes as a decoder, and faster"
    width = 48
    options = {"name": "dpt", "width": width, "resample": "bilinear", "input_norm": True, "reassemble": [width] * 4}
    return options, "a decoder draws sharper edges than a linear head"


def layers_for(head: str, spec: BackboneSpec) -> Choice:
    """Return the layers that a head reads."""
    if spec.kind == "pyramid":
        return "default", "the stages of a convolutional backbone"
    if head == "linear":
        return "even4", "a linear head reads shallow layers, which hold edges, beside deep ones"
    return "even4", "a decoder combines shallow layers, which hold edges, with deep ones, which hold objects"


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


def crop_for(survey: Survey, resize: Any, spec: BackboneSpec) -> Choice:
    """Return the training crop."""
    if survey.one_shape and resize is not None:
        return None, "all images have one shape, so that training sees whole images, as prediction does"
    side = resize if isinstance(resize, int) else min(resize or survey.size)
    return max(side // spec.patch, 1) * spec.patch, "images differ in shape; a square of the working size"


def batch_for(survey: Survey, accelerated: bool) -> Choice:
    """Return the batch size."""
    size = max(1, min(16 if accelerated else 8, survey.count // 2))
    return size, "of an accelerator" if accelerated else "of a CPU"


def steps_for(task: str, survey: Survey, batch: int) -> Choice:
    """Return the optimiser steps."""
    epochs = 6 if task == "SegmentationTask" else 10
    steps = int(min(max(epochs * survey.count / batch, 150), 2000)) // 10 * 10
    return steps, f"{steps * batch / survey.count:.0f} epochs of {survey.count} images"


def rate_for(head: str) -> Choice:
    """Return the learning rate."""
    return (5e-3, "a linear head") if head == "linear" else (1e-3, "a decoder")
