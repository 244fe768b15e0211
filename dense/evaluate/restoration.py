"""Restoration measured: PSNR and SSIM per kind and level of degradation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dense.console import progress, warn
from dense.data.degrade import Degradation, Degrade
from dense.data.degrade.plan import PAIRED
from dense.data.labelled.check import check_all
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import LabelledSource
from dense.data.windows import Targets, large_image
from dense.evaluate.dense import CHECKED
from dense.evaluate.large import ComparedRestored, large_settings
from dense.evaluate.protocol import Protocol, Result
from dense.metrics import RestorationMetrics
from dense.model.inference import augmented, slide, through, window_of
from dense.model.network import DenseModel, Inference
from dense.tasks.degraded import DegradedImages, DegradedWindows, check_plan, kind_of, paired_kinds

NO_CLEAN = "{name} has no clean image to be compared with; use layout paired or --degrade"
INPUT = "input"  # the degraded image as it is, for comparison


@torch.inference_mode()
def evaluate_restoration(
    model: DenseModel,
    source: LabelledSource,
    plan: Degrade | None,
    inference: Inference | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """Return `RestorationMetrics` per kind and level of degradation, and those of the inputs under "input".

    plan: None for images that come degraded. inference: windows; None for those saved with the model.
    """
    if "restored" not in model.outputs:
        raise ValueError(
            f"the model predicts {' and '.join(model.outputs)}, no restored image; train a RestorationTask"
        )
    where = next(model.eval().parameters()).device
    degraded = DegradedImages(source, plan, every=True)
    names = paired_kinds(source) if plan is None else tuple(label(group[0]) for group in degraded.groups)
    ours, theirs = (RestorationMetrics(names).to(where) for _ in range(2))
    network = augmented(through(model, inference or model.inference), flip=flip)
    for index in progress(range(len(degraded)), "degraded"):
        image, degradation = degraded.degradation(index)
        if large_image(source, image) is not None:
            name = kind_of(source, image) if plan is None else names[index % len(names)]
            files, how = cast("FileSource", source), inference or model.inference
            found = _measure_large(model, files, image, degradation, how, flip)
            for metric, numbers in zip((ours, theirs), found, strict=True):
                metric.add(name, numbers)
            continue
        sample = degraded[index]
        if sample.clean is None:
            raise ValueError(NO_CLEAN.format(name=sample.name))
        name = sample.degradation if plan is None else names[index % len(names)]
        images, clean = sample.image[None].to(where), sample.clean[None].to(where).float() / 255
        ours.update(network(model.backbone.normalise(images))["restored"], clean, [name])
        theirs.update(images.float() / 255, clean, [name])
    return ours.compute() | {INPUT: theirs.compute()}


def _measure_large(
    model: DenseModel, source: FileSource, image: int, degradation: Degradation, inference: Inference, flip: bool
) -> tuple[Tensor, Tensor]:
    """Return the numbers of a restored image that does not fit into memory, and those of the degraded one.

    degradation: of the kind `PAIRED` for an image that comes degraded
    """
    targets = Targets(source, image)
    assert targets.windows is not None
    inputs = targets.windows
    if degradation.kind != PAIRED:
        inputs = DegradedWindows(targets, degradation, (image, round(1000 * degradation.level)))
    elif source.clean is None:
        raise ValueError(NO_CLEAN.format(name=targets.path))
    compared = ComparedRestored(targets, inputs)
    network, window = augmented(model.maps, flip=flip), inference.window or window_of(model.backbone.spec.patch)
    slide(
        lambda images: network(model.backbone.normalise(images)),
        inputs.pixels(next(model.parameters()).device),
        window,
        inference.step if inference.window else Inference(window=window).step,
        compared,
    )
    if damaged := targets.damaged:
        warn(f"{targets.path}: {len(damaged)} tiles are damaged; their pixels are not measured")
    return compared.ours.numbers(), compared.theirs.numbers()


def label(degradation: Degradation) -> str:
    """Name a degradation: noise 25, or noise 35, unseen."""
    if not degradation.level:
        return degradation.kind
    return f"{degradation.kind} {degradation.level:g}{'' if degradation.seen else ', unseen'}"


def measure_restoration(
    model: DenseModel, source: LabelledSource, plan: Degrade | None, inference: Inference | None = None,
    flip: bool = False, *, data: str = "", split: str = "", layout: str = "images", **settings: Any,
) -> Result:  # fmt: skip
    """Measure a restoration model; the arguments are those of `evaluate_restoration`, and names for the protocol."""
    check_plan(plan, source, layout)
    settings |= large_settings(source)
    inference = inference or model.inference
    check_all({split: source}, limit=CHECKED)
    found = evaluate_restoration(model, source, plan, inference, flip)
    described = Protocol(
        name="restoration",
        train=str(model.facts.get("images", "unknown")),
        val=f"{data} {split} ({len(source)} images)",
        view="as they are",
        resolution=inference.window or 0,
        features=f"layers {', '.join(map(str, model.layers))}",
        norm=model.norm,
        statistics="of training (evaluation mode)",
        classes=0,
        settings={
            "kinds": {} if plan is None else plan.kinds, "unseen": {} if plan is None else plan.unseen,
            "window": inference.window, "stride": inference.stride, "flip": flip, **settings,
            "pixels": "8 bits; psnr and ssim of RGB, psnr_y and ssim_y of Y (BT.601, 16 to 235)",
        },
    )  # fmt: skip
    return Result(described, found, model.backbone.spec, table=table(found))


def table(found: dict[str, Any]) -> str:
    """A row per kind and level, with the PSNR of the degraded inputs."""
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
