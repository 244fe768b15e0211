"""What each part of DINOv2 (Oquab et al., 2023) adds, on equal steps, and DINOv2's weights against DINO's.

    python benchmarks/papers/dinov2.py --markdown docs/methods/dinov2.md
    python benchmarks/papers/dinov2.py parts --data IMAGENET/train --config pretrain/dino_vits16 \\
        --knn IMAGENET/train IMAGENET/val --steps 125000 --seeds 1 --output runs/dinov2

parts: DINO, and one part more in each row: iBOT, KoLeo, Sinkhorn-Knopp, registers, LayerScale, drop path, SwiGLU, and
the last quarter of the steps at twice the resolution. layers: k-NN and linear classification of the last layer against
the last four, of --backbone. weights: the published backbones of --backbones, by k-NN.
"""

from __future__ import annotations

import argparse
from typing import Any

from _study import compare, finish, once, parse, parser, pretrain, table

KEY = "model.backbone.arguments"
STEPS: dict[str, dict[str, Any]] = {  # part -> what it changes, on top of all before
    "DINO": {"model.teacher.centering": "center"},
    "+ iBOT": {"model.ibot.weight": 1.0},
    "+ KoLeo": {"model.koleo.weight": 0.1},
    "+ Sinkhorn-Knopp": {"model.teacher.centering": "sinkhorn"},
    "+ registers": {f"{KEY}.reg_tokens": 4},
    "+ LayerScale": {f"{KEY}.init_values": 1e-5},
    "+ drop path 0.1": {"model.backbone.drop_path": 0.1},
    "+ SwiGLU": {f"{KEY}.mlp_layer": "swiglu_packed", f"{KEY}.mlp_ratio": 5.34375, f"{KEY}.act_layer": "silu"},
}


def parts(options: argparse.Namespace) -> str:
    """Add one part after the other; high resolution continues the last run at twice the size."""
    variants, together = dict[str, dict[str, Any]](), dict[str, Any]()
    for name, changes in STEPS.items():
        together = together | changes
        variants[name] = dict(together)
    text = compare(options, "parts", variants)
    lines = []
    for seed in range(options.seeds):
        before = pretrain(options, f"parts {list(STEPS)[-1]}", seed)
        views = "data.views.init_args"
        changes = together | {"model.steps": max(2, options.steps // 4), "model.stage": "high_res"}
        changes |= {"model.start_from": before["folder"]}
        changes |= {f"{views}.global_size": 2 * options.size, f"{views}.local_size": options.size}
        row = pretrain(options, "parts high resolution", seed, **changes)
        lines.append((str(seed), f"{before['knn'][-1]:.3f}", f"{row['knn'][-1]:.3f}", f"{row['seconds']:.0f}"))
    header = ("seed", "k-NN before", "after a quarter more steps at twice the size", "seconds")
    return f"{text}\n\n{table(header, lines)}"


def labelled(options: argparse.Namespace) -> dict[str, Any]:
    """Return the labelled images of the measures below."""
    train, val = options.knn or ("scenes:train", "scenes:val")
    sizes = {"scenes": (40, 20) if options.quick else (2000, 1000)}
    small = {} if options.knn is None else {"resize": options.resize, "crop": options.resize}
    return {"train": train, "val": val, "workers": 0} | (sizes if options.knn is None else small)


def classify(options: argparse.Namespace, name: str, weights: str | None, readout: str) -> dict[str, float]:
    """Return k-NN and linear accuracy of a readout."""
    import dense

    backbone = dense.load_backbone(name, weights, frozen=True)
    words = labelled(options)
    val = words.pop("val")
    knn = dense.evaluate(backbone, val, "knn", readout=readout, k=[20], **words)
    steps = 20 if options.quick else 1000
    linear = dense.evaluate(backbone, val, "linear", readout=readout, augment=False, steps=steps, **words)
    return {"knn": float(knn.numbers["top1 k=20"]), "linear": float(linear.numbers["top1"])}


def layers(options: argparse.Namespace) -> str:
    """The class token of the last layer against those of the last four, with and without the average patch."""
    lines = []
    for readout in ("class", "class_average", "last4", "last4_average"):
        make = lambda readout=readout: classify(options, options.backbone, options.weights, readout)  # noqa: E731
        found = once(options, f"layers {readout}", make)
        lines.append((readout.replace("_", " + "), f"{found['knn']:.3f}", f"{found['linear']:.3f}"))
    return table((options.backbone, "k-NN", "linear"), lines)


def weights(options: argparse.Namespace) -> str:
    """Published weights, one after the other: NAME=WEIGHTS, or NAME of a backbone that brings its own."""
    lines = []
    for given in options.backbones or [
        f"{options.backbone}={options.weights}" if options.weights else options.backbone
    ]:
        name, _, file = given.partition("=")
        make = lambda name=name, file=file: classify(options, name, file or None, "class")  # noqa: E731
        found = once(options, f"weights {name}", make)
        lines.append((name, f"{found['knn']:.3f}", f"{found['linear']:.3f}"))
    return table(("backbone", "k-NN", "linear"), lines)


PARTS = {"parts": parts, "layers": layers, "weights": weights}


def main() -> int:
    of_script = parser(__doc__, list(PARTS))
    of_script.add_argument("--size", type=int, default=48, help="side of the global crops of the recipe")
    of_script.add_argument("--resize", type=int, default=224, help="side of labelled images")
    of_script.add_argument("--backbones", nargs="+", metavar="NAME=WEIGHTS", help="of the part weights")
    options = parse(of_script)
    return finish(options, "papers_dinov2", {part: PARTS[part](options) for part in options.parts})


if __name__ == "__main__":
    raise SystemExit(main())
