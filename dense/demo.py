"""`dense demo`: what works, on embedded scenes, without downloads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dense.arguments import Parser
from dense.backbone import load_backbone
from dense.data.scenes import Scenes
from dense.visual import enlarge, heat, pca_rgb, sheet, to_picture


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense demo", description="Features and attention of embedded scenes; writes pictures to a folder."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument(
        "--backbone", default="vit_tiny_patch16_224", help="timm name, official name or saved directory"
    )
    parser.add_argument(
        "--weights", default=None, help="'timm', a weight file or a directory; fresh weights if left out"
    )
    parser.add_argument("--scenes", type=int, default=4, help="how many scenes")
    parser.add_argument("--size", type=int, default=256, help="their size in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and of fresh weights")
    options = parser.parse_args(argv)
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
    colours = pca_rgb(features.maps[-1])
    rows = [pictures, [enlarge(to_picture(c), size) for c in colours]]
    if attention is not None:
        rows.append([enlarge(heat(a), size) for a in attention])
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / "features.png"
    Image.fromarray(sheet(rows)).save(target)
    print(f"wrote {target} (rows: scenes, principal components of the last layer, mean class attention)")
    if options.weights is None and not Path(options.backbone).is_dir():
        print("these weights are random; bring published ones with --backbone NAME --weights PATH")
    return 0
