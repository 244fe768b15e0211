"""Features of one image at many sizes: how far they stay those of the training size, with time and memory.

    python benchmarks/papers/any_size.py --data PHOTOS --backbones dinov2_vits14=FILE --markdown docs/methods/dinov2.md
    python benchmarks/papers/any_size.py --backbones scenes_tiny --quick

The image is enlarged to 0.5 to 8 times the training size of the backbone (up to 4k on one side, as long as memory
suffices), its patch features are averaged over the patches of the training size, and compared by their cosine. Every
rule for position embeddings that the backbone can follow is a row; rotary positions have none.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _study import finish, parse, parser, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _measure import peak_memory

FACTORS = (0.5, 1, 1.5, 2, 3, 4, 6, 8)
RULES = ("official", "official_registers", "size", "timm")


def image(options: argparse.Namespace) -> Any:
    """Return the first image, (H, W, 3)."""
    if options.data.startswith("scenes"):
        from dense.data.scenes import render

        return render(0, 0, (256, 256)).image
    from dense.data.image import list_images, read_image

    return read_image(list_images([Path(options.data)])[0])


def sizes(
    options: argparse.Namespace, name: str, weights: str | None, positions: str | None, picture: Any
) -> list[str]:
    """Return cosine, seconds and MB at every factor, as cells."""
    import cv2
    import torch
    import torch.nn.functional as F

    from dense.backbone import load_backbone

    backbone = load_backbone(name, weights, frozen=True, **({"positions": positions} if positions else {}))
    side, patch = backbone.spec.image_size[0], backbone.spec.patch
    own = options.size or side // patch * patch
    cells, reference = [], None
    factors = (1, *(f for f in FACTORS if f != 1)) if not options.quick else (1, 0.5, 2)
    found: dict[float, str] = {}
    for factor in factors:
        pixels = max(patch, round(own * factor / patch) * patch)
        if pixels > options.most:
            found[factor] = "over the limit"
            continue
        scaled = cv2.resize(picture, (pixels, pixels), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
        batch = backbone.normalise(torch.from_numpy(np.ascontiguousarray(scaled))[None])
        kept: list[Any] = []
        start = time.perf_counter()
        memory = peak_memory(
            lambda batch=batch, kept=kept: kept.append(backbone(batch, layers="last", norm=True).maps[-1])
        )
        seconds = time.perf_counter() - start
        features = kept[0]
        if reference is None:
            reference = features
        pooled = F.adaptive_avg_pool2d(features, reference.shape[-2:])
        cosine = float(F.cosine_similarity(pooled, reference, dim=1).mean())
        found[factor] = f"{cosine:.3f}, {seconds:.2f} s, {memory:.0f} MB"
    cells = [found[factor] for factor in sorted(found)]
    options.shown = sorted(found)
    return cells


def main() -> int:
    of_script = parser(__doc__, ["sizes"])
    of_script.add_argument("--backbones", nargs="+", default=["scenes_tiny"], metavar="NAME=WEIGHTS")
    of_script.add_argument("--size", type=int, help="training size; that of the position table if left out")
    of_script.add_argument("--most", type=int, default=4096, help="largest side in pixels")
    options = parse(of_script)
    from dense.backbone.load import spec_of

    picture, lines = image(options), []
    for given in options.backbones:
        name, _, weights = given.partition("=")
        spec = spec_of(name)
        for rule in RULES if spec.positions in RULES else (None,):
            mark = " (its own)" if rule == spec.positions else ""
            cells = sizes(options, name, weights or None, rule, picture)
            lines.append((f"{name}, {rule or spec.positions}{mark}", *cells))
    header = ("backbone, rule", *(f"{factor:g}x" for factor in options.shown))
    return finish(options, "papers_any_size", {"cosine to the features at 1x, seconds, memory": table(header, lines)})


if __name__ == "__main__":
    raise SystemExit(main())
