"""Features of one image at many sizes: how far they stay those of the training size, with time and memory.

    python benchmarks/papers/any_size.py --data PHOTOS --backbones dinov2_vits14=FILE --markdown docs/methods/dinov2.md
    python benchmarks/papers/any_size.py --backbones scenes_tiny --quick

The first image is enlarged to 0.5 to 8 times the training size of the backbone, at most to --most pixels on a side, its
patch features are averaged over the patches of the training size, and compared by their cosine. Every rule for position
embeddings that the backbone can follow is a row; rotary positions have none. Each size runs in a process of its own;
its memory is what one forward pass adds, on an accelerator to that of the accelerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _options import at_least, parse, parser
from _study import Made, device, in_one_line, need_weights, publish, short, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _measure import once, peak_memory, slug

FACTORS = (1, 0.5, 1.5, 2, 3, 4, 6, 8)  # of the first the features are the reference
RULES = ("official", "official_registers", "size", "timm", "bilinear")


def image(data: str) -> Any:
    """Return the first image, (H, W, 3)."""
    if data in ("scenes", "scenes:train", "scenes:val", "scenes:test"):
        from dense.data.scenes import render

        return render(0, 0, (256, 256)).image
    from dense.data.image import list_images, read_image

    return read_image(list_images([Path(data)])[0])


def measure(cell: dict[str, Any]) -> dict[str, float]:
    """Compute the features of the image at one size, keep those of the training size, and compare others with them."""
    import cv2
    import torch
    import torch.nn.functional as F

    from dense.backbone import load_backbone

    positions = {"positions": cell["rule"]} if cell["rule"] else {}
    place = device()
    backbone = load_backbone(cell["name"], cell["weights"], frozen=True, **positions).to(place)
    picture, pixels, kept = image(cell["data"]), cell["pixels"], Path(cell["reference"])
    way = cv2.INTER_AREA if pixels < min(picture.shape[:2]) else cv2.INTER_CUBIC
    scaled = np.ascontiguousarray(cv2.resize(picture, (pixels, pixels), interpolation=way))
    batch = backbone.normalise(torch.from_numpy(scaled)[None].to(place))
    found: list[Any] = []

    def forward() -> None:
        found.append(backbone(batch, layers="last", norm=True).maps[-1].cpu())

    corner = max(pixels // 4, backbone.spec.patch)
    backbone(batch[..., :corner, :corner], layers="last", norm=True)  # loads kernels
    start = time.perf_counter()
    memory = (accelerator_memory if place == "cuda" else peak_memory)(forward)
    seconds = time.perf_counter() - start
    if pixels == cell["own"]:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, found[0].numpy())
    reference = torch.from_numpy(np.load(kept))
    pooled = F.adaptive_avg_pool2d(found[0], reference.shape[-2:])
    return {"cosine": float(F.cosine_similarity(pooled, reference, dim=1).mean()), "seconds": seconds, "memory": memory}


def accelerator_memory(function: Callable[[], None]) -> float:
    """Return the peak of the accelerator's memory during a call in MB, beyond what was allocated."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def apart(cell: dict[str, Any]) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 1:
        raise SystemExit(1)  # which it explained
    if done.returncode:
        raise SystemExit(f"{cell['name']} at {cell['pixels']} pixels ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def sizes(options: argparse.Namespace, name: str, weights: str | None) -> Made:
    """Return a row for every rule of positions, and a cell for every size."""
    from dense.backbone.load import spec_of

    spec = spec_of(name)
    side, patch = spec.image_size[0], spec.patch
    own, most = options.size or side // patch * patch, options.most // patch * patch
    if own < patch:
        raise SystemExit(f"--size {own}: expected {patch} or more, a patch of {name}")
    if options.most < own:
        raise SystemExit(f"--most {options.most}: expected {own} or more, the training size")
    pixels: dict[float, int] = {}
    for factor in FACTORS[: 2 if options.quick else None]:
        length = min(max(patch, round(own * factor / patch) * patch), most)
        if length not in pixels.values():  # several would be cut at --most
            pixels[factor] = length
    lines, where = [], {"device": device()} if device() != "cpu" else {}
    for rule in options.rules or RULES if spec.positions in RULES else (None,):
        place, own_rule = f"{slug(name)} {rule or spec.positions}", rule in (None, spec.positions)
        cells = {}
        for factor, length in pixels.items():
            cell = {
                "name": name,
                "weights": weights,
                "rule": rule,
                "data": options.data,
                "pixels": length,
                "own": pixels[1],
            } | where
            kept = options.output / "rows" / f"{slug(place)}-{pixels[1]}.npy"
            full = cell | {"reference": str(kept)}
            make = partial(measure if options.quick else apart, full)
            found = once(options, f"{place} {factor:g}x {length}", make, cell)
            cells[factor] = f"{found['cosine']:.3f}"
            if own_rule:  # the others cost as much
                cells[factor] += f", {found['seconds']:.2f} s, {found['memory']:.0f} MB"
        mark = " (its own)" if rule == spec.positions else ""
        lines.append((f"{rule or spec.positions}{mark}", *(cells[factor] for factor in sorted(cells))))
    header = ("positions", *(f"{factor:g}x: {pixels[factor]} px" for factor in sorted(pixels)))
    said = (
        f"{short(name)} with {short(weights) if weights else 'its own weights'}, first image of {short(options.data)}"
    )
    said += f", on {device()}" if where else ""
    return Made(table(header, lines), f"{said}, cosine to the features at 1x, seconds, memory", name)


def main() -> int:
    if sys.argv[1:2] == ["--cell"]:
        with in_one_line():
            print(json.dumps(measure(json.loads(sys.argv[2]))))
        return 0
    of_script = parser(__doc__, ["sizes"])
    words = "--backbone is the same; of one that brings its weights the name alone"
    of_script.add_argument("--backbones", nargs="+", default=["scenes_tiny"], metavar="NAME=WEIGHTS", help=words)
    of_script.add_argument("--size", type=at_least(1), help="training size; that of the position table if left out")
    of_script.add_argument("--rules", nargs="+", choices=RULES, help="for positions; all if left out")
    of_script.add_argument("--most", type=at_least(1), default=4096, help="largest side in pixels")
    options = parse(of_script)
    for given in options.backbones:
        name, _, weights = given.partition("=")
        need_weights(name, weights or None, name)
        with in_one_line():
            publish(options, "papers_any_size", "sizes", sizes(options, name, weights or None))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
