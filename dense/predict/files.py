"""Predictions of many images and videos, written to a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.console import progress, say
from dense.data.image import ImageError, read_image
from dense.files import write
from dense.media.video import Video, VideoError, VideoWriter
from dense.predict.predictions import Anomaly
from dense.predict.predictor import Predictor


def predict_files(
    predictor: Predictor,
    images: Sequence[tuple[Path, Path]],
    videos: Sequence[Path],
    output: Path,
    overlays: bool = True,
) -> list[str]:
    """Save the predictions of images (path, stem in the folder) and videos; return one message per unreadable one.

    Scores of anomalies are also written as a table, scores.csv, the highest first.
    """
    failed = []
    scores: list[dict[str, Any]] = []
    for path, stem in progress(images, "images"):
        try:
            image = read_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        prediction = predictor(image)
        prediction.save(output / stem, image if overlays else None)
        if isinstance(prediction, Anomaly):
            scores.append({"image": str(path), **prediction.row()})
    if scores:
        write_scores(output / "scores.csv", scores)
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


def write_scores(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write scores of anomalies as a table, the highest first, and report how many are above the threshold."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: -row["score"]))
    write(path, text.getvalue())
    above, threshold = sum(bool(row["anomalous"]) for row in rows), rows[0]["threshold"]
    if threshold is None:
        say(f"the model has no threshold, since it was fitted to too few good images; {path} ranks the images")
    else:
        say(f"{above} of {len(rows)} images are above the threshold {threshold:.4f}; {path} ranks them")
