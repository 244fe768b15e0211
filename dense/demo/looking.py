"""What a frozen backbone sees in images without any label: attention, objects, features as colours, similarity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.console import progress
from dense.data.scenes import Scenes
from dense.demo.report import Command, Gallery, Part, Table
from dense.demo.verbs import run, timed
from dense.discover import (
    PCA,
    Attention,
    MaskCut,
    Objects,
    Source,
    TokenCut,
    default_source,
    feature_at,
    on_grid,
    similarity,
)
from dense.discover.writing import draw_prediction, full_size, similarity_picture
from dense.media.draw import Picture, enlarge, heat, to_picture
from dense.media.inputs import SizedImage, resize_for_backbone, stack_normalised

CELL = 320  # pixels of an image's longer side in the report
Row = dict[str, Picture]


def rows_of(
    backbone: Backbone, images: Sequence[Picture], shorter: int, source: Source, how: str = "guided"
) -> list[Row]:
    """A row of captioned images for each image (H, W, 3).

    shorter: pixels of the shorter side that the backbone sees, 0 for the image's own. how: refinement of masks.
    """
    seen = [resize_for_backbone(image, Path(), shorter, backbone.spec.patch) for image in images]
    features = [features_of(backbone, one, source) for one in seen]
    colours = PCA.fit(features)
    rows: list[Row] = []
    for one, own in progress(list(zip(seen, features, strict=True)), "looking at images"):
        row: Row = {"picture": one.original}
        size = (one.original.shape[0], one.original.shape[1])
        if backbone.spec.class_token:
            looked = masks(backbone, one, Attention(), source)
            row["class attention"] = enlarge(heat(looked.maps[0, 0].cpu().float()), size)
        found = masks(backbone, one, TokenCut(), source)
        row["TokenCut"] = draw_prediction(one.original, full_size(found, 0, one, how))  # type: ignore[arg-type]
        row["MaskCut"] = draw_prediction(one.original, full_size(masks(backbone, one, MaskCut(), source), 0, one, how))  # type: ignore[arg-type]
        row["features, PCA"] = to_picture(colours(own, size=size)[0])
        point = middle_of(found)
        query = feature_at(own[0], (point[0] + 0.5, point[1] + 0.5), (own.shape[-2], own.shape[-1]))
        row["similar to the cross"] = crossed(similarity_picture(one.original, similarity(own, query)[0]), point, own)
        rows.append({name: framed(picture) for name, picture in row.items()})
    return rows


def features_of(backbone: Backbone, one: SizedImage, source: Source) -> Tensor:
    """(1, C, h, w)."""
    with torch.inference_mode():
        return source(backbone, stack_normalised([one], backbone))


def masks(backbone: Backbone, one: SizedImage, method: Attention | TokenCut | MaskCut, source: Source) -> Objects:
    """What a method finds in one image, on the grid."""
    found = on_grid(backbone, stack_normalised([one], backbone), method, source)
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


def crossed(image: Picture, cell: tuple[int, int], features: Tensor) -> Picture:
    """An image with a cross at a cell (x, y) of the grid."""
    height, width = image.shape[:2]
    x, y = (cell[0] + 0.5) * width / features.shape[-1], (cell[1] + 0.5) * height / features.shape[-2]
    marked, side = image.copy(), max(12, round(min(height, width) / 12))
    for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.drawMarker(marked, (round(x), round(y)), colour, cv2.MARKER_CROSS, side, thickness, cv2.LINE_AA)
    return marked


def framed(image: Picture, side: int = CELL) -> Picture:
    """An image with its longer side at `side` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


SIDE = 192  # pixels of the scenes that are looked at
METHODS = ("attention", "tokencut", "maskcut")
NUMBERS = {"jaccard": "Jaccard", "corloc": "CorLoc", "iou": "foreground IoU", "miou": "Hungarian mIoU"}
WORDS = (
    "Nothing here was told what an object is. Attention: where the class token looks. TokenCut: one side of the normalised cut "
    "of the graph of patches. MaskCut: several cuts, one after the other. PCA: the three main directions of features as "
    "colours. Similar to the cross: the cosine with the features at one point."
)


def find_objects(folder: Path, backbone: Backbone, source: str, shown: int, measured: int, seed: int) -> Part:
    """Images of scenes of the test split, and scores on scenes of the validation split beside random initialisation."""
    with timed("Discovery") as part:
        scenes = Scenes("test", shown, SIDE, seed=seed)
        images = [scenes[i].image for i in range(shown)]
        part.galleries = [
            Gallery(
                "Objects and parts, without labels", WORDS, rows_of(backbone, images, 0, default_source(backbone.spec))
            )
        ]
        methods = [name for name in METHODS if name != "attention" or backbone.spec.class_token]
        output = folder / "discovery"
        run(part, [
            "evaluate", "discovery", "--backbone", source, "--data", "scenes", "--scenes", str(measured), "--side", str(SIDE),
            "--method", *methods, "--baselines", "--seed", str(seed), "--output", str(output),
        ])  # fmt: skip
        found = json.loads((output / "results.json").read_text())["numbers"]
        rows = [
            (
                name.removeprefix("random "),
                "random initialisation" if name.startswith("random ") else "pretrained",
                *cells(values),
            )
            for name, values in sorted(found.items(), key=lambda item: methods.index(item[0].removeprefix("random ")))
        ]
        part.tables = [
            Table(
                "Objects without labels",
                ("method", "backbone", *NUMBERS.values()),
                rows,
                f"{measured} scenes of the validation split, {SIDE} px, whole patches without refinement, seed {seed}. Jaccard: "
                "each object with the mask (of attention: the head) that fits it best. CorLoc: the best mask's box meets an "
                "object's with an IoU of 0.5.",
            )
        ]
        part.own = [
            Command("Find objects in your own images, or make this report of them:", f"dense discover IMAGES --backbone NAME --weights FILE --method tokencut --output {folder}/found\ndense demo --images IMAGES --backbone NAME --weights FILE --output {folder}/own"),
        ]  # fmt: skip
    return part


def cells(values: dict[str, float]) -> list[str]:
    """Numbers of one method."""
    return [f"{values[name]:.3f}" if name in values else "" for name in NUMBERS]
