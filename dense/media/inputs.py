"""Images and videos as inputs: found among files and folders, read, and resized and batched for a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.data.image import ImageError, list_images, read_image
from dense.data.levels import PHOTOGRAPHS, Reading, as_rgb, resized
from dense.data.values import one_per_image, stem_of
from dense.data.video import list_frames
from dense.media.draw import Picture
from dense.media.video import Video, is_video

MOST = 100_000_000  # pixels of a backbone's input
FOLDER_RATE = 24.0  # frames per second of a folder of frames, as in DAVIS


def sort_inputs(
    inputs: Iterable[str | Path], without: Path | None = None, apart: bool = True, reading: Reading = PHOTOGRAPHS
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return the images, each with the stem of its outputs, and the videos; each file once.

    Folders are searched recursively. Files inside the folder `without`, where outputs are written, are left out. Two
    files of one stem raise, unless `apart` is false. reading: of the images, see `list_images`.
    """
    images: dict[Path, Path] = {}
    videos: dict[Path, Path] = {}
    for item in map(Path, inputs):
        if is_video(item):
            if not item.is_file():
                raise FileNotFoundError(f"no such video: {item}")
            videos[item] = Path(item.stem)
            continue
        inside = sorted(p for p in item.rglob("*") if is_video(p) and p.is_file())
        videos |= {p: Path(p.stem) for p in inside if not _is_within(p, without)}
        root = item if item.is_dir() else item.parent
        try:
            found = list_images(item, reading=reading)
        except FileNotFoundError:
            if not inside:
                raise
            continue
        images |= {p: stem_of(p.relative_to(root), reading) for p in found if not _is_within(p, without)}
    for files in (images, videos) if apart else ():
        owners: dict[Path, Path] = {}
        for path, stem in files.items():
            if stem in owners:
                raise ValueError(
                    f"{owners[stem]} and {path} would write the same file, {stem}; give them one at a time"
                )
            owners[stem] = path
    return list(images.items()), list(videos)


def _is_within(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


@dataclass(frozen=True)
class SizedImage:
    """An image at its own size and at the size of a backbone's input."""

    stem: Path  # of its outputs
    original: Picture  # H, W, 3, as it is drawn
    resized: Picture  # h, w, C
    suffix: str = ""

    @property
    def file(self) -> str:
        """The path of the image's file, relative to the folder that the user named."""
        return f"{self.stem}{self.suffix}"


def resize_for_backbone(image: Picture, stem: Path, shorter: int, patch: int, suffix: str = "") -> SizedImage:
    """Resize an image to a shorter side of about `shorter` pixels (0: its own size), both sides whole patches.

    An image of more than `MOST` pixels then raises, since no backbone computes attention over so many patches.
    """
    height, width = image.shape[:2]
    factor = shorter / min(height, width) if shorter else 1.0
    rows, columns = (max(patch, round(n * factor / patch) * patch) for n in (height, width))
    if rows * columns > MOST:
        raise ImageError(
            f"{Path(f'{stem}{suffix}').name or 'the image'}: --size {shorter} makes it {rows}x{columns}, and the "
            f"backbone's input has at most {MOST // 10**6} megapixels; choose a smaller --size"
        )
    if (rows, columns) == (height, width):
        return SizedImage(stem, as_rgb(image), image, suffix)
    method = cv2.INTER_AREA if rows * columns < height * width else cv2.INTER_CUBIC
    return SizedImage(stem, as_rgb(image), resized(image, (rows, columns), method), suffix)


def read_images(
    images: Iterable[tuple[Path, Path]],
    shorter: int,
    patch: int,
    unreadable: list[str],
    reading: Reading = PHOTOGRAPHS,
) -> Iterator[SizedImage]:
    """Yield resized images by path and stem; add the error messages of those that cannot be read to `unreadable`."""
    for path, stem in images:
        try:
            yield resize_for_backbone(read_image(path, reading=reading), stem, shorter, patch, path.suffix)
        except ImageError as error:
            unreadable.append(str(error))


def batches(images: Iterable[SizedImage], size: int) -> Iterator[list[SizedImage]]:
    """Yield batches of up to `size` consecutive images that have one size for the backbone."""
    batch: list[SizedImage] = []
    for image in images:
        if batch and (len(batch) == size or image.resized.shape != batch[0].resized.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def stack_normalised(batch: Sequence[SizedImage], backbone: Backbone) -> Tensor:
    """Return the backbone's input (B, 3, h, w) for a batch, on its device."""
    device = next(backbone.parameters()).device
    return backbone.normalise(torch.from_numpy(np.stack([image.resized for image in batch])).to(device))


class Frames:
    """The frames of a video file or of a folder of images, read one by one, with a name for each."""

    def __init__(self, path: Path, reading: Reading = PHOTOGRAPHS) -> None:
        self.path, self.reading = path, reading
        self.video = None if path.is_dir() else Video(path)
        self.images = list_frames(path) if self.video is None else []
        if self.images and reading.channels:
            self.images = list(map(Path, one_per_image(map(str, self.images), reading)))
        self.rate = FOLDER_RATE if self.video is None else self.video.rate
        duplicates = len(self.images) - len({image.stem for image in self.images})
        if duplicates:
            raise ValueError(
                f"{duplicates} of the frames in {path} have the same name as another except for the suffix"
            )

    def __len__(self) -> int:
        """The number of frames, 0 if the video does not state it."""
        return len(self.images) if self.video is None else self.video.length

    def __iter__(self) -> Iterator[Picture]:
        yield from self.video or (read_image(image, reading=self.reading) for image in self.images)

    def name(self, number: int) -> str:
        """Return the stem of a frame's outputs."""
        return self.images[number].stem if self.video is None else f"{number:05d}"
