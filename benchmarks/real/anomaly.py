"""Anomalies in one room: frames of 7-Scenes "redkitchen" are good, and those with a foreign object pasted in are not.

    python benchmarks/real/anomaly.py KITCHEN --weights dinov2_vits14.pth --photographs PHOTOS --output runs/anomaly

The frames are arranged as for kitchen.py. Good images are frames of train, evenly spaced; the test has the frames of
val, which come later in the video, and copies of them with one object each, whose kind is in the table: a solid of the
embedded scenes, or a part of a photograph in the outline of a solid. Object, size (its longer side is 0.08 to 0.25 of
the frame's height) and place are drawn by the seed; the edge is blended over one pixel. Rows: the published setting,
another block, and random initialisation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import _rows
import cv2
import numpy as np
from _all import machine
from _measure import once, prose, table
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # H, W, 3
Mask = NDArray[np.bool_]  # H, W
ROWS: dict[str, dict[str, Any]] = {
    "last block": {"layers": "last"},
    "block 8": {"layers": [8]},
    "random initialisation": {"layers": "last"},
}
COLUMNS = ("auroc", "ap", "f1_max", "pixel_auroc", "aupro", "true_positive_rate")
LONGER = (0.08, 0.25)  # side of an object, as a share of the frame's height
HOLDOUT = 10  # frames that choose the threshold without one another


def main() -> int:
    parser = _rows.parser(__doc__, ROWS)
    parser.add_argument("--photographs", type=Path, help="folder of photographs, for the second kind of object")
    parser.add_argument("--good", type=int, default=100, help="frames that are fitted")
    parser.add_argument("--resize", type=int, default=322, help="shorter side of the frames")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--figure", type=Path, help="file for three frames with their maps")
    options = parser.parse_args()
    rows = {name: once(options, name, lambda n=name: measure(options, n)) for name in options.rows or ROWS}
    lines = [
        (name, kind, *(f"{numbers[c]:.3f}" for c in COLUMNS), f"{row['false_positive_rate']:.3f}", f"{row['rate']:.2f}")
        for name, row in rows.items()
        for kind, numbers in row["kinds"].items()
    ]
    first = next(iter(rows.values()))
    facts = prose(
        f"{options.backbone}, {options.good} good frames, in the test {first['test']} good frames and as many with an "
        f"object of each kind, shorter side {options.resize}, seed {options.seed}; images per second on "
        f"{machine()['threads']} thread(s)."
    )
    header = ("", "object", *COLUMNS, "false_positive_rate", "images/s")
    if options.json:
        content = {"machine": machine(), "protocol": facts, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return _rows.finish(options, "anomaly", f"{facts}\n\n{table(header, lines)}")


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Fit a model and return the numbers of each kind of object."""
    from dense.backbone import load_backbone
    from dense.data.image import list_images, read_image
    from dense.media.draw import sheet, write_picture
    from dense.memory import build_anomaly
    from dense.memory.anomaly import detect
    from dense.metrics.anomaly import PixelMetrics, auroc, average_precision, f1_max, levels
    from dense.predict import Anomaly

    weights = None if name == "random initialisation" else options.weights
    backbone = load_backbone(options.backbone, weights, frozen=True)
    frames = list_images(options.data / "train/images")
    good = [frames[i] for i in np.linspace(0, len(frames) - 1, options.good).round().astype(int)]
    start = time.perf_counter()
    model = build_anomaly(backbone, good, resize=options.resize, holdout=HOLDOUT, seed=options.seed, **ROWS[name])
    fitting, threshold = time.perf_counter() - start, model.head.threshold
    spent, scores = 0.0, dict[str, list[float]]()
    pixels: dict[str, PixelMetrics] = {}
    shown: list[list[Image]] = []
    kinds = ("solid", "photograph") if options.photographs else ("solid",)
    files = list_images(options.data / "val/images")
    for number, path in enumerate(files):
        frame = read_image(path)
        cases = {"good": (frame, np.zeros(frame.shape[:2], bool))}
        cases |= {kind: paste(frame, kind, options, number) for kind in kinds}
        for kind, (image, mask) in cases.items():
            start = time.perf_counter()
            score, values = detect(model, image)
            spent += time.perf_counter() - start
            scores.setdefault(kind, []).append(score)
            for other in kinds if kind == "good" else (kind,):
                pixels.setdefault(other, PixelMetrics()).update(values, mask)
            if number % (len(files) // 3) == 5 and kind in ("good", kinds[-1]):
                place = shown if kind == "good" else shown[-1:]
                drawn = [image, Anomaly(values, score, threshold).overlay(image)]
                shown.append(drawn) if kind == "good" else place[0].extend(drawn)
    found: dict[str, Any] = {}
    for kind in kinds:
        both = np.array(scores["good"] + scores[kind])
        counts = levels(both, np.arange(len(both)) >= len(files))
        found[kind] = {"auroc": auroc(*counts), "ap": average_precision(*counts), "f1_max": f1_max(*counts)}
        found[kind] |= pixels[kind].compute()
        found[kind]["true_positive_rate"] = float((np.array(scores[kind]) > threshold).mean())
    if options.figure and name == next(iter(ROWS)):
        write_picture(options.figure, sheet(shown))
    return {
        "kinds": found, "false_positive_rate": float((np.array(scores["good"]) > threshold).mean()),
        "threshold": threshold,
        "rate": len(files) * (1 + len(kinds)) / spent, "fitting seconds": fitting, "test": len(files),
        "patches": len(model.head.bank), "scores": scores,
    }  # fmt: skip


def paste(frame: Image, kind: str, options: argparse.Namespace, number: int) -> tuple[Image, Mask]:
    """Return a frame with one object, and the object's mask."""
    from dense.data.image import list_images, read_image

    rng = np.random.default_rng((options.seed, number, kind == "photograph"))
    colours, outline = solid(options.seed, int(rng.integers(10**6)))
    height, width = outline.shape
    if kind == "photograph":
        files = list_images(options.photographs)
        texture = read_image(files[rng.integers(len(files))])
        side = min(texture.shape[:2])
        top, left = (rng.integers(n - side + 1) for n in texture.shape[:2])
        square = texture[top : top + side, left : left + side]
        colours = np.asarray(cv2.resize(square, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    factor = rng.uniform(*LONGER) * frame.shape[0] / max(height, width)
    size = (max(8, round(width * factor)), max(8, round(height * factor)))
    colours = cv2.resize(colours, size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(outline.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(frame.shape[:2], alpha.shape, strict=True))
    place = (slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1]))
    image, mask = frame.copy(), np.zeros(frame.shape[:2], bool)
    blended = alpha[..., None] * colours + (1 - alpha[..., None]) * frame[place]
    image[place], mask[place] = (blended + 0.5).astype(np.uint8), alpha > 0.5
    return image, mask


def solid(seed: int, index: int) -> tuple[Image, Mask]:
    """Return the largest solid of an embedded scene that no border cuts: its box of pixels and its outline there."""
    from dense.data.scenes import render

    while True:
        scene = render(seed, index, 256)
        areas = np.bincount(scene.instance.reshape(-1))
        edge = np.concatenate([scene.instance[[0, -1]].reshape(-1), scene.instance[:, [0, -1]].reshape(-1)])
        areas[[0, *np.unique(edge)]] = 0
        if areas.max() >= 300:
            rows, columns = np.nonzero(scene.instance == areas.argmax())
            box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
            return scene.image[box], scene.instance[box] == areas.argmax()
        index += 1


if __name__ == "__main__":
    sys.exit(main())
