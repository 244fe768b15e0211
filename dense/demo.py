"""`dense demo`: what works, on embedded scenes, without downloads."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dense import train
from dense.arguments import Parser
from dense.backbone import load_backbone
from dense.backbone.names import directory
from dense.data.scenes import Scenes
from dense.visual import enlarge, heat, pca_rgb, sheet, to_picture, write_picture

HEADS = ("segmentation/scenes_linear", "segmentation/scenes_dpt", "depth/scenes_dpt")


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense demo",
        description="Features and attention of embedded scenes, and heads trained on them; pictures in a folder.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--backbone", default="scenes_tiny", help="a name, or a saved directory")
    parser.add_argument(
        "--weights", default=None, help="'timm', a weight file or a directory; fresh weights if left out"
    )
    parser.add_argument("--scenes", type=int, default=4, help="how many scenes to show")
    parser.add_argument("--size", type=int, default=192, help="their size in pixels")
    parser.add_argument("--steps", type=int, default=150, help="of every head; 0 trains none")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and of fresh weights")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    show_features(options)
    if options.steps:
        show_heads(options)
    print(f"the demo took {time.perf_counter() - start:.0f} s; everything is in {options.output}")
    if options.weights is None and directory(options.backbone) is None:
        print("these weights are random; bring published ones with --backbone NAME --weights PATH")
    return 0


def show_features(options: Any) -> None:
    """OUTPUT/features.png: scenes, their features and what the class token attends to."""
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    scenes = Scenes("test", options.scenes, options.size, seed=options.seed)
    pictures = [scenes[i].image for i in range(len(scenes))]
    print(f"rendered {len(scenes)} scenes of {options.size} px in {time.perf_counter() - start:.2f} s")
    backbone = load_backbone(options.backbone, options.weights, frozen=True)
    print(backbone.spec)
    images = backbone.normalise(torch.from_numpy(np.stack(pictures)))
    with torch.inference_mode():
        features = backbone(images)
        attention = backbone.attention(images).mean(1) if backbone.spec.class_token else None  # B, h, w
    for layer, m, p in zip(features.layers, features.maps, features.prefix, strict=True):
        print(f"layer {layer}: map {tuple(m.shape)}, prefix {tuple(p.shape)}")
    size = (options.size, options.size)
    rows = [pictures, [enlarge(to_picture(c), size) for c in pca_rgb(features.maps[-1])]]
    if attention is not None:
        rows.append([enlarge(heat(a), size) for a in attention])
    target = options.output / "features.png"
    write_picture(target, sheet(rows))
    print(f"wrote {target} (rows: scenes, principal components of the last layer, mean class attention)")


def show_heads(options: Any) -> None:
    """OUTPUT/HEAD: three heads on cached features, and what each says of scenes it has not seen."""
    weights = [f"--model.backbone.weights={options.weights}"] if options.weights else []
    table = []
    for config in HEADS:
        folder = options.output / config.replace("/", "_")
        command = [
            "--config", config, "--output", str(folder), f"--model.backbone.name={options.backbone}", *weights,
            f"--model.steps={options.steps}", "--data.scenes=[200,50]", "--data.augment.flip=0",
            f"--data.cache={options.output / 'cache'}",
        ]  # fmt: skip
        print(f"\n$ dense train {shlex.join(command)}", flush=True)
        status = train.main(command)
        if status:
            raise RuntimeError(f"dense train ended with status {status}")
        numbers = json.loads((folder / "results.json").read_text())["numbers"]
        table.append((config, {k: v for k, v in numbers.items() if k in ("val/miou", "val/abs_rel", "val/delta1")}))
    print()
    for config, numbers in table:
        words = ", ".join(f"{name.removeprefix('val/')} {value:.3f}" for name, value in numbers.items())
        print(f"{config}: {words}; see {options.output / config.replace('/', '_') / 'predictions.png'}")
