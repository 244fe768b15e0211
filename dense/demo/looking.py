"""What a frozen backbone sees in pictures without any label: attention, objects, features as colours, similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.console import progress
from dense.discover import PCA, Attention, MaskCut, Objects, Source, TokenCut, feature_at, on_grid, similarity
from dense.discovering.reading import Seen, pixels, show
from dense.discovering.writing import drawn, full_size, similarity_picture
from dense.visual import Picture, enlarge, heat, to_picture

CELL = 320  # pixels of a picture's longer side in the report
Row = dict[str, Picture]


def rows_of(
    backbone: Backbone, images: Sequence[Picture], shorter: int, source: Source, how: str = "guided"
) -> list[Row]:
    """A row of captioned pictures for each image (H, W, 3).

    shorter: pixels of the shorter side that the backbone sees, 0 for the image's own. how: refinement of masks.
    """
    seen = [show(image, Path(), shorter, backbone.spec.patch) for image in images]
    features = [features_of(backbone, one, source) for one in seen]
    colours = PCA.fit(features)
    rows: list[Row] = []
    for one, own in progress(list(zip(seen, features, strict=True)), "looking at pictures"):
        row: Row = {"picture": one.image}
        size = (one.image.shape[0], one.image.shape[1])
        if backbone.spec.class_token:
            looked = masks(backbone, one, Attention(), source)
            row["class attention"] = enlarge(heat(looked.maps[0, 0].cpu().float()), size)
        found = masks(backbone, one, TokenCut(), source)
        row["TokenCut"] = drawn(one.image, full_size(found, 0, one, how))  # type: ignore[arg-type]
        row["MaskCut"] = drawn(one.image, full_size(masks(backbone, one, MaskCut(), source), 0, one, how))  # type: ignore[arg-type]
        row["features, PCA"] = to_picture(colours(own, size=size)[0])
        point = middle_of(found)
        query = feature_at(own[0], (point[0] + 0.5, point[1] + 0.5), (own.shape[-2], own.shape[-1]))
        row["similar to the cross"] = crossed(similarity_picture(one.image, similarity(own, query)[0]), point, own)
        rows.append({name: framed(picture) for name, picture in row.items()})
    return rows


def features_of(backbone: Backbone, one: Seen, source: Source) -> Tensor:
    """(1, C, h, w)."""
    with torch.inference_mode():
        return source(backbone, pixels([one], backbone))


def masks(backbone: Backbone, one: Seen, method: Attention | TokenCut | MaskCut, source: Source) -> Objects:
    """What a method finds in one picture, on the grid."""
    found = on_grid(backbone, pixels([one], backbone), method, source)
    assert isinstance(found, Objects)
    return found


def middle_of(found: Objects) -> tuple[int, int]:
    """x and y of the patch of the first mask that lies deepest inside it, on the grid; the middle if it is empty."""
    mask = found.masks[0, 0].cpu().numpy().astype(np.uint8)
    if not mask.any():
        return mask.shape[1] // 2, mask.shape[0] // 2
    inside = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(x), int(y)


def crossed(picture: Picture, cell: tuple[int, int], features: Tensor) -> Picture:
    """A picture with a cross at a cell (x, y) of the grid."""
    height, width = picture.shape[:2]
    x, y = (cell[0] + 0.5) * width / features.shape[-1], (cell[1] + 0.5) * height / features.shape[-2]
    marked, side = picture.copy(), max(12, round(min(height, width) / 12))
    for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.drawMarker(marked, (round(x), round(y)), colour, cv2.MARKER_CROSS, side, thickness, cv2.LINE_AA)
    return marked


def framed(picture: Picture, side: int = CELL) -> Picture:
    """A picture with its longer side at `side` pixels."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)
