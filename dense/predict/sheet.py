"""Predictions beside their ground truth, drawn as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dense.data.levels import as_rgb
from dense.data.transforms import Sample
from dense.media.draw import Picture, depth_picture, enlarge, label_picture, legend, palette, sheet
from dense.model.network import DenseModel
from dense.predict.objects import Instances, Panoptic, drawn, numbered
from dense.predict.predictions import Restoration, parts
from dense.predict.predictor import Predictor
from heads.outputs import DepthKind

SIDE = 224  # pixels of a cell


def predictions_sheet(
    model: DenseModel, samples: Sequence[Sample], classes: tuple[str, ...] | None, kind: DepthKind | None = None
) -> Picture:
    """Draw a row per sample: the image, then prediction and ground truth of each output, in the same colours.

    The name of each column stands above it, those of the classes with their colours below all rows. Of instances the
    best are drawn, as many as there are in the ground truth, however low their scores. kind: of the ground-truth depth.
    """
    predictor = Predictor(model, score=0.0) if model.task == "instance" else Predictor(model)
    rows, headings, present = [], list[str](), set[int]()
    for sample in samples:
        image = sample.image.permute(1, 2, 0).numpy()
        prediction = predictor(image)
        depth, segmentation = parts(prediction)
        row: dict[str, Picture] = {"image": as_rgb(image)}
        if isinstance(prediction, Instances | Panoptic):
            if sample.segments is not None:
                segments = sample.segments.resized((image.shape[0], image.shape[1]))
                if isinstance(prediction, Instances):
                    segments = segments.of_things(model.outputs["masks"].things)
                    prediction = prediction.best(len(segments.classes))
                words = [(classes or ())[k] for k in segments.classes.tolist()]
            row["objects, prediction"] = prediction.overlay(image)
            if sample.segments is not None:
                row["objects, ground truth"] = drawn(image, numbered(segments.masks.numpy()), words)
        if isinstance(prediction, Restoration):
            row["restored"] = prediction.picture()
            if sample.clean is not None:
                row["ground truth"] = as_rgb(sample.clean.permute(1, 2, 0).numpy())
        if segmentation is not None:
            row["classes, prediction"] = segmentation.picture()
            present |= {*np.unique(segmentation.labels).tolist()}
            if sample.labels is not None:
                present |= {*sample.labels.unique().tolist()}
                row["classes, ground truth"] = label_picture(sample.labels.numpy(), len(classes or ()))
        if depth is not None:
            metric = depth.kind == "metric" and sample.depth is not None
            ground_truth = None if sample.depth is None else sample.depth[0].numpy()
            known = ground_truth[np.isfinite(ground_truth)] if ground_truth is not None else np.zeros(0)
            bounds = tuple(np.quantile(known, (0.01, 0.99))) if metric and known.size else None
            row["depth, prediction"] = depth_picture(depth.values, bounds) if bounds else depth.picture()
            if ground_truth is not None:
                row["depth, ground truth"] = depth_picture(ground_truth, bounds, inverse=kind == "inverse_relative")
        headings = max(headings, list(row), key=len)
        height, width = image.shape[:2]
        factor = SIDE / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        cells = [enlarge(cell, size) for cell in row.values()]
        rows.append([np.pad(cell, ((0, 0), (0, SIDE - size[1]), (0, 0)), constant_values=255) for cell in cells])
    drawn_rows = sheet(rows, headings=headings)
    if not present:
        return drawn_rows
    names = classes or ()
    colours = palette(len(names))
    entries = [(names[k], colours[k]) for k in sorted(present) if k < len(names)]
    return np.concatenate([drawn_rows, legend(entries, drawn_rows.shape[1])])
