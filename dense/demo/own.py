"""The report of anybody's images or of a video: all that needs no labels."""

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
from dense.demo.looking import WORDS, framed, masks, rows_of
from dense.demo.report import Command, Gallery, Part, shell
from dense.demo.verbs import timed
from dense.discover import MaskCut, default_source, track, tracking, tracking_source
from dense.discover.run_tracking import draw_objects
from dense.discover.writing import full_size, write_index
from dense.media.draw import Picture
from dense.media.inputs import resize_for_backbone
from dense.media.video import EXTENSIONS, Video

FRAMES = 48  # of a video that are tracked


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def own_images(
    path: Path, backbone: Backbone, shown: int, shorter: int, weights: Sequence[str], folder: Path
) -> list[Part]:
    """Parts about an image, a folder of images or a video.

    shown: how many of them. shorter: pixels of the shorter side that the backbone sees. weights: the options that name the
    backbone, for the commands.
    """
    video = is_video(path)
    with timed("Looking") as part:
        images, failed = frames_of(path, shown) if video else images_of(path, shown, folder)
        rows = rows_of(backbone, images, shorter, default_source(backbone.spec))
        words = WORDS + (f" Not read: {'; '.join(failed)}." if failed else "")
        part.galleries = [Gallery(path.resolve().name, words, rows)]
        part.own = [
            Command("Masks of all of them:", shell(["discover", str(path), *weights, "--method", "tokencut", "--output", str(folder / "found")])),
        ]  # fmt: skip
        if not video:
            maps = ["features", str(path), *weights, "--output", str(folder / "features"), "--format", "none", "--pca"]
            part.own.append(Command("Features as colours:", shell(maps)))
    return [part, followed(path, backbone, shorter, weights, folder)] if video else [part]


def images_of(path: Path, most: int, report: Path) -> tuple[list[Picture], list[str]]:
    """Images spread evenly over a folder, but not those of the report in it, and what could not be read, in words."""
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


def frames_of(path: Path, most: int) -> tuple[list[Picture], list[str]]:
    """Frames spread evenly over a video."""
    video = Video(path)
    step = max(1, video.length // most)
    return list(islice(islice(iter(video), 0, None, step), most)), []


def followed(path: Path, backbone: Backbone, shorter: int, weights: Sequence[str], folder: Path) -> Part:
    """What MaskCut finds in the first frame, followed through the video; FOLDER/first.png is its mask."""
    with timed("Tracking") as part:
        video = Video(path)
        frames = list(islice(iter(video), FRAMES))
        mask = first_mask(backbone, frames[0], shorter)
        if not mask.any():
            part.galleries = [Gallery("Tracking", "MaskCut found nothing in the first frame to follow.", [])]
            return part
        write_index(folder / "first.png", mask, int(mask.max()) + 1, background=True)
        how = tracking("v1", backbone.spec.patch, size=shorter)
        labels = track(backbone, frames, mask, source=tracking_source(backbone.spec), **asdict(how))
        images = [
            draw_objects(frame, numbers.cpu().numpy())
            for frame, numbers in zip(frames, progress(labels, "tracking", len(frames)), strict=True)
        ]
        chosen = np.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int)
        cells = {f"frame {i}": framed(images[i]) for i in chosen}
        items = list(cells.items())
        part.galleries = [
            Gallery(
                "Tracking",
                f"What MaskCut finds in the first frame, followed through {len(frames)} frames by the cosines of patches.",
                [dict(items[i : i + 4]) for i in range(0, len(items), 4)],
            )
        ]
        line = ["track", str(path), "--mask", str(folder / "first.png"), *weights, "--output", str(folder / "tracked")]
        part.own = [Command("All of the video, from a mask of yours or from this one:", shell(line))]
    return part


def first_mask(backbone: Backbone, frame: Picture, shorter: int) -> NDArray[np.uint8]:
    """Numbers of objects (H, W), 0 for none."""
    one = resize_for_backbone(frame, Path(), shorter, backbone.spec.patch)
    with torch.inference_mode():
        found = masks(backbone, one, MaskCut(), default_source(backbone.spec))
    return full_size(found, 0, one, "guided").labels[0].cpu().numpy()
