"""What a model predicts for an image, how sure it is, and how wrong: pictures for a page, and a number to sort by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dense.data.labelled.sample import IGNORE, Labelled, Segments, with_labels
from dense.media.draw import Picture, depth_picture, heat, label_picture
from dense.metrics.discovery import jaccard
from dense.metrics.segmentation import confusion
from dense.predict import Anomaly, Depth, Instances, Panoptic, Predictor, Restoration, Segmentation
from dense.predict.objects import drawn, numbered
from dense.predict.predictions import parts


@dataclass(frozen=True)
class Shown:
    """Pictures of a prediction, and how bad it is: its error or, without ground truth, its uncertainty."""

    layers: dict[str, Picture] = field(default_factory=dict)
    caption: str = ""
    badness: float = 0.0


def judge(model: Predictor, sample: Labelled) -> Shown:
    """Predict an image; draw the prediction, its uncertainty and, where there is ground truth, its errors."""
    prediction = model(sample.image)
    depth, classes = parts(prediction)
    found = []
    if classes is not None:
        found.append(of_classes(classes, with_labels(sample).labels))
    if depth is not None:
        mirrored, _ = parts(model(np.ascontiguousarray(sample.image[:, ::-1])))
        assert mirrored is not None
        found.append(of_depth(depth, mirrored.values[:, ::-1], sample.depth))
    if isinstance(prediction, Restoration):
        found.append(of_restored(prediction, sample.clean))
    if isinstance(prediction, Anomaly):
        found.append(Shown({"anomaly": prediction.picture()}, f"score {prediction.score:.3f}", prediction.score))
    if isinstance(prediction, Instances | Panoptic):
        truth = sample.segments
        if truth is not None:
            check_classes(truth.classes.numpy(), len(prediction.classes))
        if truth is not None and isinstance(prediction, Instances):
            truth = truth.of_things(model.model.outputs["masks"].things)
        found.append(of_objects(prediction, sample.image, truth))
    if len(found) == 1:
        return found[0]
    named = zip(("class", "depth"), found, strict=True)
    layers = {f"{what} {name}": picture for what, one in named for name, picture in one.layers.items()}
    return Shown(layers, ", ".join(one.caption for one in found), found[0].badness)


def of_classes(found: Segmentation, truth: NDArray[np.uint8] | None) -> Shown:
    """Uncertainty is 1 minus the probability of the class; the error is 1 minus the mean IoU of the image."""
    labels, count, uncertain = found.labels, len(found.classes), 1 - found.scores
    layers = {"prediction": label_picture(labels, count), "uncertainty": heat(uncertain, bounds=(0, 1))}
    if truth is None or not (known := truth != IGNORE).any():
        return Shown(layers, f"uncertainty {uncertain.mean():.2f}", float(uncertain.mean()))
    check_classes(truth[known], count)
    pairs = confusion(torch.from_numpy(truth[known]), torch.from_numpy(labels[known]), count, count).double()
    union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    miou = float((pairs.diagonal()[union > 0] / union[union > 0]).mean())
    wrong = (labels != truth) & known
    layers |= {"ground truth": label_picture(truth, count), "error": heat(wrong.astype(float), bounds=(0, 1.5))}
    return Shown(layers, f"mIoU {miou:.2f}", 1 - miou)


def check_classes(truth: NDArray[Any], count: int) -> None:
    """Raise for true labels that a model of `count` classes does not have."""
    if (most := int(truth.max(initial=0))) >= count:
        raise ValueError(f"the ground truth has label {most} and the model {count} classes; give images that it is for")


def of_objects(found: Instances | Panoptic, image: Picture, truth: Segments | None) -> Shown:
    """The error is 1 minus the mean IoU of true objects with the best of their class; uncertainty 1 - mean score.

    Without true objects, the error is the best score of an object that lies mostly where something is known.
    """
    count, layers = len(found.labels), {"prediction": found.overlay(image)}
    uncertain = float(1 - found.scores.mean()) if count else 1.0
    if truth is None or not truth.valid.any():
        return Shown(layers, f"{count} objects, uncertainty {uncertain:.2f}", uncertain)
    masks, known = torch.from_numpy(found.masks), truth.valid & ~truth.masks[truth.crowd].any(0)
    truth = truth.take(~truth.crowd)
    names = [found.classes[k] for k in truth.classes.tolist()]
    layers["ground truth"] = drawn(image, numbered(truth.masks.numpy()), names)
    if not len(truth.classes):
        wrong = 2 * (masks & known).flatten(1).sum(1) > masks.flatten(1).sum(1)
        worst = float(found.scores[wrong.numpy()].max(initial=0))
        return Shown(layers, f"{count} objects, none in the ground truth", worst)
    iou = jaccard(masks, truth.masks) * (truth.classes[:, None] == torch.from_numpy(found.labels)[None])
    best = float(torch.cat([iou, torch.zeros(len(iou), 1)], 1).amax(1).mean())
    return Shown(layers, f"{count} objects, mean IoU {best:.2f}", 1 - best)


def of_depth(depth: Depth, mirrored: NDArray[np.float32], truth: NDArray[np.float32] | None) -> Shown:
    """Uncertainty is the relative difference to the mirror image's prediction; the error is that to ground truth."""
    scale = np.maximum(np.abs(depth.values), 1e-6)
    uncertain = np.abs(depth.values - mirrored) / scale
    layers = {"prediction": depth.picture(), "uncertainty": heat(uncertain, bounds=(0, 0.25))}
    if truth is None or not (known := np.isfinite(truth) & (truth > 0)).any():
        return Shown(layers, f"uncertainty {np.nanmean(uncertain):.3f}", float(np.nanmean(uncertain)))
    metric = depth.to_metric(truth)
    low, high = np.quantile(truth[known], (0.01, 0.99))
    error = np.where(known, np.abs(metric.values - np.where(known, truth, 1)) / np.where(known, truth, 1), 0)
    layers |= {
        "prediction": depth_picture(metric.values, (low, high)),
        "ground truth": depth_picture(np.where(known, truth, np.nan), (low, high)),
        "error": heat(error, bounds=(0, 0.5)),
    }
    return Shown(layers, f"abs_rel {error[known].mean():.3f}", float(error[known].mean()))


def of_restored(prediction: Restoration, clean: Picture | None) -> Shown:
    """The error is the mean absolute difference."""
    layers = {"prediction": prediction.values}
    if clean is None:
        return Shown(layers)
    error = np.abs(prediction.values.astype(float) - clean).mean(-1) / 255
    layers |= {"ground truth": clean, "error": heat(error, bounds=(0, 0.2))}
    return Shown(layers, f"error {error.mean():.3f}", float(error.mean()))
