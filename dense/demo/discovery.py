"""Section: attention, object discovery, PCA and similarity of frozen features, without labels."""

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
from dense.demo.report import Command, Gallery, Section, Table, section, thumbnail
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
from dense.discover.attention import salience
from dense.discover.writing import draw_prediction, full_size, similarity_picture
from dense.media.draw import Picture, draw_cross, enlarge, heat, to_picture
from dense.media.inputs import SizedImage, resize_for_backbone, stack_normalised

SIDE = 192  # pixels of the scenes
METHODS = ("attention", "tokencut", "maskcut")
METRICS = {"jaccard": "Jaccard", "corloc": "CorLoc", "iou": "foreground IoU", "miou": "Hungarian mIoU"}
ABOUT = (
    "No labels are used. Class attention: of the class token to the patches, last layer. TokenCut: one side of the "
    "normalised cut of the graph of patches. MaskCut: several successive cuts. PCA: the first three principal "
    "components of the features as colours. Similar to the cross: cosine similarity with the features at one point."
)


def discovery(folder: Path, backbone: Backbone, source: str, shown: int, measured: int, seed: int) -> Section:
    """Show test scenes, and measure discovery on validation scenes beside random initialisation."""
    with section("Discovery") as part:
        scenes = Scenes("test", shown, SIDE, seed=seed)
        rows = feature_rows(backbone, [scenes[i].image for i in range(shown)], 0, default_source(backbone.spec))
        part.galleries = [Gallery("Objects and parts, without labels", ABOUT, rows)]
        methods = [name for name in METHODS if name != "attention" or backbone.spec.class_token]
        output = folder / "discovery"
        part.run([
            "evaluate", "discovery", "--backbone", source, "--data", "scenes", "--scenes", str(measured),
            "--side", str(SIDE), "--method", *methods, "--baselines", "--seed", str(seed), "--output", str(output),
        ])  # fmt: skip
        found = json.loads((output / "results.json").read_text())["numbers"]
        part.tables = [
            Table(
                "Objects without labels",
                ("method", "backbone", *METRICS.values()),
                [
                    (method, words, *(f"{found[key][name]:.3f}" if name in found[key] else "" for name in METRICS))
                    for method in methods
                    for words, key in (("pretrained", method), ("random initialisation", f"random {method}"))
                    if key in found
                ],
                f"{measured} scenes of the validation split, {SIDE} px, masks on the grid of patches, seed {seed}. "
                "Jaccard: of each object with its best mask (of attention: the best head). CorLoc: the box of the best "
                "mask has an IoU of at least 0.5 with the box of an object.",
            )
        ]
        names = "--backbone NAME --weights FILE"
        lines = (
            f"dense discover IMAGES {names} --method tokencut --output {folder}/found\n"
            f"dense demo --images IMAGES {names} --output {folder}/own"
        )
        part.own = [Command("Discover objects in your own images, or make a report of them:", lines)]
    return part


def feature_rows(
    backbone: Backbone, images: Sequence[Picture], shorter: int, source: Source
) -> list[dict[str, Picture]]:
    """Return a row of captioned pictures per image (H, W, 3).

    source: features of PCA and similarity. shorter: shorter side of the backbone's input in pixels; 0 for the image's.
    """
    inputs = [resize_for_backbone(image, Path(), shorter, backbone.spec.patch) for image in images]
    with torch.inference_mode():
        maps = [source(backbone, stack_normalised([one], backbone)) for one in inputs]  # (1, C, h, w) each
    colours = PCA.fit(maps)
    rows = []
    for one, features in progress(list(zip(inputs, maps, strict=True)), "discovery"):
        image = one.original
        row, size = {"image": image}, (image.shape[0], image.shape[1])
        if backbone.spec.class_token:
            attention = find_objects(backbone, one, Attention())
            row["class attention"] = enlarge(heat(attention.maps[0, 0].cpu().float()), size)
        objects = find_objects(backbone, one, TokenCut())
        row["TokenCut"] = draw_prediction(image, full_size(objects, 0, one, "guided"))
        several = find_objects(backbone, one, MaskCut())
        row["MaskCut"] = draw_prediction(image, full_size(several, 0, one, "guided"))
        row["features, PCA"] = to_picture(colours(features, size=size)[0])
        grid = (features.shape[-2], features.shape[-1])
        point = object_point(objects.masks[0, 0], salience(backbone, stack_normalised([one], backbone), grid)[0])
        query = feature_at(features[0], (point[0] + 0.5, point[1] + 0.5), grid)
        cosines = similarity_picture(image, similarity(features, query)[0])
        x, y = (point[0] + 0.5) * size[1] / grid[1], (point[1] + 0.5) * size[0] / grid[0]
        row["similar to the cross"] = draw_cross(cosines, x, y, max(12, round(min(size) / 12)))
        rows.append({name: thumbnail(picture) for name, picture in row.items()})
    return rows


def find_objects(backbone: Backbone, image: SizedImage, method: Attention | TokenCut | MaskCut) -> Objects:
    """Return the objects of one image on the grid of patches."""
    found = on_grid(backbone, stack_normalised([image], backbone), method)
    assert isinstance(found, Objects)
    return found


def object_point(mask: Tensor, likely: Tensor) -> tuple[int, int]:
    """Return x and y of a patch on the object: deep inside its mask (h, w) bool and where salience (h, w) is high.

    It has the largest product of salience and distance from the border of the mask; an empty mask stands for the image.
    """
    inside = mask.cpu().numpy().astype(np.uint8) if mask.any() else np.ones(mask.shape, np.uint8)
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int((depth * (likely.cpu().float().numpy() + 1e-9)).argmax()), mask.shape)
    return int(x), int(y)
