"""Read pictures safely: any common format in, uint8 RGB out, one clear error for what cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})


class ImageError(ValueError):
    """A picture that cannot be read."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8 RGB.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit pictures are converted; transparency is laid over white. A
    missing, empty, truncated or damaged file raises `ImageError`.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # a huge or oddly tagged picture is still a picture
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"no such picture: {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise ImageError(f"{path} is {'empty (0 bytes)' if empty else 'not a picture of a known format'}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is damaged or truncated ({error})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A PIL picture of any mode as (H, W, 3) uint8."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # 16-bit and float: scale to 8 bits
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" or values.max(initial=0.0) > 1.0 else 1.0
        grey = np.clip(np.nan_to_num(values) / top * 255.0 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def list_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Pictures named by a file, a folder (searched within, sorted), or several of these; an empty result raises."""
    sources: Iterable[str | Path] = [source] if isinstance(source, str | Path) else source
    found: list[Path] = []
    for item in map(Path, sources):
        if item.is_dir():
            found += sorted(p for p in item.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"no such picture or folder: {item}")
    if not found:
        names = ", ".join(map(str, sources))
        raise FileNotFoundError(f"no pictures in {names}; looked for {', '.join(sorted(EXTENSIONS))}")
    return found
