"""The choices of DPT (Ranftl et al., 2021) on frozen features, on equal terms: readout, layers, and DPT against linear.

    python benchmarks/papers/dpt.py --markdown docs/methods/dpt.md
    python benchmarks/papers/dpt.py --data NYU --config depth/dpt_dinov2_vitl --steps 38400 --seeds 1 \\
        --set data.layout=nyuv2 --backbone dinov2_vitl14 --weights FILE --output runs/dpt

readout: how the class token is read: ignored, added, projected. layers: the last four, evenly spaced ones, and the
published 4, 11, 17, 23 of 24 scaled to the depth of the network. head: DPT against a linear head on the same layers,
both with and without the class token, linear ones with and without batch norm. Every row has the same images, steps and
batches; where the recipe chooses the learning rate, DPT and linear heads have the one that it chooses for each.
"""

from __future__ import annotations

import argparse
from typing import Any

from _options import add_backbone, add_training, parse, parser
from _study import (
    Made,
    recipe_of,
    refuse_set,
    run,
    seconds_of,
    spread,
    table,
    trained,
    trained_backbone,
    trained_on,
    with_weights,
)

MEASURES = {  # of one task, and of depth and classes at once
    "val/abs_rel": "abs_rel", "val/delta1": "delta1", "val/miou": "mIoU", "val/depth_abs_rel": "abs_rel",
    "val/depth_delta1": "delta1", "val/labels_miou": "mIoU",
}  # fmt: skip
TINY = {"name": "dpt", "width": 48, "reassemble": [32, 48, 64, 64], "bias": True, "batch_norm": True}


def train(options: argparse.Namespace, name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Train a head; return its validation numbers and seconds."""
    given = {"model.seed": seed, "data.seed": seed, "model.steps": options.steps, "val_every": options.steps}
    given |= {"patience": 0, "trainer.precision": "32-true", "trainer.accelerator": "auto"}
    if options.data == "scenes":
        given |= {"data.scenes": [4, 2] if options.quick else [300, 100], "data.workers": 0}
        given |= {"data.scene_size": 64, "data.batch_size": 2} if options.quick else {}
    return trained(options, name, seed, given | changes | dict(pair.split("=", 1) for pair in options.set))


def compare(options: argparse.Namespace, part: str, variants: dict[str, dict[str, Any]]) -> Made:
    """Train every variant with every seed; return a table."""
    refuse_set(options, *variants.values())
    lines, shown = [], list[str]()
    for name, changes in variants.items():
        rows = [train(options, f"{part} {name}", seed, **changes) for seed in range(options.seeds)]
        shown = [key for key in MEASURES if key in rows[0]["numbers"]]
        cells = [spread([row["numbers"][key] for row in rows]) for key in shown]
        lines.append((name, *cells, seconds_of(rows)))
    if not shown:
        raise SystemExit(f"{options.config} predicts neither depth nor classes, which these experiments compare")
    text = table((part, *(MEASURES[key] for key in shown), "seconds"), lines)
    return Made(text, f"{options.config} with {with_weights(options)} on {trained_on(options)}", options.backbone)


def readout(options: argparse.Namespace) -> Made:
    """Ignore the class token, add it to every patch, or project both together."""
    return compare(options, "readout", {way: {"model.head.readout": way} for way in ("ignore", "add", "project")})


def layers(options: argparse.Namespace) -> Made:
    """The last four layers, evenly spaced ones, and the published rule."""
    from dense.backbone.load import spec_of
    from dense.backbone.spec import resolve_layers

    spec = spec_of(options.backbone)
    variants = {"last four": resolve_layers("last4", spec), "evenly spaced": resolve_layers("even4", spec)}
    published = tuple(sorted({int((layer + 1) * spec.depth / 24 + 0.5) - 1 for layer in (4, 11, 17, 23)}))
    if published == variants["evenly spaced"]:
        variants["evenly spaced, as published"] = variants.pop("evenly spaced")
    elif len(published) == 4:
        variants["as published, scaled"] = published
    named = {f"{name}: {', '.join(map(str, chosen))}": chosen for name, chosen in variants.items()}
    return compare(options, "layers", {name: {"model.backbone.layers": list(chosen)} for name, chosen in named.items()})


def head(options: argparse.Namespace) -> Made:
    """DPT and a linear head on the same four layers, each with and without the class token."""
    linear = {"name": "linear", "batch_norm": True}
    heads = {
        "DPT": options.dpt | {"readout": "ignore"},
        "DPT, class token": options.dpt | {"readout": "project"},
        "linear": linear,
        "linear, class token": linear | {"class_token": True},
        "linear, no batch norm": linear | {"batch_norm": False},
        "linear, class token, no batch norm": linear | {"batch_norm": False, "class_token": True},
    }
    given = recipe_of(options)["model"]["init_args"]
    variants = {name: {"model.head": spec | {"outputs": options.outputs}} for name, spec in heads.items()}
    if given["backbone"]["layers"] == "auto":  # which would depend on the head
        variants = {name: changes | {"model.backbone.layers": "default"} for name, changes in variants.items()}
    return compare(options, "head", variants)


PARTS = {"readout": readout, "layers": layers, "head": head}


def main() -> int:
    of_script = parser(__doc__, list(PARTS))
    add_training(of_script, "joint/scenes_dpt", 150, "DepthTask", "SegmentationTask", "JointTask")
    add_backbone(of_script, "trained and frozen")
    options = trained_backbone(parse(of_script))

    from dense.tasks.auto import head_for

    given = recipe_of(options)["model"]["init_args"]["head"]
    options.outputs = given["outputs"]
    own = {key: value for key, value in given.items() if key not in ("outputs", "readout")}
    options.dpt = {"dpt": own, "auto": head_for("DepthTask")[0]}.get(given["name"], TINY)
    return run(options, "papers_dpt", PARTS)


if __name__ == "__main__":
    raise SystemExit(main())
