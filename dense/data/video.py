"""Videos: frames of a folder in order, masks of numbered objects, and labelled videos for evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dense.data.image import EXTENSIONS, read_image
from dense.data.labelled.reading import read_mask
from dense.data.labelled.sample import DataError
from dense.data.scenes import SPLITS, clip
from dense.suggest import did_you_mean

UNKNOWN = 255  # in masks that hold other objects too
Frame = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # an image (H, W, 3) and its numbered objects (H, W)


class Clip(Protocol):
    """A video with annotated objects in every frame."""

    @property
    def name(self) -> str:
        """The name of the clip in messages and results."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


def objects_of(mask: NDArray[np.integer]) -> list[int]:
    """Return the numbers of a mask's objects: all but 0, and without 255 where there are others."""
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise ValueError(f"expected a mask of shape (H, W) in whole numbers, got {mask.shape} in {mask.dtype}")
    found = [int(number) for number in np.unique(mask) if number]
    if found and not 0 < found[0] <= found[-1] <= UNKNOWN:
        raise ValueError(f"the mask holds the numbers {found[0]} to {found[-1]}: expected objects of 1 to 254")
    objects = [number for number in found if number != UNKNOWN] or found
    if not objects:
        raise ValueError("the mask holds no object: all of its pixels are 0")
    return objects


def read_objects(path: str | Path) -> NDArray[np.uint8]:
    """Return a mask (H, W) of numbered objects from a PNG with a palette, or in grey."""
    raw = read_mask(path)
    if raw.ndim == 3:
        if (raw != raw[..., :1]).any():
            raise DataError(f"{path} is painted in colours; save it as numbers of objects, with a palette or in grey")
        raw = raw[..., 0]
    if raw.max(initial=0) > UNKNOWN or raw.min(initial=0) < 0:
        raise DataError(f"{path} holds the numbers {raw.min()} to {raw.max()}: expected objects of 1 to 254")
    return raw.astype(np.uint8)


def list_frames(folder: str | Path) -> list[Path]:
    """Return the images of a folder, not of its subfolders, by the numbers in their names: frame2 before frame10."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of frames: {folder}")
    found = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if not found:
        raise FileNotFoundError(f"no frames in {folder} itself; looked for {', '.join(sorted(EXTENSIONS))}")
    return sorted(found, key=lambda path: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", path.name)])


@dataclass(frozen=True)
class SceneClip:
    """A camera that moves past an embedded scene; objects cover at least the fraction `least` of the first frame."""

    seed: int
    index: int
    frames: int
    side: int
    least: float = 0.005

    @property
    def name(self) -> str:
        return f"scene {self.index}"

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Frame]:
        large: NDArray[np.bool_] | None = None
        for scene in clip(self.seed, self.index, self.frames, self.side):
            if large is None:
                large = np.bincount(scene.instance.reshape(-1), minlength=256) >= self.least * scene.instance.size
            yield scene.image, np.where(large[scene.instance], scene.instance, 0).astype(np.uint8)


@dataclass(frozen=True)
class FileClip:
    """A video in files: one image and one mask per frame."""

    name: str
    images: Sequence[Path]
    masks: Sequence[Path]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Frame]:
        for image, mask in zip(self.images, self.masks, strict=True):
            pixels, objects = read_image(image), read_objects(mask)
            if pixels.shape[:2] != objects.shape:
                raise DataError(f"{mask} is {objects.shape}, its image {pixels.shape[:2]} (height, width)")
            yield pixels, objects


def scene_clips(split: str, clips: int, frames: int, side: int, seed: int) -> list[Clip]:
    """Return clips of embedded scenes of a split, which shares no scene with another split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
    if clips < 1 or frames < 3 or side < 16:
        raise ValueError(f"{clips} clips of {frames} frames of {side} px: expected at least 1 of 3 frames of 16 px")
    return [SceneClip(seed, SPLITS[split][item], frames, side) for item in range(clips)]


def davis(root: str | Path, split: str = "val", resolution: str = "480p") -> list[Clip]:
    """Return the sequences of a split of DAVIS-2017, with JPEGImages, Annotations and ImageSets/2017 in `root` or
    `root`/DAVIS."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}; expected that of DAVIS-2017, or scenes")
    root = root / "DAVIS" if (root / "DAVIS").is_dir() else root
    listed = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} is missing; expected DAVIS-2017, with JPEGImages, Annotations and ImageSets")
    names = listed.read_text().split()
    if not names:
        raise DataError(f"{listed} lists no sequence")
    found, problems = list[Clip](), list[str]()
    for name in names:
        try:
            images, masks = (list_frames(root / kind / resolution / name) for kind in ("JPEGImages", "Annotations"))
        except FileNotFoundError as error:
            problems.append(str(error))
            continue
        odd = sorted({path.stem for path in images} ^ {path.stem for path in masks})
        if odd:
            problems.append(
                f"{name} has an image without its mask, or the reverse, at frame {odd[0]}, and {len(odd) - 1} more"
            )
        elif len(images) < 3:
            problems.append(
                f"{name} has {len(images)} frames: expected 3 or more, since the first and the last are not evaluated"
            )
        found.append(FileClip(name, images, masks))
    if problems:
        raise DataError(*problems)
    return found
