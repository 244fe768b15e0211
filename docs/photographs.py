"""Make docs/look.png and docs/explore.png from photographs of scikit-image and real DINOv2-S weights.

    python docs/photographs.py SKIMAGE/data --weights dinov2_vits14_pretrain.pth

astronaut.png: Eileen Collins, NASA, public domain. chelsea.png: Stefan van der Walt, CC0. coffee.png: Rachel Michetti,
courtesy of Pikolo Espresso Bar, CC0. The screenshot needs Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import dense

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for the browser of the tests
NAMES = ("chelsea.png", "coffee.png", "astronaut.png")
EYE = (0.42, 0.39)  # of the cat, as shares of width and height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder of scikit-image's data")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    options = parser.parse_args()
    from tests.explore.browser import Browser

    backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
    dense.look(options.images / "astronaut.png", backbone, point=(220, 110)).resize((1176, 619)).save(HERE / "look.png")
    with tempfile.TemporaryDirectory() as folder, Browser(1280, 560) as browser:
        page = Path(folder, "page.html")
        dense.explore([options.images / name for name in NAMES], page, backbone=backbone)
        browser.open(page)
        browser.value("get('smooth').click()")
        cat = browser.value("images.findIndex((image) => image.name === 'chelsea.png')")
        rows, columns = browser.value(f"images[{cat}].grid")
        browser.click(cat, int(EYE[1] * rows), int(EYE[0] * columns))
        browser.value("scrollTo(0, 0)")
        browser.screenshot(HERE / "explore.png")


if __name__ == "__main__":
    main()
