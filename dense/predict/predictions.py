"""Typed predictions: values with their kind, unit or class names, drawn as pictures and saved as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.data.levels import as_rgb
from dense.files import replacing, write
from dense.media.draw import (
    Picture,
    depth_picture,
    heat,
    label_picture,
    overlay,
    palette,
    write_index,
    write_picture,
)
from dense.predict.objects import Instances, Panoptic
from heads.outputs import DepthKind


@dataclass(frozen=True)
class Depth:
    """Depth per pixel.

    kind: metric (metres along the camera's axis), inverse_relative (1 / depth up to an unknown scale and shift) or log
    (logarithm of metres). valid: pixels with a finite value.
    """

    values: NDArray[np.float32]  # H, W
    kind: DepthKind
    unit: str  # "m", "1 / depth, unknown scale and shift", "log m"
    valid: NDArray[np.bool_]  # H, W

    @classmethod
    def of(cls, values: NDArray[np.float32], kind: DepthKind) -> Depth:
        """Return a depth with the unit of its kind."""
        units = {"metric": "m", "log": "log m", "inverse_relative": "1 / depth, unknown scale and shift"}
        return cls(values, kind, units[kind], np.isfinite(values))

    def to_metric(self, reference: NDArray[np.floating] | None = None, farthest: float = 80.0) -> Depth:
        """Return the depth in metres, at most `farthest` where it comes from inverse relative depth.

        Inverse relative depth needs `reference`, metric depth (H, W) with NaN where unknown; scale and shift are fitted
        to its inverse by least squares.
        """
        if self.kind == "metric":
            return self
        if self.kind == "log":
            return Depth.of(np.exp(self.values), "metric")
        if reference is None:
            raise ValueError(
                "inverse relative depth has no metric scale; give metric depth as reference, or train a "
                "head of kind metric"
            )
        scale, shift = self.align_lsq(reference)
        disparity = np.maximum(scale * self.values + shift, 1 / farthest)
        return Depth.of((1 / disparity).astype(np.float32), "metric")

    def align_lsq(self, reference: NDArray[np.floating]) -> tuple[float, float]:
        """Return the scale and shift that fit inverse relative values to the inverse of metric `reference`."""
        if reference.shape != self.values.shape:
            raise ValueError(f"reference is {reference.shape}, the depth {self.values.shape}; resize one of them")
        known = self.valid & np.isfinite(reference) & (reference > 0)
        if known.sum() < 2:
            raise ValueError(f"{known.sum()} pixels have both depths; at least 2 are needed to fit scale and shift")
        columns = np.stack([self.values[known], np.ones(known.sum())], axis=1).astype(np.float64)
        scale, shift = np.linalg.lstsq(columns, 1 / reference[known].astype(np.float64), rcond=None)[0]
        return float(scale), float(shift)

    def picture(self) -> Picture:
        """Return colours, bright where the scene is near."""
        return depth_picture(np.where(self.valid, self.values, np.nan), inverse=self.kind == "inverse_relative")

    def overlay(self, image: Picture) -> Picture:
        """Return the colours without the image, since depth drawn over an image is hard to read."""
        return self.picture()

    def save(self, stem: str | Path, image: Picture | None = None) -> list[Path]:
        """Write STEM_depth.npy (fp32), STEM_depth.png (colours) and STEM_depth.json (kind, unit); return the paths."""
        paths = [Path(f"{stem}_depth{end}") for end in (".npy", ".png", ".json")]
        with replacing(paths[0], self.values.nbytes) as file:
            np.save(file, np.where(self.valid, self.values, np.nan).astype(np.float32))
        write_picture(paths[1], self.picture())
        write(paths[2], json.dumps({"kind": self.kind, "unit": self.unit}) + "\n")
        return paths


@dataclass(frozen=True)
class Segmentation:
    """A class per pixel, with its softmax probability as score."""

    labels: NDArray[np.uint8]  # H, W
    scores: NDArray[np.float32]  # H, W, in 0..1
    classes: tuple[str, ...]

    def picture(self) -> Picture:
        """Return one colour per class."""
        return label_picture(self.labels, len(self.classes))

    def overlay(self, image: Picture) -> Picture:
        """Return the colours drawn over the image, which a first class "background" leaves as it is."""
        bare = (self.labels == 0)[..., None] & (self.classes[0] == "background")
        return np.where(bare, as_rgb(image), overlay(image, self.picture()))

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the mask (H, W) of a class."""
        if name not in self.classes:
            raise ValueError(f"no class {name!r}: there are {', '.join(self.classes)}")
        return self.labels == self.classes.index(name)

    def shares(self) -> dict[str, float]:
        """Return the fraction of the image that each class covers, largest first."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.classes)) / self.labels.size
        return {self.classes[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}

    def save(self, stem: str | Path, image: Picture | None = None) -> list[Path]:
        """Write STEM_labels.png (class indices with a palette), STEM_scores.png (8 bits) and, given the image,
        STEM_overlay.png; return the paths."""
        paths = [Path(f"{stem}_labels.png"), Path(f"{stem}_scores.png")]
        write_index(paths[0], self.labels, palette(len(self.classes)))
        write_picture(paths[1], (self.scores * 255 + 0.5).astype(np.uint8))
        if image is not None:
            paths.append(Path(f"{stem}_overlay.png"))
            write_picture(paths[-1], self.overlay(image))
        return paths


@dataclass(frozen=True)
class Joint:
    """Depth and classes of one forward pass."""

    depth: Depth
    segmentation: Segmentation

    def overlay(self, image: Picture) -> Picture:
        """Return the classes drawn over the image."""
        return self.segmentation.overlay(image)

    def save(self, stem: str | Path, image: Picture | None = None) -> list[Path]:
        """Write the files of both; return the paths."""
        return self.depth.save(stem) + self.segmentation.save(stem, image)


@dataclass(frozen=True)
class Restoration:
    """The restored image."""

    values: Picture  # H, W, N uint8, of three channels RGB

    def picture(self) -> Picture:
        return as_rgb(self.values)

    def overlay(self, image: Picture) -> Picture:
        """Return the restored image in place of the given one."""
        return self.picture()

    def save(self, stem: str | Path, image: Picture | None = None) -> list[Path]:
        """Write STEM_restored.png and, of channels that are not RGB, STEM_restored.npy; return the paths."""
        path = Path(f"{stem}_restored.png")
        write_picture(path, self.picture())
        if self.values.shape[2] == 3:
            return [path]
        with replacing(array := path.with_suffix(".npy"), self.values.nbytes) as file:
            np.save(file, self.values)
        return [path, array]


@dataclass(frozen=True)
class Anomaly:
    """How far an image is from good ones: per pixel, and its score, the mean of its farthest patches.

    threshold: the score above which an image is anomalous; None without one.
    """

    values: NDArray[np.float32]  # H, W, about 1 - cosine
    score: float
    threshold: float | None

    @property
    def anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one."""
        return None if self.threshold is None else self.score > self.threshold

    def picture(self) -> Picture:
        """Return colours, white at twice the threshold; without one at the largest value."""
        return heat(self.values, bounds=(0, 2 * self.threshold) if self.threshold else (0, float(self.values.max())))

    def overlay(self, image: Picture) -> Picture:
        """Return the colours drawn over the image, with the contour of what is above the threshold."""
        drawn = overlay(image, self.picture())
        if self.threshold is None:
            return drawn
        above = (self.values > self.threshold).astype(np.uint8)
        contours, _ = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        return np.asarray(cv2.drawContours(drawn, contours, -1, (0, 255, 0), 2), np.uint8)

    def row(self) -> dict[str, float | bool | None]:
        """Return score, threshold and whether the image is anomalous."""
        return {"score": self.score, "threshold": self.threshold, "anomalous": self.anomalous}

    def save(self, stem: str | Path, image: Picture | None = None) -> list[Path]:
        """Write STEM_anomaly.npy (fp32), STEM_anomaly.png (colours), STEM_anomaly.json (score, threshold) and, given
        the image, STEM_overlay.png; return the paths."""
        paths = [Path(f"{stem}_anomaly{end}") for end in (".npy", ".png", ".json")]
        with replacing(paths[0], self.values.nbytes) as file:
            np.save(file, self.values)
        write_picture(paths[1], self.picture())
        write(paths[2], json.dumps(self.row()) + "\n")
        if image is not None:
            paths.append(Path(f"{stem}_overlay.png"))
            write_picture(paths[-1], self.overlay(image))
        return paths


Prediction = Anomaly | Depth | Segmentation | Joint | Restoration | Instances | Panoptic


def parts(prediction: Prediction) -> tuple[Depth | None, Segmentation | None]:
    """Return the depth and the segmentation of a prediction, None for one that it lacks."""
    if isinstance(prediction, Joint):
        return prediction.depth, prediction.segmentation
    depth = prediction if isinstance(prediction, Depth) else None
    return depth, prediction if isinstance(prediction, Segmentation) else None
