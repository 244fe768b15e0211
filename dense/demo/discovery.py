"""Section: objects found without labels in embedded scenes, measured beside random initialisation."""

from __future__ import annotations

import json
from pathlib import Path

from dense.backbone import Backbone
from dense.demo.report import Section, Table, section

SIDE = 192  # pixels of the scenes
METHODS = ("attention", "tokencut", "maskcut")
METRICS = {"jaccard": "Jaccard", "corloc": "CorLoc", "iou": "foreground IoU"}


def discovery(folder: Path, backbone: Backbone, source: str, measured: int, seed: int) -> Section:
    """Measure discovery on validation scenes. source: the name or directory of the backbone in the command."""
    with section("Discovery") as part:
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
    return part
