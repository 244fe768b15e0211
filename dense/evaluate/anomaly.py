"""Anomaly detection measured: scores of images, maps of pixels, and the threshold of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import nan
from statistics import mean
from typing import Any

import numpy as np

from dense.backbone import Backbone
from dense.console import progress
from dense.data.anomaly import AnomalySet
from dense.data.image import ImageError, read_image
from dense.evaluate.dense import working_size
from dense.evaluate.protocol import Protocol, Result
from dense.memory.anomaly import build_anomaly, detect_inside, warn_of_foreground
from dense.metrics.anomaly import PixelMetrics, auroc, average_precision, f1_max, levels
from dense.model.network import DenseModel


def measure_anomaly(
    model: DenseModel | Backbone,
    sets: Sequence[AnomalySet],
    *,
    shots: int | None = None,
    seed: int = 0,
    data: str = "",
    layout: str = "folder",
    foreground_of: Collection[str] = (),
    **options: Any,
) -> Result:
    """Measure a model, or a backbone with a bank of the good images of each set.

    Numbers: `auroc`, `ap` and `f1_max` of images; where there are masks `pixel_auroc` and `aupro` to a false positive
    rate of 0.3; `true_positive_rate` and `false_positive_rate` of images at the model's threshold.
    Those of several sets are means over the sets.

    shots, seed: use so many good images of each set by the published rule; all if left out.
    foreground_of: categories to which the option `foreground` applies; all if left out. AnomalyDINO's on MVTec AD are
    capsule, hazelnut, pill, screw and toothbrush.
    options: of `build_anomaly`, for a backbone.
    """
    if isinstance(model, DenseModel):
        if "anomaly" not in model.outputs:
            raise ValueError(
                f"the model predicts {' and '.join(model.outputs)}, no anomalies; dense anomaly fit makes one"
            )
        if len(sets) > 1:
            raise ValueError(f"a model is of one category, and the data have {len(sets)}; choose one with --category")
        if shots is not None or seed or foreground_of or options:
            words = "shots, seed, foreground_of and options of the bank are of a backbone"
            raise ValueError(f"{words}; the model has its own; leave them out")
    if unknown := [name for name in foreground_of if name not in {one.category for one in sets}]:
        raise ValueError(
            f"no category {unknown[0]!r} for the foreground; there are {', '.join(s.category for s in sets)}"
        )
    chosen = [one if shots is None else one.shots(shots, seed) for one in sets]
    found: dict[str, dict[str, float]] = {}
    kept, used = 0, 0  # patches and good images, of all sets
    skipped = list[str]()
    fitted = model
    for one in chosen:
        if isinstance(model, Backbone):
            own = {"foreground": None} if foreground_of and one.category not in foreground_of else {}
            fitted = build_anomaly(model, one.good, seed=seed, **options | own)
        assert isinstance(fitted, DenseModel)
        kept, used = kept + len(fitted.head.bank), used + fitted.facts.get("good images", 0)
        found[one.category] = measure_set(fitted, one, skipped)
    assert isinstance(fitted, DenseModel)
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    numbers: dict[str, Any] = {name: mean(own[name] for own in found.values() if name in own) for name in names}
    table = ""
    if len(found) > 1:
        numbers["per_category"] = found
        width = max(map(len, found))
        sizes = {name: max(12, len(name)) for name in names}
        lines = ["  ".join([f"{'category':<{width}}", *(f"{name:>{size}}" for name, size in sizes.items())])]
        for category, values in found.items():
            cells = (f"{values.get(name, nan):>{size}.4f}" for name, size in sizes.items())
            lines.append("  ".join([f"{category:<{width}}", *cells]))
        table = "\n".join(lines)
    head, test = fitted.head, [one for part in chosen for one in part.test]
    train = f"{data if isinstance(model, Backbone) else fitted.facts.get('images', 'unknown')} ({used} good images)"
    settings = {name: value for name, value in options.items() if name not in ("layers", "norm", "resize", "patches")}
    protocol = Protocol(
        name="anomaly",
        train=train,
        val=f"{data} {layout} ({len(test)} images, {sum(t.anomalous for t in test)} anomalous)",
        view=working_size(fitted.inference.resize),
        resolution=fitted.inference.resize if isinstance(fitted.inference.resize, int) else 0,
        features=f"layers {', '.join(map(str, fitted.layers))}",
        norm=fitted.norm,
        statistics="of training (evaluation mode)",
        classes=2,
        settings={
            "shots": shots or "all", "score": f"mean of the farthest {head.top:.0%} of patches", "sigma": head.sigma,
            "foreground": options.get("foreground", head.foreground), "foreground of": list(foreground_of) or "all",
            "patches kept": kept, "patches at most": fitted.facts.get("patches at most", "unknown"),
            "seed": fitted.facts.get("seed", "unknown"), "aupro to": PixelMetrics().limit, **settings,
        },
    )  # fmt: skip
    return Result(protocol, numbers, fitted.backbone.spec, skipped, table)


def measure_set(model: DenseModel, data: AnomalySet, skipped: list[str]) -> dict[str, float]:
    """Return the numbers of one set; images that cannot be read are added to `skipped`."""
    pixels, scores, anomalous = PixelMetrics(), list[float](), list[bool]()
    shares = dict[str, list[float]]()  # of patches that are foreground, per kind of image
    for one in progress(data.test, f"test images of {data.category}"):
        try:
            image = read_image(one.path, reading=model.inference.reading)
        except ImageError as error:
            skipped.append(str(error))
            continue
        score, values, share = detect_inside(model, image)
        shares.setdefault(one.kind, []).append(share)
        scores.append(score)
        anomalous.append(one.anomalous)
        if data.has_masks:
            pixels.update(values, one.read_mask((image.shape[0], image.shape[1])))
    for kind, own in shares.items():
        warn_of_foreground(model.head.foreground, own, f"test images of kind {kind}")
    wrong, value = np.array(anomalous, bool), np.array(scores)
    counts = levels(value, wrong)
    numbers = {"auroc": auroc(*counts), "ap": average_precision(*counts), "f1_max": f1_max(*counts)}
    if data.has_masks:
        numbers |= pixels.compute()
    if (threshold := model.head.threshold) is not None:
        above = value > threshold
        numbers["true_positive_rate"] = float(above[wrong].mean())
        numbers["false_positive_rate"] = float(above[~wrong].mean())
    return numbers
