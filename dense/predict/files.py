"""Predictions of many images and videos, written to a folder."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.console import progress, say
from dense.data.image import ImageError
from dense.data.large import Windows
from dense.data.values import files_of
from dense.files import RunFolder, write
from dense.items import Items, version
from dense.media.video import Video, VideoError, VideoWriter
from dense.predict.objects import Coco, Instances, Panoptic
from dense.predict.predictions import Anomaly
from dense.predict.predictor import Predictor


def predict_files(
    predictor: Predictor,
    images: Sequence[tuple[Path, Path]],
    videos: Sequence[Path],
    output: Path,
    overlays: bool = True,
    run: RunFolder | None = None,
) -> list[str] | None:
    """Save the predictions of images (path, stem in the folder) and videos; return one message per unreadable one.

    Scores of anomalies are also written as a table, scores.csv, the highest first; objects of all images as one file of
    COCO's format, instances.json or panoptic.json. Several processes of a run share the images and videos, and all but
    the last of them return None.
    """
    paths = [*(path for path, _ in images), *videos]
    names = [*(str(stem) for _, stem in images), *(f"video {path.stem}" for path in videos)]
    reading = predictor.inference.reading
    items = Items(names, run, [version(*files_of(path, reading)) for path in paths])
    pictures = [index for index in items.todo if index < len(images)]
    for index in progress(pictures, "images"):
        items.done(index, _predict_image(predictor, *images[index], output, overlays))
    for index in items.todo[len(pictures) :]:
        try:
            predict_video(predictor, paths[index], output)
            items.done(index)
        except VideoError as error:
            items.done(index, {"failed": str(error)})
    with items.joining() as found:
        if found is None:
            return None
        facts = [one for one in found if one]
        if scores := [one["score"] for one in facts if "score" in one]:
            write_scores(output / "scores.csv", scores, predictor.unjudged)
        objects = Coco()
        for one in facts:
            if "objects" in one:
                objects.extend(one["kind"], one["objects"])
        if objects.content["images"]:
            objects.write(output / f"{objects.name}.json")
            rows, count = objects.content["annotations"], len(objects.content["images"])
            if objects.name == "instances":
                number, option = len(rows), "--score"
                kept = f"objects with a score of at least {predictor.score:g}"
            else:
                number = sum(len(row["segments_info"]) for row in rows)
                option = "--mask-threshold or --overlap-threshold"
                kept = f"segments with a probability above {predictor.thresholds['mask_threshold']:g}"
            less = "" if number else f"; a smaller {option} keeps less certain ones"
            say(f"{number} {kept} in {count} images{less}")
        for one in facts:
            if "damaged" in one:
                print(
                    f"{one['damaged']['image']}: {one['damaged']['tiles']} tiles are damaged; their pixels are masked, "
                    "and listed in the file NAME_damaged.json",
                    file=sys.stderr,
                )
        return [one["failed"] for one in facts if "failed" in one]


def _predict_image(predictor: Predictor, path: Path, stem: Path, output: Path, overlays: bool) -> dict[str, Any]:
    """Save the prediction of an image, and return what the files of all images need of it."""
    try:
        image = predictor.opened(path)
        if isinstance(image, Windows):
            predictor.write(image, output / stem, overlays)
    except ImageError as error:
        return {"failed": str(error)}
    if isinstance(image, Windows):
        facts: dict[str, Any] = {}
        if image.damaged:
            facts["damaged"] = {"image": str(path), "tiles": len(image.damaged)}
        if predictor.objects:
            kind = "panoptic" if predictor.model.task == "panoptic" else "instances"
            content = json.loads(Path(f"{output / stem}_{kind}.json").read_text())
            content["images"][0]["file_name"] = f"{stem}{path.suffix}"
            if kind == "panoptic":
                content["annotations"][0]["file_name"] = f"{stem}_panoptic.tif"
            facts |= {"kind": kind, "objects": content}
        return facts
    prediction, picture = predictor(image), image if overlays else None
    if isinstance(prediction, Instances | Panoptic):
        prediction.save(output / stem, picture, f"{stem.name}{path.suffix}")
        objects = Coco()
        objects.add(f"{stem}{path.suffix}", prediction)
        return {"kind": objects.name, "objects": objects.content}
    prediction.save(output / stem, picture)
    if isinstance(prediction, Anomaly):
        return {"score": {"image": str(path), **prediction.row()}}
    return {}


def predict_video(predictor: Predictor, path: Path, output: Path) -> Path:
    """Write OUTPUT/NAME_predicted.mp4, the video with its predictions in colour."""
    video = Video(path)
    target = output / f"{path.stem}_predicted.mp4"
    with VideoWriter(target, video.rate) as writer:
        for frame in progress(video, path.name, video.length or None):
            writer.add(predictor(frame).overlay(frame))
    return target


def write_scores(path: Path, rows: Sequence[dict[str, Any]], unjudged: str) -> None:
    """Write scores of anomalies as a table, the highest first, and report how many are above the threshold.

    unjudged: why there is no threshold.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: -row["score"]))
    write(path, text.getvalue())
    above, threshold = sum(bool(row["anomalous"]) for row in rows), rows[0]["threshold"]
    if threshold is None:
        say(f"{path} ranks the images; threshold: {unjudged}")
    else:
        say(f"{above} of {len(rows)} images are above the threshold {threshold:.4f}; {path} ranks them")
