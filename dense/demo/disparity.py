"""Section: nearness in a photograph by one linear map, fitted to one half of it and shown on the other."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.data.image import read_image
from dense.demo.report import Gallery, Section, Table, section, thumbnail
from dense.discover import default_source
from dense.evaluate.classification.features import randomly_initialised
from dense.evaluate.patches import RidgeRegression
from dense.media.draw import depth_picture
from dense.media.inputs import resize_for_backbone, stack_normalised

IMAGE, TRUTH = "motorcycle_left.png", "motorcycle_disp.npz"
WORDS = (
    "One linear map from the features of a patch to its disparity, which is large where things are near, fitted to the "
    "left half of this photograph: the right half shows what the features know. Ground truth is from structured light "
    "(D. Scharstein et al., Middlebury Stereo 2014); where there is none it is black."
)


def disparity(image: Path, backbone: Backbone, size: int, seed: int) -> Section:
    """Fit disparity to the left half of an image, whose ground truth is beside it, also on random initialisation."""
    with section("Nearness") as part:
        photograph = read_image(image)
        truth = np.load(image.with_name(TRUTH))["arr_0"]
        known = np.isfinite(truth)
        right = known & (np.arange(truth.shape[1]) >= truth.shape[1] // 2)
        low, high = np.quantile(truth[known], (0.01, 0.99))
        row, errors = {"photograph": photograph}, list[tuple[str, str]]()
        for kind, one in {
            "pretrained": backbone,
            "random initialisation": randomly_initialised(backbone, seed),
        }.items():
            found = fitted(one, photograph, truth, size)
            row[kind] = depth_picture(found, (low, high), inverse=True)
            errors.append((kind, f"{np.abs(found - truth)[right].mean():.1f}"))
        row["ground truth"] = depth_picture(np.where(known, truth, np.nan), (low, high), inverse=True)
        constant = np.abs(np.median(truth[known & ~right]) - truth)[right].mean()
        part.galleries = [Gallery("Near and far", WORDS, [{name: thumbnail(cell) for name, cell in row.items()}])]
        rows = [*errors, ("median of the left half", f"{constant:.1f}")]
        words = f"Ridge regression on patches, {size or 'own'} px. Lower is better."
        part.tables = [Table("Disparity", ("features", "mean error of the right half, pixels"), rows, words)]
    return part


@torch.inference_mode()
def fitted(backbone: Backbone, image: NDArray[np.uint8], truth: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return the disparity (H, W) that a linear map gives, fitted to the patches of the left half."""
    one = resize_for_backbone(image, Path(), size, backbone.spec.patch)
    features = default_source(backbone.spec, across=True)(backbone, stack_normalised([one], backbone))[0].cpu()
    rows, columns = features.shape[-2:]
    known = np.isfinite(truth).astype(np.float32)
    share = cv2.resize(known, (columns, rows), interpolation=cv2.INTER_AREA)
    mean = cv2.resize(np.where(known > 0, truth, 0), (columns, rows), interpolation=cv2.INTER_AREA)
    left = torch.from_numpy((share > 0.5) & (np.arange(columns) < columns // 2))
    patches = torch.nn.functional.normalize(features.permute(1, 2, 0), dim=-1)
    targets = torch.from_numpy(mean / np.maximum(share, 1e-6)).float()
    regression = RidgeRegression(patches[left], targets[left], penalty=1.0)
    found = regression(patches.flatten(0, 1)).reshape(rows, columns).numpy()
    return np.asarray(cv2.resize(found, (truth.shape[1], truth.shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)
