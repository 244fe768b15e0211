"""Section: photographs, or a user's images or video: what a backbone sees without labels, and a page to touch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dense.backbone import Backbone
from dense.console import progress
from dense.data.image import ImageError, list_images, spaced
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.scenes import Scenes
from dense.demo.report import Command, Gallery, Section, section, shell, thumbnail
from dense.discover import MaskCut, Objects, on_grid, track, tracking, tracking_source
from dense.discover.run_tracking import draw_objects
from dense.discover.writing import full_size, index_colours
from dense.explore.look import Looking, pictures_of
from dense.media.draw import Picture, write_index
from dense.media.inputs import resize_for_backbone, stack_normalised
from dense.media.video import Video, VideoError, is_video

CREDITS = {  # of the photographs in scikit-image
    "astronaut.png": "Eileen Collins, NASA, public domain",
    "chelsea.png": "Stefan van der Walt, CC0",
    "coffee.png": "Rachel Michetti, CC0",
    "rocket.jpg": "SpaceX, public domain",
    "motorcycle_left.png": "D. Scharstein et al., Middlebury Stereo 2014, no licence named",
}
ABOUT = (
    "What a backbone sees without labels. PCA: the first three principal components of the features as colours. Class "
    "attention: of the class token to the patches. TokenCut: one side of the normalised cut of the graph of patches. "
    "MaskCut: several successive cuts. Regions: k-means of the features."
)
FRAMES = 48  # most frames of a video that are tracked


def installed() -> list[Path]:
    """Return the photographs in the package scikit-image, which is not imported; none without it."""
    found = find_spec("skimage")
    folders = [Path(place, "data") for place in (found and found.submodule_search_locations) or ()]
    return [path for folder in folders for name in CREDITS if (path := folder / name).is_file()]


def scenes(folder: Path, count: int, seed: int) -> list[Path]:
    """Write embedded scenes to a folder and return their files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"scene{number}.png" for number in range(count)]
    found = Scenes("test", count, 320, seed=seed)
    for number, path in enumerate(paths):
        Image.fromarray(found[number].image).save(path)
    return paths


def evenly(path: Path, most: int, output: Path, reading: Reading = PHOTOGRAPHS) -> list[Path]:
    """Return a video or an image, or images evenly spaced in a folder without those of the report; none raises."""
    if is_video(path):
        return [Video(path).path]
    return spaced(list_images(path, without=output, reading=reading), most)


def photographs(
    paths: Sequence[Path], title: str, words: str, backbone: Backbone, shown: int, size: int, named: Sequence[str],
    folder: Path, given: str = "IMAGES", reading: Reading = PHOTOGRAPHS,
) -> Section:  # fmt: skip
    """Return rows of captioned pictures, and the page of `dense explore`.

    shown: frames of a video. size: shorter side of the backbone's input. named: options that name the backbone. given:
    what the user named, for the commands. reading: of the images.
    """
    with section("Photographs") as part:
        looking, failed = Looking(backbone, size=size), list[str]()
        rows: list[dict[str, Picture]] = []
        for path in progress(paths, "images"):
            try:
                rows += looking.rows(*pictures_of(path, shown, reading))
            except (ImageError, VideoError) as error:
                failed.append(str(error))
        if not rows:
            raise ValueError(f"none of the images that were tried could be read: {'; '.join(failed[:3])}")
        words += f" Not read: {'; '.join(failed)}." if failed else ""
        rows = [{caption: thumbnail(picture) for caption, picture in row.items()} for row in rows]
        files, sized = [str(path) for path in paths], ["--size", str(size)]
        part.galleries = [Gallery(title, words, rows, "explore.html")]
        part.run(["explore", *files, *named, *sized, "--most", str(len(rows)), "--output", f"{folder}/explore.html"])
        found = ["discover", given, *named, "--method", "tokencut", "--output", f"{folder}/found"]
        maps = ["features", given, *named, "--output", f"{folder}/features", "--format", "none", "--pca"]
        part.own = [Command("Masks of all images:", shell(found)), Command("Features as colours:", shell(maps))]
    return part


def tracked(path: Path, backbone: Backbone, size: int, named: Sequence[str], folder: Path) -> Section:
    """Track the objects that MaskCut finds in the first frame; FOLDER/first.png is their mask."""
    with section("Tracking") as part:
        frames = list(islice(iter(Video(path)), FRAMES))
        first = resize_for_backbone(frames[0], Path(), size, backbone.spec.patch)
        with torch.inference_mode():
            objects = on_grid(backbone, stack_normalised([first], backbone), MaskCut())
        assert isinstance(objects, Objects)
        mask = full_size(objects, 0, first, "guided").labels[0].cpu().numpy()
        if not mask.any():
            part.galleries = [Gallery("Tracking", "MaskCut found no object in the first frame.", [])]
            return part
        write_index(folder / "first.png", mask, index_colours(int(mask.max()) + 1))
        settings = tracking("v1", backbone.spec.patch, size=size)
        labels = track(backbone, frames, mask, source=tracking_source(backbone.spec), **asdict(settings))
        pictures = [
            draw_objects(frame, numbers.cpu().numpy())
            for frame, numbers in zip(frames, progress(labels, "tracking", len(frames)), strict=True)
        ]
        chosen = np.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int)
        cells = [(f"frame {i}", thumbnail(pictures[i])) for i in dict.fromkeys(chosen.tolist())]
        words = f"Objects of MaskCut in the first frame, tracked over {len(frames)} frames by the cosines of patches."
        part.galleries = [Gallery("Tracking", words, [dict(cells[i : i + 4]) for i in range(0, len(cells), 4)])]
        line = ["track", str(path), "--mask", str(folder / "first.png"), *named, "--output", str(folder / "tracked")]
        part.own = [Command("Track the whole video, from this mask or from one of yours:", shell(line))]
    return part
