"""Reading and writing of video files, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

EXTENSIONS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


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
    """Writes frames to an .mp4 file, which is complete after `close`."""

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self.rate = Path(path), rate
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Write a frame (H, W, 3) RGB; odd sides are padded by repetition, since the codec needs even ones."""
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write {self.path}; choose another --output")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
