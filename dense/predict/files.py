"""Predictions of many images and videos, written to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dense.console import progress
from dense.data.image import ImageError, read_image
from dense.media.video import Video, VideoError, VideoWriter
from dense.predict.predictor import Predictor


def predict_files(
    predictor: Predictor,
    images: Sequence[tuple[Path, Path]],
    videos: Sequence[Path],
    output: Path,
    overlays: bool = True,
) -> list[str]:
    """Save the predictions of images (path, stem in the folder) and videos; return one message per unreadable one."""
    failed = []
    for path, stem in progress(images, "images"):
        try:
            image = read_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        predictor(image).save(output / stem, image if overlays else None)
    for path in videos:
        try:
            predict_video(predictor, path, output)
        except VideoError as error:
            failed.append(str(error))
    return failed


def predict_video(predictor: Predictor, path: Path, output: Path) -> Path:
    """Write OUTPUT/NAME_predicted.mp4, the video with its predictions in colour."""
    video = Video(path)
    target = output / f"{path.stem}_predicted.mp4"
    with VideoWriter(target, video.rate) as writer:
        for frame in progress(video, path.name, video.length or None):
            writer.add(predictor(frame).overlay(frame))
    return target
