"""Make photographs.png, look.png, explore.png and objects.jpg from photographs of scikit-image and DINOv2-S weights.

    python docs/photographs.py SKIMAGE/data --weights dinov2_vits14_pretrain.pth --detector runs/cut/model

The detector, by which docs/objects.jpg is drawn, is that of docs/mask_queries.md; without it the file stays as it is.

chelsea.png: a cat by Stefan van der Walt, CC0. coffee.png: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0.
astronaut.png: Eileen Collins, NASA, public domain. The weights of DINOv2 are Apache-2.0 (Meta). The screenshot needs
Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import dense
from dense.backbone import Backbone
from dense.backbone.at_hand import SHIPPED
from dense.data.image import read_image
from dense.explore.look import Looking
from dense.media.draw import Picture, captioned, fit, sheet, write_picture

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for the browser of the tests
NAMES = ("chelsea.png", "coffee.png", "astronaut.png")
EYE = (0.42, 0.39)  # of the cat, as shares of width and height
CELL, WORDS = 224, 20  # pixels of a cell and of its caption
OBJECTS = 360  # pixels of a photograph with its objects
SHOWN = ("features, PCA", "class attention", "object, TokenCut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder of scikit-image's data")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--detector", type=Path, help="model of instance/maskcut")
    options = parser.parse_args()
    paths = [options.images / name for name in NAMES]
    backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
    shipped = dense.load_backbone(SHIPPED, frozen=True)
    write_picture(HERE / "photographs.png", sheet([both(path, backbone, shipped) for path in paths], gap=6))
    dense.look(paths[2], backbone, point=(220, 110)).resize((1176, 619)).save(HERE / "look.png")
    explore(paths, backbone)
    if options.detector is not None:
        found = dense.load(options.detector, score=0.7)
        pictures = [read_image(path) for path in paths]
        overlays = [fit(middle(found(picture).overlay(picture)), OBJECTS) for picture in pictures]
        write_picture(HERE / "objects.jpg", sheet([overlays], gap=6))


def both(path: Path, backbone: Backbone, shipped: Backbone) -> list[Picture]:
    """Return captioned cells: a photograph, what DINOv2-S sees in it, and what the backbone in the package sees."""
    cells: dict[str, Picture] = {}
    for name, one in (("DINOv2-S", backbone), (SHIPPED, shipped)):
        row = Looking(one).rows([read_image(path)], [path.name])[0]
        cells = cells or {"photograph": row[path.name]}
        cells |= {f"{name}: {words.split(', ')[-1]}": row[words] for words in SHOWN}
    return [captioned(fit(middle(cell), CELL), words, WORDS) for words, cell in cells.items()]


def middle(picture: Picture) -> Picture:
    """Return the square in the middle of a picture."""
    side = min(picture.shape[:2])
    top, left = ((n - side) // 2 for n in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def explore(paths: list[Path], backbone: Backbone) -> None:
    """Write a screenshot of the page on which the cat's eye is clicked."""
    from tests.explore.browser import Browser

    with tempfile.TemporaryDirectory() as folder, Browser(1280, 560) as browser:
        page = Path(folder, "page.html")
        dense.explore(paths, page, backbone=backbone)
        browser.open(page)
        browser.value("get('smooth').click()")
        cat = browser.value("images.findIndex((image) => image.name === 'chelsea.png')")
        rows, columns = browser.value(f"images[{cat}].grid")
        browser.click(cat, int(EYE[1] * rows), int(EYE[0] * columns))
        browser.value("scrollTo(0, 0)")
        browser.screenshot(HERE / "explore.png")


if __name__ == "__main__":
    main()
