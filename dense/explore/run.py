"""`dense.explore`: images, features and predictions in one HTML page that needs no network and no server."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.backbone.at_hand import at_hand
from dense.console import progress, say
from dense.data.image import ImageError, read_image
from dense.data.labelled.sample import DataError, Labelled
from dense.data.levels import Reading
from dense.discover import PCA
from dense.discover.methods import source_of
from dense.explore.encode import Encoded, EncodedAttention, cosine_error, directions, encode
from dense.explore.judge import Shown, judge
from dense.explore.look import sample as take
from dense.files import write
from dense.media.draw import Picture, fit, heat, palette
from dense.media.html import data_url
from dense.media.inputs import resize_for_backbone, sort_inputs, stack_normalised
from dense.media.video import Video, VideoError
from dense.predict import Predictor

SIZE, MOST = 320, 100  # shorter side of the backbone's input; images of a page
ATTENTION = 4096  # patches up to which attention is shown
THUMBNAIL = 320  # longer side in pixels
LEAST_FRAMES = 4  # of a video, however many images there are
HERE = Path(__file__).parent
GENERATOR = b'<meta name="generator" content="dense explore">'  # of page.html


def explore(
    images: Any,
    output: str | Path,
    *,
    model: Predictor | None = None,
    backbone: str | Path | Backbone | None = None,
    weights: str | Path | None = None,
    download: bool = False,
    size: int = SIZE,
    most: int = MOST,
    attention: bool = True,
) -> Page:
    """Write an HTML page on which the features of images can be explored; return what is in it.

        dense.explore("IMAGES", "page.html")
        dense.explore("IMAGES", "page.html", model=dense.load("runs/mine/model"))

    Args:
        images: images, videos or folders of both, or labelled images (`open_labelled`), whose ground truth is shown.
        output: the file to write; of the files that are there, only such pages are replaced.
        model: its predictions are shown, with their uncertainty and, with ground truth, their errors, worst first.
        backbone: whose features are shown: a backbone, a name or a saved directory; if left out the model's, or the
            best one at hand.
        weights: of a name: "timm", a file or a directory.
        download: download DINOv2-S if no published backbone is at hand.
        size: shorter side of the backbone's input in pixels; 0 for the images' own.
        most: images, evenly spaced among those that there are; frames of videos fill what images leave.
        attention: also write the attention of the last block.
    """
    check_page(Path(output))
    if backbone is None and model is not None:
        backbone = model.model.backbone
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(*at_hand(backbone, weights, download), frozen=True)  # type: ignore[arg-type]
    reading = Reading.of_spec(backbone.spec) if model is None else model.inference.reading
    page = Page(backbone, model, size, attention)
    source = images if hasattr(images, "read") else _Files(images, most, page.unreadable, reading)
    chosen = take(range(len(source)), most)
    for index in progress(chosen, "images"):
        try:
            sample = source.read(index)
            if sample.depth is not None and source.depth_kind == "inverse_relative":
                sample = replace(sample, depth=1 / sample.depth)
            page.add(sample)
        except (ImageError, VideoError, DataError) as error:
            page.unreadable.append(str(error))
    if not page.images:
        raise ValueError(f"none of {len(chosen)} images could be read:\n  " + "\n  ".join(page.unreadable[:20]))
    write(output, page.html(len(source)))
    return page


def check_page(path: Path) -> None:
    """Raise for a file that is not a page of `explore`, which would be replaced."""
    if path.exists() and not (path.is_file() and GENERATOR in path.read_bytes()[:1000]):
        raise ValueError(f"{path} exists and is not a page of dense explore; choose another --output")


class _Files:
    """Images and evenly spaced frames of videos, without ground truth. Errors of videos are added to `unreadable`."""

    depth_kind = None

    def __init__(self, inputs: Any, most: int, unreadable: list[str], reading: Reading) -> None:
        self.reading = reading
        given = [inputs] if isinstance(inputs, str | Path) else inputs
        images, videos = sort_inputs(given, apart=False, reading=reading)
        self.items: list[tuple[Path, Video | None, int]] = [(path, None, 0) for path, _ in images]
        share = max(LEAST_FRAMES, (most - len(images)) // max(1, len(videos)))
        for path in videos:
            try:
                video = Video(path)
            except VideoError as error:
                unreadable.append(str(error))
                continue
            numbers = video.spread(share)
            say(f"{path}: {len(numbers)} of {video.length or 'its'} frames, evenly spaced")
            self.items += [(path, video, number) for number in numbers]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Labelled:
        path, video, number = self.items[index]
        if video is None:
            return Labelled(read_image(path, reading=self.reading), None, None, str(path))
        return Labelled(video.frame(number), None, None, f"{path} {video.clock(number)}")


@dataclass
class Page:
    """The images of a page and what is shown of them."""

    backbone: Backbone
    model: Predictor | None = None
    size: int = SIZE
    with_attention: bool = True
    images: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # error messages
    features: list[Tensor] = field(default_factory=list)  # each C, h, w
    cosine_error: tuple[float, float] = (0.0, 0.0)

    @torch.inference_mode()
    def add(self, sample: Labelled) -> None:
        """Add an image with its features and, with a model, what is predicted."""
        spec = self.backbone.spec
        image = resize_for_backbone(sample.image, Path(sample.name), self.size, spec.patch)
        source = source_of(spec, "similarity")
        pixels = stack_normalised([image], self.backbone)
        grown = pixels.shape[-2] * pixels.shape[-1]  # attention grows with its square
        wanted = self.with_attention and grown <= ATTENTION * spec.patch**2
        features, attention = source.with_attention(self.backbone, pixels, patches=wanted)
        grid = (features.shape[-2], features.shape[-1])
        self.features.append(features[0].half().cpu())
        kept = EncodedAttention.of(attention[0].cpu(), grid) if wanted and attention is not None else None
        shown = Shown() if self.model is None else judge(self.model, sample)
        self.images.append({
            "name": sample.name, "height": sample.image.shape[0], "width": sample.image.shape[1], "grid": grid,
            "thumbnail": data_url(thumbnail(sample.image)), "attention": kept and kept.data(),
            "layers": {name: data_url(thumbnail(picture)) for name, picture in shown.layers.items()},
            "caption": shown.caption, "badness": shown.badness,
        })  # fmt: skip

    def html(self, of: int) -> str:
        """Return the page; of: the number of images from which these are taken."""
        rotation = directions(self.features)
        encoded = [encode(one, rotation) for one in self.features]
        self.cosine_error = cosine_error(self.features, encoded)
        maps = [on_grid(one, image["grid"]) for one, image in zip(encoded, self.images, strict=True)]
        for image, one, own in zip(self.images, encoded, maps, strict=True):
            image |= {"features": one.data(), "pca": described(PCA.fit([own]))}
        if self.model is not None:
            self.images.sort(key=lambda image: -image["badness"])
        for image, name in zip(self.images, short([image["name"] for image in self.images]), strict=True):
            image["name"] = name
        classes = () if self.model is None else self.model.classes or ()
        colours = palette(len(classes) + 1).tolist()
        content = {
            "lead": self.lead(of), "about": self.about(), "legend": list(zip(classes, colours, strict=False)),
            "images": self.images, "pca": described(PCA.fit(maps)), "palette": palette(12).tolist(),
            "heat": heat(np.linspace(0, 1, 256)[None])[0].tolist(),
        }  # fmt: skip
        parts = {
            "title": html.escape(self.title()),
            "style": (HERE / "page.css").read_text(),
            "script": (HERE / "page.js").read_text(),
            "data": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),  # nothing ends the script
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], (HERE / "page.html").read_text())

    def title(self) -> str:
        """Return what is shown, by the name with which model or backbone were opened."""
        shown = self.backbone if self.model is None else self.model.model
        name = shown.title or self.backbone.spec.name
        return f"{'Features' if self.model is None else 'Predictions and features'} of {name}"

    def lead(self, of: int) -> str:
        """Return what the page shows, in two sentences."""
        count = f"{len(self.images)} images" + (f" of {of}" if of > len(self.images) else "")
        words = f"{count}. Click a patch, and every image shows what resembles it."
        failed = f" {len(self.unreadable)} could not be read." if self.unreadable else ""
        return ("Worst images first. " if self.model else "") + words + failed

    def about(self) -> str:
        """Return how exact the numbers of the page are."""
        mean, most = self.cosine_error
        text = (
            f"Features are rounded to fit in the page: beside the raw ones, cosines differ by {mean:.3f} on average, "
            f"and 99 % of them by less than {most:.3f}. Similarity is the cosine with the most similar point, minus "
            "that with the most similar point to avoid."
        )
        if any(image["attention"] for image in self.images):
            text += " Attention is of the last block, on coarse queries and of rank 8 in its logarithm."
        return text


def short(names: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them lie in."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return [str(Path(*one[shared:])) for one in parts]


def thumbnail(picture: Picture) -> Picture:
    """Return a picture of at most `THUMBNAIL` pixels a side."""
    return picture if max(picture.shape[:2]) <= THUMBNAIL else fit(picture, THUMBNAIL)


def on_grid(encoded: Encoded, grid: tuple[int, int]) -> Tensor:
    """Return what a reader of the page gets, as a map (1, D, h, w)."""
    return encoded.values.T.unflatten(1, grid)[None]


def described(pca: PCA) -> dict[str, Any]:
    """Return a PCA as plain data."""
    tensors = {"mean": pca.mean, "directions": pca.directions.T, "low": pca.low, "high": pca.high}
    return {name: np.round(tensor.numpy().astype(np.float64), 5).tolist() for name, tensor in tensors.items()}
