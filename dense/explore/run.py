"""`dense.explore`: images, features and predictions in one HTML page that needs no network and no server."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.backbone.at_hand import at_hand
from dense.console import progress
from dense.data.image import ImageError, list_images, read_image
from dense.data.labelled.sample import IGNORE, DataError, Labelled
from dense.discover import PCA
from dense.discover.methods import source_of
from dense.explore.encode import Encoded, EncodedAttention, cosine_error, directions, encode
from dense.explore.look import sample as take
from dense.files import write
from dense.media.draw import Picture, depth_picture, heat, label_picture, palette
from dense.media.html import data_url
from dense.metrics.segmentation import confusion
from dense.media.inputs import resize_for_backbone, stack_normalised
from dense.predict import Depth, Predictor, Restoration
from dense.predict.predictions import parts

SIZE, MOST = 320, 100  # shorter side of the backbone's input; images of a page
THUMBNAIL = 320  # longer side in pixels
HERE = Path(__file__).parent


def explore(
    images: Any,
    output: str | Path,
    *,
    model: Predictor | None = None,
    backbone: str | Path | Backbone | None = None,
    weights: str | Path | None = None,
    size: int = SIZE,
    most: int = MOST,
    attention: bool = True,
) -> Page:
    """Write an HTML page on which the features of images can be explored; return what is in it.

        dense.explore("IMAGES", "page.html")
        dense.explore("IMAGES", "page.html", model=dense.load("runs/mine/model"))

    Args:
        images: a file or a folder, several of them, or labelled images (`open_labelled`), whose ground truth is shown.
        output: the file to write.
        model: its predictions are shown, with their uncertainty and, with ground truth, their errors, worst first.
        backbone: whose features are shown: a backbone, a name or a saved directory; if left out the model's, or the
            best one at hand.
        weights: of a name: "timm", a file or a directory.
        size: shorter side of the backbone's input in pixels; 0 for the images' own.
        most: images, evenly spaced among those that there are.
        attention: also write the attention of the last block.
    """
    if backbone is None and model is not None:
        backbone = model.model.backbone
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(*at_hand(backbone, weights), frozen=True)  # type: ignore[arg-type]
    page = Page(backbone, model, size, attention)
    source = images if hasattr(images, "read") else _Files(list_images(images))
    chosen = take(range(len(source)), most)
    for index in progress(chosen, "images"):
        try:
            page.add(source.read(index))
        except (ImageError, DataError) as error:
            page.unreadable.append(str(error))
    if not page.images:
        raise ValueError(f"none of {len(chosen)} images could be read:\n  " + "\n  ".join(page.unreadable[:20]))
    write(output, page.html(len(source)))
    return page


@dataclass(frozen=True)
class _Files:
    """Images without ground truth."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Labelled:
        return Labelled(read_image(self.paths[index]), None, None, str(self.paths[index]))


@dataclass
class Page:
    """The images of a page and what is shown of them."""

    backbone: Backbone
    model: Predictor | None = None
    size: int = SIZE
    with_attention: bool = True
    images: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # error messages
    features: list[Tensor] = field(default_factory=list)  # each C, h, w
    cosine_error: tuple[float, float] = (0.0, 0.0)

    @torch.inference_mode()
    def add(self, sample: Labelled) -> None:
        """Add an image with its features and, with a model, what is predicted."""
        spec = self.backbone.spec
        image = resize_for_backbone(sample.image, Path(sample.name), self.size, spec.patch)
        source = source_of(spec, "similarity")
        pixels = stack_normalised([image], self.backbone)
        features, attention = source.with_attention(self.backbone, pixels)
        grid = (features.shape[-2], features.shape[-1])
        self.features.append(features[0].half().cpu())
        kept = EncodedAttention.of(attention[0].cpu(), grid) if self.with_attention and attention is not None else None
        shown = Shown() if self.model is None else judge(self.model, sample)
        self.images.append({
            "name": sample.name, "height": sample.image.shape[0], "width": sample.image.shape[1], "grid": grid,
            "thumbnail": data_url(thumbnail(sample.image)), "attention": kept and kept.data(),
            "layers": {name: data_url(thumbnail(picture)) for name, picture in shown.layers.items()},
            "caption": shown.caption, "badness": shown.badness,
        })  # fmt: skip

    def html(self, of: int) -> str:
        """Return the page; of: the number of images from which these are taken."""
        rotation = directions(self.features)
        encoded = [encode(one, rotation) for one in self.features]
        self.cosine_error = cosine_error(self.features, encoded)
        maps = [on_grid(one, image["grid"]) for one, image in zip(encoded, self.images, strict=True)]
        for image, one, own in zip(self.images, encoded, maps, strict=True):
            image |= {"features": one.data(), "pca": described(PCA.fit([own]))}
        if self.model is not None:
            self.images.sort(key=lambda image: -image["badness"])
        roots = [str(Path(image["name"]).parent) for image in self.images]
        common = os.path.commonpath(roots) if len({os.path.isabs(root) for root in roots}) == 1 else ""
        for image in self.images:
            image["name"] = os.path.relpath(image["name"], common or ".") if os.path.isfile(image["name"]) else image["name"]
        classes = () if self.model is None else self.model.classes or ()
        colours = palette(len(classes) + 1).tolist()
        content = {
            "lead": self.lead(of), "about": self.about(), "legend": list(zip(classes, colours, strict=False)), "images": self.images,
            "pca": described(PCA.fit(maps)), "palette": palette(12).tolist(),
            "heat": heat(np.linspace(0, 1, 256)[None])[0].tolist(),
        }  # fmt: skip
        parts = {
            "title": html.escape(self.title()),
            "style": (HERE / "page.css").read_text(),
            "script": (HERE / "page.js").read_text(),
            "data": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),  # nothing ends the script
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], (HERE / "page.html").read_text())

    def title(self) -> str:
        return f"{'Predictions and features' if self.model else 'Features'} of {self.backbone.spec.name}"

    def lead(self, of: int) -> str:
        """Return what the page shows, in two sentences."""
        count = f"{len(self.images)} images" + (f" of {of}" if of > len(self.images) else "")
        words = f"{count}. Click a patch, and every image shows what resembles it."
        failed = f" {len(self.unreadable)} could not be read." if self.unreadable else ""
        return ("Worst images first. " if self.model else "") + words + failed

    def about(self) -> str:
        """Return how exact the numbers of the page are."""
        mean, most = self.cosine_error
        text = (
            f"Features are rounded to fit in the page: beside the raw ones, cosines differ by {mean:.3f} on average, and "
            f"99 % of them by less than {most:.3f}. Similarity is the cosine with the most similar point, minus that "
            "with the most similar point to avoid."
        )
        if any(image["attention"] for image in self.images):
            text += " Attention is of the last block, on coarse queries and of rank 8 in its logarithm."
        return text


def thumbnail(picture: Picture) -> Picture:
    """Return a picture of at most `THUMBNAIL` pixels a side."""
    factor = THUMBNAIL / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def on_grid(encoded: Encoded, grid: tuple[int, int]) -> Tensor:
    """Return what a reader of the page gets, as a map (1, D, h, w)."""
    return encoded.values.T.unflatten(1, grid)[None]


def described(pca: PCA) -> dict[str, Any]:
    """Return a PCA as plain data."""
    tensors = {"mean": pca.mean, "directions": pca.directions.T, "low": pca.low, "high": pca.high}
    return {name: np.round(tensor.numpy().astype(np.float64), 5).tolist() for name, tensor in tensors.items()}


# ---- what a model predicts


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
        found.append(of_classes(classes.labels, classes.scores, sample.labels, len(classes.classes)))
    if depth is not None:
        mirrored, _ = parts(model(np.ascontiguousarray(sample.image[:, ::-1])))
        assert mirrored is not None
        found.append(of_depth(depth, mirrored.values[:, ::-1], sample.depth))
    if isinstance(prediction, Restoration):
        found.append(of_restored(prediction, sample.clean))
    if len(found) == 1:
        return found[0]
    layers = {f"{what} {name}": picture for what, one in zip(("class", "depth"), found, strict=True) for name, picture in one.layers.items()}
    return Shown(layers, ", ".join(one.caption for one in found), found[0].badness)


def of_classes(labels: NDArray[np.uint8], scores: NDArray[np.float32], truth: NDArray[np.uint8] | None, count: int) -> Shown:
    """Uncertainty is 1 minus the probability of the class; the error is 1 minus the mean IoU of the image."""
    uncertain = 1 - scores
    layers = {"prediction": label_picture(labels, count), "uncertainty": heat(uncertain, bounds=(0, 1))}
    if truth is None or not (known := truth != IGNORE).any():
        return Shown(layers, f"uncertainty {uncertain.mean():.2f}", float(uncertain.mean()))
    pairs = confusion(torch.from_numpy(truth[known]), torch.from_numpy(labels[known]), count, count).double()
    union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    miou = float((pairs.diagonal()[union > 0] / union[union > 0]).mean())
    wrong = (labels != truth) & known
    layers |= {"ground truth": label_picture(truth, count), "error": heat(wrong.astype(float), bounds=(0, 1.5))}
    return Shown(layers, f"mIoU {miou:.2f}", 1 - miou)


def of_depth(depth: Depth, mirrored: NDArray[np.float32], truth: NDArray[np.float32] | None) -> Shown:
    """Uncertainty is the relative difference to the mirror image's prediction; the error is the absolute relative one."""
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
