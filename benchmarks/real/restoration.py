"""Restoration of photographs: Gaussian noise of sigma 25 removed by a tiny Restormer guided by DINO features.

Any folder of photographs serves, such as the imagenet-sample-images repository; a tenth of them is held out. Beside the
network stand the noisy input and OpenCV's non-local means with its strength chosen for this noise.

    python benchmarks/real/restoration.py PHOTOS --weights dinov2_vits14.pth --output runs/restoration --steps 1500
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import _rows
import numpy as np
from _measure import once, table

RECIPE = "restoration/scenes_tiny"
SIGMA, SIDE = 25, 96
COMMON: dict[str, Any] = {
    "data.layout": "images", "data.degrade": {"kinds": {"noise": [SIGMA]}, "unseen": {}},
    "data.patches": [[0, SIDE, 8]], "data.check": 16, "data.val_ratio": 0.1, "data.workers": 2,
}  # fmt: skip
TRAININGS: dict[str, dict[str, Any]] = {"guided": {}, "plain body": {"model.head.guidance": "none"}}


def main() -> int:
    parser = _rows.parser(__doc__, ["non-local means", *TRAININGS])
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    lines = []
    for name in options.rows or ["non-local means", *TRAININGS]:
        if name in TRAININGS:
            length = {"model.steps": options.steps, "val_every": options.steps}
            row = _rows.train(options, name, RECIPE, **COMMON | length | TRAININGS[name])
        else:
            row = once(options, name, lambda: non_local_means(options))
        lines.append((name, f"{row['val/psnr']:.2f}", f"{row['val/ssim']:.3f}", f"{row['minutes']:.1f}"))
    return _rows.finish(options, "restoration", table(("", "PSNR", "SSIM", "minutes"), lines))


def non_local_means(options: argparse.Namespace) -> dict[str, Any]:
    """Measure OpenCV's non-local means on the held-out photographs."""
    import cv2
    import torch

    from dense.data.degrade import Degrade
    from dense.data.labelled.open import open_training
    from dense.metrics import RestorationMetrics
    from dense.tasks.degraded import DegradedImages

    source = open_training(options.data, layout="images", val_ratio=COMMON["data.val_ratio"])[1]
    samples, metric = DegradedImages(source, Degrade(**COMMON["data.degrade"])), RestorationMetrics(("noise",))
    for index in range(len(samples)):
        sample = samples[index]
        noisy = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()[..., ::-1])
        clean = cv2.fastNlMeansDenoisingColored(noisy, None, 0.8 * SIGMA, 0.8 * SIGMA)[..., ::-1].copy()
        assert sample.clean is not None
        metric.update(torch.from_numpy(clean).permute(2, 0, 1)[None] / 255, sample.clean[None] / 255, ["noise"])
    return {f"val/{name}": float(v) for name, v in metric.compute().items() if not isinstance(v, dict)}


if __name__ == "__main__":
    sys.exit(main())
