"""Images and videos among the files and folders that a user names, and the frames of one video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dense.data.image import list_images, read_image
from dense.data.video import list_frames
from dense.media.draw import Picture
from dense.media.video import EXTENSIONS, Video

FOLDER_RATE = 24.0  # frames per second of a folder of frames, as in DAVIS


def sort_inputs(inputs: Iterable[str], without: Path | None = None) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return the images, each with the stem of its outputs, and the videos; each file once.

    Folders are searched recursively. Files inside the folder `without`, where outputs are written, are left out.
    """
    images: dict[Path, Path] = {}
    videos: dict[Path, Path] = {}
    for item in map(Path, inputs):
        if item.suffix.lower() in EXTENSIONS and not item.is_dir():
            if not item.is_file():
                raise FileNotFoundError(f"no such video: {item}")
            videos[item] = Path(item.stem)
            continue
        inside = [p for p in item.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()] if item.is_dir() else []
        videos |= {p: Path(p.stem) for p in sorted(inside) if not _is_within(p, without)}
        root = item if item.is_dir() else item.parent
        try:
            found = list_images(item)
        except FileNotFoundError:
            if not inside:
                raise
            continue
        images |= {p: p.relative_to(root).with_suffix("") for p in found if not _is_within(p, without)}
    for files in (images, videos):
        owners: dict[Path, Path] = {}
        for path, stem in files.items():
            if stem in owners:
                raise ValueError(
                    f"{owners[stem]} and {path} would write the same prediction, {stem}; predict them apart"
                )
            owners[stem] = path
    return list(images.items()), list(videos)


def _is_within(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


class Frames:
    """The frames of a video file or of a folder of images, read one by one, with a name for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = None if path.is_dir() else Video(path)
        self.images = list_frames(path) if self.video is None else []
        self.rate = FOLDER_RATE if self.video is None else self.video.rate
        duplicates = len(self.images) - len({image.stem for image in self.images})
        if duplicates:
            raise ValueError(f"{duplicates} of the frames in {path} have the name of another, except for the ending")

    def __len__(self) -> int:
        """The number of frames, 0 if the video does not state it."""
        return len(self.images) if self.video is None else self.video.length

    def __iter__(self) -> Iterator[Picture]:
        yield from self.video or map(read_image, self.images)

    def name(self, number: int) -> str:
        """Return the stem of a frame's outputs."""
        return self.images[number].stem if self.video is None else f"{number:05d}"
