"""Reading and writing of video files, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.files import replacing

EXTENSIONS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


def is_video(path: Path) -> bool:
    """Return whether a path has the extension of a video."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


class VideoError(ValueError):
    """Raised for a video that cannot be read."""


class Video:
    """The frames (H, W, 3) RGB of a video, its rate, and the approximate number of frames, 0 if unknown."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such video: {self.path}")
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise VideoError(f"{self.path} is not a video that OpenCV can read; convert it to .mp4")
        self.rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()

    def spread(self, count: int) -> list[int]:
        """Return the numbers of at most so many frames, evenly spaced; the first ones if the length is unknown."""
        count = min(count, self.length or count)
        return [(2 * i + 1) * self.length // (2 * count) if self.length else i for i in range(count)]

    def clock(self, number: int) -> str:
        """Return the time of a frame."""
        return f"{number / self.rate:.1f} s"

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Return one frame."""
        capture = cv2.VideoCapture(str(self.path))
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        found, frame = capture.read()
        capture.release()
        if not found:
            raise VideoError(f"frame {number} of {self.path} cannot be read")
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        capture, count = cv2.VideoCapture(str(self.path)), 0
        try:
            while True:
                found, frame = capture.read()
                if not found:
                    break
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
                count += 1
        finally:
            capture.release()
        if not count:
            raise VideoError(f"{self.path} holds no frame that can be read")


class VideoWriter:
    """Writes frames to an .mp4 file, which gets its name at `close`, or at the end of a ``with`` without an error."""

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self.rate = Path(path), rate
        self._writer: cv2.VideoWriter | None = None
        self._file = replacing(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if error is None and not cv2.VideoCapture(str(self._partial)).isOpened():  # its index is written last
                error = OSError(f"cannot write {self.path}: the video is incomplete; is the disk full?")
            self._file.__exit__(type(error) if error else None, error, trace)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Write a frame (H, W, 3) RGB; odd sides are padded by repetition, since the codec needs even ones."""
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        if self._writer is None:
            self._partial = self._file.__enter__()
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write {self.path}; choose another --output")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self.__exit__(None, None, None)
