"""Time and memory of an image of 20,000 x 20,000 pixels: predicted window by window, and windows read from its tiles.

The image is a tiled, compressed RGB TIFF of drawn cells. A backbone with a random linear head, as fast as a trained
one, writes classes and scores as tiled TIFF. Target: a peak of 2,000 MB of resident memory, libraries included. The
peer of reading is tifffile, which decodes the whole image before a window is cut out.

    python benchmarks/large.py                                      # a ViT of one block, some minutes on one thread
    python benchmarks/large.py --size 2048 --backbone photos_tiny   # half a minute
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _claims import record, versioned
from _measure import arguments, resident

from dense.backbone import load_backbone
from dense.data.large import open_windows
from dense.model.network import DenseModel, Inference
from dense.predict import Predictor
from heads import build

CLASSES, TILE, WINDOW, READ = 4, 512, 512, 100
SMALLEST: dict[str, Any] = {"patch_size": 16, "img_size": 64, "depth": 1, "embed_dim": 16, "num_heads": 1}


def draw(path: Path, size: int) -> None:
    """Write round cells of many sizes on a background with noise, tile by tile."""
    import tifffile

    rng = np.random.default_rng(0)
    side = 4 * TILE
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    field = np.full((side, side), 235, np.float32)
    for y, x, radius, value in zip(*rng.uniform(0, side, (2, 300)), rng.uniform(8, 40, 300), rng.uniform(40, 180, 300),
                                   strict=True):  # fmt: skip
        field[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = value
    block = (field[..., None] * np.array([0.9, 0.6, 0.8]) + rng.normal(0, 2, (side, side, 3))).clip(0, 255)
    tiles = block.astype(np.uint8).reshape(4, TILE, 4, TILE, 3).swapaxes(1, 2).reshape(16, TILE, TILE, 3)
    count = (-(-size // TILE)) ** 2
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            (tiles[(7 * n) % 16] for n in range(count)), shape=(size, size, 3), dtype=np.uint8, tile=(TILE, TILE),
            photometric="rgb", compression="zlib", maxworkers=1,
        )  # fmt: skip


def model(name: str) -> DenseModel:
    """Return a backbone with a random linear head."""
    torch.manual_seed(0)
    smallest = name == "smallest"
    backbone = load_backbone("vit_tiny_patch16_224", **SMALLEST) if smallest else load_backbone(name)
    backbone.freeze()
    outputs = {"labels": {"name": "classes", "count": CLASSES}}
    head = build({"name": "linear", "in_channels": [backbone.spec.dim], "outputs": outputs})
    torch.nn.init.normal_(next(head.parameters()))
    return DenseModel(backbone, head, (backbone.spec.depth - 1,), True, "segmentation", None, Inference())


def predict(image: Path, name: str, window: int, stride: int, batch: int) -> None:
    """Predict the image; print megapixels per second and the peak of resident memory in MB."""
    torch.set_num_threads(1)
    network = model(name)
    window = window // network.backbone.spec.patch * network.backbone.spec.patch
    predictor = Predictor(
        network, inference=Inference(window=window, stride=min(stride, window)), batch=batch, large=0.0
    )
    start = time.perf_counter()
    paths = predictor.write(image, image.with_suffix(""))
    print(", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in paths), file=sys.stderr)
    print(f"{time.perf_counter() - start:.1f} {resident('VmHWM'):.0f}")


def read(image: Path, how: str) -> None:
    """Read windows at random places; print seconds and the peak of resident memory beyond the start in MB."""
    import tifffile

    before, rng = resident("VmRSS"), np.random.default_rng(0)
    start = time.perf_counter()
    if how == "whole":
        whole = tifffile.imread(image, maxworkers=1)
        pixels = whole[:WINDOW, :WINDOW].sum()
    else:
        windows = open_windows(image)
        places = rng.integers(0, windows.shape[0] - WINDOW, (READ, 2)).tolist()
        pixels = sum(int(windows.read(top, left, WINDOW, WINDOW).sum()) for top, left in places)
    assert pixels > 0
    print(f"{time.perf_counter() - start:.2f} {resident('VmHWM') - before:.0f}")


def measured(*words: object) -> tuple[float, float]:
    """Run this script in a process of its own; return the two numbers of the last line that it prints."""
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory = map(float, done.stdout.splitlines()[-1].split())
    return seconds, memory


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=20_000, help="side of the image")
    parser.add_argument(
        "--backbone", default="smallest", help="a backbone at hand, or smallest: a ViT of one block of width 16"
    )
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--stride", type=int, default=WINDOW, help="pixels between windows")
    parser.add_argument("--batch", type=int, default=1, help="windows at once")
    parser.add_argument("--folder", type=Path, help="where files are written and kept; else they are removed")
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "IMAGE"), help="a measurement in this process")
    options = parser.parse_args()
    how = [f"--{name}={getattr(options, name)}" for name in ("backbone", "window", "stride", "batch")]
    if options.only:
        what, image = options.only[0], Path(options.only[1])
        if what == "predict":
            predict(image, options.backbone, options.window, options.stride, options.batch)
        else:
            read(image, what)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image = Path(folder) / "cells.tif"
        draw(image, options.size)
        megapixels = options.size**2 / 1e6
        print(f"{image.name}: {options.size} x {options.size}, {image.stat().st_size / 1e6:.0f} MB", flush=True)
        windows, whole = measured("--only", "windows", image), measured("--only", "whole", image)
        print(f"{READ} windows of {WINDOW} pixels: {windows[0]:.2f} s, {windows[1]:.0f} MB beyond the start")
        print(f"one window of the whole file, tifffile: {whole[0]:.2f} s, {whole[1]:.0f} MB", flush=True)
        seconds, memory = measured("--only", "predict", image, *how)
        print(
            f"prediction with {options.backbone}, windows of {options.window} every {options.stride}: {seconds:.0f} s, "
            f"{megapixels / seconds:.2f} megapixels a second, peak {memory:.0f} MB"
        )
    record(
        f"a window of {WINDOW} pixels of a {megapixels:.0f} megapixel TIFF", peer=f"{versioned('tifffile')}, whole",
        ours=f"{1e3 * windows[0] / READ:.1f} ms, {windows[1]:.0f} MB", theirs=f"{whole[0]:.1f} s, {whole[1]:.0f} MB",
        ratio=whole[0] / (windows[0] / READ),
    )  # fmt: skip
    record(
        f"prediction of {megapixels:.0f} megapixels, {options.backbone}",
        ours=f"{seconds:.0f} s, {memory:.0f} MB resident", value=memory, most=2000,
    )  # fmt: skip


if __name__ == "__main__":
    main()
