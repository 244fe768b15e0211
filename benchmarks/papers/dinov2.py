"""What each part of DINOv2 (Oquab et al., 2023) adds, on equal steps, and DINOv2's weights against DINO's.

    python benchmarks/papers/dinov2.py --markdown docs/methods/dinov2.md
    python benchmarks/papers/dinov2.py parts --data IMAGENET/train --config pretrain/dino_vits16 \\
        --knn IMAGENET/train IMAGENET/val --steps 250000 --seeds 1 --output runs/dinov2 \\
        --set trainer.devices=8 trainer.precision=bf16-mixed

parts: DINO without any of them, whatever the recipe has, and one part more in each row: iBOT, KoLeo, Sinkhorn-Knopp,
registers, LayerScale, drop path, SwiGLU; then a quarter more steps at the same and at twice the resolution. layers:
k-NN and linear classification of the last layer against the last four, of --backbone. weights: the published backbones
of --backbones, by k-NN.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from _options import add_pretraining, at_least, belong, parse, parser
from _study import (
    Made,
    compare,
    device,
    need_weights,
    once,
    pretrain,
    recipe_of,
    refuse_set,
    run,
    short,
    table,
    trained_backbone,
    with_weights,
)

KEY = "model.backbone.arguments"
STEPS: dict[str, dict[str, Any]] = {  # part -> what it changes, on top of all before
    "DINO": {
        "model.teacher.centering": "center",
        "model.ibot.weight": 0.0,
        "model.koleo.weight": 0.0,
        "model.backbone.drop_path": 0.0,
        f"{KEY}.reg_tokens": 0,
        f"{KEY}.init_values": None,
        f"{KEY}.mlp_layer": "mlp",
        f"{KEY}.mlp_ratio": 4.0,
        f"{KEY}.act_layer": "gelu",
    },
    "+ iBOT": {"model.ibot.weight": 1.0},
    "+ KoLeo": {"model.koleo.weight": 0.1},
    "+ Sinkhorn-Knopp": {"model.teacher.centering": "sinkhorn"},
    "+ registers": {f"{KEY}.reg_tokens": 4},
    "+ LayerScale": {f"{KEY}.init_values": 1e-5},
    "+ drop path 0.1": {"model.backbone.drop_path": 0.1},
    "+ SwiGLU": {f"{KEY}.mlp_layer": "swiglu_packed", f"{KEY}.act_layer": "silu"},  # and a ratio for the width
}


def width_of(options: argparse.Namespace) -> int:
    """Return the width of the network that is pretrained."""
    from dense.backbone.load import spec_of

    given = dict(pair.split("=", 1) for pair in options.set)
    if wide := given.get(f"{KEY}.embed_dim"):
        return int(wide)
    if options.backbone:
        return spec_of(options.backbone).dim
    recipe = recipe_of(options)["model"]["backbone"]
    return spec_of(recipe["name"], **recipe.get("arguments", {})).dim


def swiglu_ratio(width: int) -> float:
    """Return the ratio of a packed SwiGLU whose hidden width is DINOv2's: two thirds of an MLP's, in whole eights."""
    from dense.backbone.weights.huggingface import mlp_ratio

    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    return mlp_ratio(2 * hidden, width)


def parts(options: argparse.Namespace) -> Made:
    """Add one part after the other; the last run is continued at its size and at twice its size."""
    variants, together = dict[str, dict[str, Any]](), dict[str, Any]()
    for name, changes in STEPS.items():
        together = together | changes
        if name == "+ SwiGLU":
            together[f"{KEY}.mlp_ratio"] = swiglu_ratio(width_of(options))
        variants[name] = dict(together)
    usual = {"global_size": 224, "local_size": 96}
    usual |= recipe_of(options)["data"].get("views", {}).get("init_args", {})
    twice = {f"data.views.init_args.{name}": 2 * usual[name] for name in ("global_size", "local_size")}
    refuse_set(options, twice)  # before the first of them is trained
    made = compare(options, "parts", variants)
    lines = []
    for seed in range(options.seeds):
        before = pretrain(options, f"parts {list(STEPS)[-1]}", seed, **together)
        changes = together | {"model.steps": max(2, options.steps // 4), "model.stage": "high_res"}
        changes |= {"model.start_from": before["folder"]}
        same = pretrain(options, "parts more steps", seed, **changes)
        large = pretrain(options, "parts high resolution", seed, **changes | twice)
        knn = [f"{row['knn'][-1]:.3f}" for row in (before, same, large)]
        lines.append((str(seed), *knn))
    header = ("seed", "k-NN before", "after a quarter more steps", "the same at twice the size")
    return made._replace(table=f"{made.table}\n\n{table(header, lines)}")


def labelled(options: argparse.Namespace) -> dict[str, Any]:
    """Return the labelled images of the measures below."""
    train, val = options.knn or ("scenes:train", "scenes:val")
    sizes = {"scenes": (40, 20) if options.quick else (2000, 1000)}
    small = {} if options.knn is None else {"resize": options.resize, "crop": options.resize}
    return {"train": train, "val": val} | (sizes | {"workers": 0} if options.knn is None else small)


def classify(
    options: argparse.Namespace, row: str, name: str, weights: str | None, readouts: Sequence[str]
) -> list[tuple[str, str]]:
    """Return k-NN and linear accuracy of each readout, as cells; each measure reads the images once."""
    import dense

    words = labelled(options)
    steps = 20 if options.quick else 1000

    def make() -> dict[str, Any]:
        from dense.evaluate.classification.features import choices_of

        backbone, val = dense.load_backbone(name, weights, frozen=True).to(device()), words["val"]
        given: dict[str, Any] = {"readout": readouts, "holdout": 0, "workers": min(os.cpu_count() or 1, 16)}
        given |= {key: value for key, value in words.items() if key != "val"}
        knn = dense.evaluate(backbone, val, "knn", k=[20], **given).numbers
        linear = dense.evaluate(backbone, val, "linear", augment=False, steps=steps, **given).numbers["scores"]
        choices = choices_of(backbone, readout=readouts)
        near = knn.get("scores", {f"{choices[0]}, top1 k=20": knn.get("top1 k=20")})
        return {
            "knn": [float(near[f"{choice}, top1 k=20"]) for choice in choices],
            "linear": [float(linear[str(choice)]) for choice in choices],
        }

    used = words | {"steps": steps, "backbone": name, "weights": weights, "readouts": readouts}
    found = once(options, row, make, used)
    return [(f"{knn:.3f}", f"{linear:.3f}") for knn, linear in zip(found["knn"], found["linear"], strict=True)]


def classified(options: argparse.Namespace) -> str:
    """Return in words the images of the measures."""
    words = labelled(options)
    scenes = f"{words['scenes'][0]} and {words['scenes'][1]} scenes" if "scenes" in words else ""
    return scenes or f"{short(words['train'])} and {short(words['val'])} at {options.resize} px"


def layers(options: argparse.Namespace) -> Made:
    """The class token of the last layer against those of the last four, with and without the average patch."""
    options = trained_backbone(options)
    name, readouts = options.backbone, ("class", "class_average", "last4", "last4_average")
    cells = classify(options, f"layers {name}", name, options.weights, readouts)
    lines = [(readout.replace("_", " + "), *own) for readout, own in zip(readouts, cells, strict=True)]
    text = table((short(name), "k-NN", "linear"), lines)
    return Made(text, f"{with_weights(options)}, fitted and measured on {classified(options)}", name)


def weights(options: argparse.Namespace) -> Made:
    """Published weights, one after the other: NAME=WEIGHTS, or NAME of a backbone that brings its own."""
    given = options.backbones
    if not given:
        one = trained_backbone(options)
        given = [f"{one.backbone}={one.weights}" if one.weights else one.backbone]
    lines = []
    for name, _, file in (word.partition("=") for word in given):
        need_weights(name, file or None, name)
        lines.append((short(name), *classify(options, f"weights {name}", name, file or None, ("class",))[0]))
    text = table(("backbone", "k-NN", "linear"), lines)
    return Made(text, f"{', '.join(map(short, given))}, fitted and measured on {classified(options)}")


PARTS = {"parts": parts, "layers": layers, "weights": weights}


def main() -> int:
    of_script = parser(__doc__, list(PARTS), "scenes:train", measuring=("layers", "weights"))
    add_pretraining(of_script)
    of_script.add_argument("--resize", type=at_least(1), default=224, help="side of labelled images")
    of_script.add_argument("--backbones", nargs="+", metavar="NAME=WEIGHTS", help="of the part weights")
    belong(of_script, ["layers", "weights"], "resize")
    belong(of_script, ["weights"], "backbones")
    belong(of_script, ["parts"], "data")
    options = parse(of_script)
    return run(options, "papers_dinov2", PARTS)


if __name__ == "__main__":
    raise SystemExit(main())
