"""Sections on a user's images or video: everything that needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.console import progress
from dense.data.image import ImageError, list_images, read_image
from dense.demo.discovery import ABOUT, feature_rows, find_objects
from dense.demo.report import Command, Gallery, Section, section, shell, thumbnail
from dense.discover import MaskCut, default_source, track, tracking, tracking_source
from dense.discover.run_tracking import draw_objects
from dense.discover.writing import full_size, index_colours
from dense.media.draw import Picture, write_index
from dense.media.inputs import resize_for_backbone
from dense.media.video import EXTENSIONS, Video

FRAMES = 48  # most frames of a video that are tracked


def is_video(path: Path) -> bool:
    """Return whether a path has the extension of a video."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def check_images(path: Path, output: Path) -> None:
    """Raise if there is no video or image at the path, before anything is written."""
    if is_video(path):
        Video(path)
    else:
        list_images(path, without=output)


def own_images(
    path: Path, backbone: Backbone, shown: int, shorter: int, weights: Sequence[str], folder: Path
) -> list[Section]:
    """Return the sections on an image, a folder of images or a video.

    shown: number of images. shorter: shorter side of the backbone's input in pixels. weights: options that name the
    backbone, for the commands.
    """
    video = is_video(path)
    with section("Features") as part:
        images, failed = (video_frames(path, shown), []) if video else folder_images(path, shown, folder)
        rows = feature_rows(backbone, images, shorter, default_source(backbone.spec))
        words = ABOUT + (f" Not read: {'; '.join(failed)}." if failed else "")
        part.galleries = [Gallery(path.resolve().name, words, rows)]
        masks = ["discover", str(path), *weights, "--method", "tokencut", "--output", str(folder / "found")]
        part.own = [Command("Masks of all images:", shell(masks))]
        if not video:
            maps = ["features", str(path), *weights, "--output", str(folder / "features"), "--format", "none", "--pca"]
            part.own.append(Command("Features as colours:", shell(maps)))
    return [part, tracked(path, backbone, shorter, weights, folder)] if video else [part]


def folder_images(path: Path, most: int, report: Path) -> tuple[list[Picture], list[str]]:
    """Return images evenly spaced in a folder, without those of the report, and the errors of unreadable ones."""
    paths = list_images(path, without=report)
    images, failed = [], []
    for one in paths[:: max(1, len(paths) // most)][:most]:
        try:
            images.append(read_image(one))
        except ImageError as error:
            failed.append(str(error))
    if not images:
        raise ValueError(f"none of the images in {path} that were tried could be read: {'; '.join(failed[:3])}")
    return images, failed


def video_frames(path: Path, most: int) -> list[Picture]:
    """Return evenly spaced frames of a video."""
    video = Video(path)
    step = max(1, video.length // most)
    return list(islice(islice(iter(video), 0, None, step), most))


def tracked(path: Path, backbone: Backbone, shorter: int, weights: Sequence[str], folder: Path) -> Section:
    """Track the objects that MaskCut finds in the first frame; FOLDER/first.png is their mask."""
    with section("Tracking") as part:
        frames = list(islice(iter(Video(path)), FRAMES))
        mask = first_mask(backbone, frames[0], shorter)
        if not mask.any():
            part.galleries = [Gallery("Tracking", "MaskCut found no object in the first frame.", [])]
            return part
        write_index(folder / "first.png", mask, index_colours(int(mask.max()) + 1))
        settings = tracking("v1", backbone.spec.patch, size=shorter)
        labels = track(backbone, frames, mask, source=tracking_source(backbone.spec), **asdict(settings))
        pictures = [
            draw_objects(frame, numbers.cpu().numpy())
            for frame, numbers in zip(frames, progress(labels, "tracking", len(frames)), strict=True)
        ]
        chosen = np.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int)
        cells = [(f"frame {i}", thumbnail(pictures[i])) for i in dict.fromkeys(chosen.tolist())]
        words = f"Objects of MaskCut in the first frame, tracked over {len(frames)} frames by the cosines of patches."
        part.galleries = [Gallery("Tracking", words, [dict(cells[i : i + 4]) for i in range(0, len(cells), 4)])]
        line = ["track", str(path), "--mask", str(folder / "first.png"), *weights, "--output", str(folder / "tracked")]
        part.own = [Command("Track the whole video, from this mask or from one of yours:", shell(line))]
    return part


def first_mask(backbone: Backbone, frame: Picture, shorter: int) -> NDArray[np.uint8]:
    """Return the numbers of the objects in a frame (H, W), 0 for the background."""
    image = resize_for_backbone(frame, Path(), shorter, backbone.spec.patch)
    with torch.inference_mode():
        found = find_objects(backbone, image, MaskCut())
    return full_size(found, 0, image, "guided").labels[0].cpu().numpy()
