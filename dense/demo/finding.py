"""Part three: objects without labels on held-out scenes, and how good they are."""

from __future__ import annotations

import json
from pathlib import Path

from dense.backbone import Backbone
from dense.data.scenes import Scenes
from dense.demo.looking import rows_of
from dense.demo.report import Command, Gallery, Part, Table
from dense.demo.verbs import run, timed
from dense.discover import default_source

SIDE = 192  # pixels of the scenes that are looked at
METHODS = ("attention", "tokencut", "maskcut")
NUMBERS = {"jaccard": "Jaccard", "corloc": "CorLoc", "iou": "foreground IoU", "miou": "Hungarian mIoU"}
WORDS = (
    "Nothing here was told what an object is. Attention: where the class token looks. TokenCut: one side of the normalised cut "
    "of the graph of patches. MaskCut: several cuts, one after the other. PCA: the three main directions of features as "
    "colours. Similar to the cross: the cosine with the features at one point."
)


def find_objects(folder: Path, backbone: Backbone, source: str, shown: int, measured: int, seed: int) -> Part:
    """Pictures of scenes of the test split, and scores on scenes of the validation split beside random weights."""
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
                "random weights" if name.startswith("random ") else "pretrained",
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
            Command("Find objects in your own pictures, or make this report of them:", f"dense discover PICTURES --backbone NAME --weights FILE --method tokencut --output {folder}/found\ndense demo --images PICTURES --backbone NAME --weights FILE --output {folder}/own"),
        ]  # fmt: skip
    return part


def cells(values: dict[str, float]) -> list[str]:
    """Numbers of one method."""
    return [f"{values[name]:.3f}" if name in values else "" for name in NUMBERS]
