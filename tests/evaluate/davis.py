"""A miniature of DAVIS-2017."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.discover.videos import squares

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def miniature(root: Path) -> Path:
    """Two sequences of six frames: two squares that move right, and one that moves down."""
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("right\ndown\n")
    for name, steps in (("right", [(0, 2), (0, 1)]), ("down", [(2, 0)])):
        images, masks = squares(6, (48, 64), steps)
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for t, (image, mask) in enumerate(zip(images, masks, strict=True)):
            Image.fromarray(image).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
            index = Image.fromarray(mask).convert("P")
            index.putpalette(PALETTE)
            index.save(root / f"Annotations/480p/{name}/{t:05d}.png")
    return root
