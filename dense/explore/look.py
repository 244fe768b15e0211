"""What a backbone sees in an image, on one sheet: PCA colours, class attention, objects, regions and similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.backbone.at_hand import at_hand
from dense.console import warn
from dense.data.image import read_image, spaced
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.discover import PCA, KMeans, MaskCut, Prediction, TokenCut, default_source, feature_at, similarity
from dense.discover.attention import middle
from dense.discover.methods import suited
from dense.discover.source import centred
from dense.discover.writing import draw_prediction, full_size, similarity_picture
from dense.media.draw import Picture, captioned, draw_cross, enlarge, fit, heat, sheet, to_picture
from dense.media.inputs import SizedImage, resize_for_backbone, stack_normalised
from dense.media.video import Video, is_video
from dense.predict.predictor import Source, as_array

SIZE = 320  # shorter side of the backbone's input
SIDE, WORDS = 480, 24  # longer side of a cell, and the height of its caption, in pixels
FRAMES = 4  # of a video
SIMILARITY = "similarity to the point"
T = TypeVar("T")
Point = tuple[float, float]  # x, y in pixels


def look(
    photo: Source,
    backbone: str | Path | Backbone | None = None,
    *,
    weights: str | Path | None = None,
    download: bool = False,
    point: Point | None = None,
    size: int = SIZE,
) -> Image.Image:
    """Return a sheet of an image or a video beside what a backbone sees in it, as `dense look` writes it.

        dense.look("photo.jpg").show()

    Args:
        photo: a file, an array (H, W, 3) of uint8 RGB or a PIL image; or a video, of which four frames are shown.
        backbone: a backbone, a name or a saved directory; the best one at hand if left out.
        weights: of a name: "timm", a file or a directory.
        download: download DINOv2-S if no published backbone is at hand.
        point: x and y of a pixel; adds the cosine similarity of every patch with the one there.
        size: shorter side of the backbone's input in pixels; 0 for the image's own.
    """
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(*at_hand(backbone, weights, download), frozen=True)  # type: ignore[arg-type]
    reading = Reading.of_spec(backbone.spec)
    pictures: Sequence[Source] = [photo]
    names = ["image"]
    if isinstance(photo, str | Path):
        pictures, names = pictures_of(Path(photo), reading=reading)
    images = [as_array(one, backbone.spec, reading) for one in pictures]
    return Image.fromarray(Looking(backbone, point, size).sheet(images, names))


class Looking:
    """Sheets by one backbone. The point is in the first image; in later ones, similarity is to the patch there."""

    def __init__(self, backbone: Backbone, point: Point | None = None, size: int = SIZE) -> None:
        self.backbone, self.point, self.size = backbone, point, size
        self.query: Tensor | None = None  # C

    def sheet(self, images: Sequence[Picture], names: Sequence[str] = ("image",)) -> Picture:
        """Return one sheet of an image (H, W, 3) in two rows, or of several of one size in a row each."""
        rows = [[captioned(cell, words, WORDS) for words, cell in row.items()] for row in self.rows(images, names)]
        if len(rows) == 1:
            half = -(-len(rows[0]) // 2)
            rows = [rows[0][:half], rows[0][half:]]
        return sheet(rows, gap=8)

    @torch.inference_mode()
    def rows(self, images: Sequence[Picture], names: Sequence[str] = ("image",)) -> list[dict[str, Picture]]:
        """Return captioned pictures of images (H, W, 3), a row each; the first is the image, with its name.

        The images share the colours of PCA.
        """
        patch = self.backbone.spec.patch
        inputs = [
            replace(resize_for_backbone(image, Path(name), self.size, patch), original=fit(image, SIDE))
            for image, name in zip(images, names, strict=True)
        ]
        source = default_source(self.backbone.spec)
        uncentred = replace(source, centre=False)
        pixels = [stack_normalised([one], self.backbone) for one in inputs]
        read = [uncentred.with_attention(self.backbone, one, patches=False) for one in pixels]
        tokens = [one for one, _ in read]  # each 1, C, h, w
        features = [centred(one) for one in tokens] if source.centre else tokens
        asked = self.point if self.query is None else None
        if asked is not None:
            self.query = feature_at(tokens[0][0], asked, images[0].shape[:2])
        colours = PCA.fit(features)
        rows = []
        for i, (one, name) in enumerate(zip(inputs, names, strict=True)):
            cells = {name: one.original} | self._views(one, tokens[i], features[i], read[i][1], colours)
            if asked is not None and i == 0:
                (height, width), (rows_of, columns) = one.original.shape[:2], images[0].shape[:2]
                x, y = asked[0] * width / columns, asked[1] * height / rows_of
                cells[SIMILARITY] = draw_cross(cells[SIMILARITY], x, y, 24)
            rows.append(cells)
        return rows

    def _views(
        self, image: SizedImage, tokens: Tensor, features: Tensor, attention: Tensor | None, colours: PCA
    ) -> dict[str, Picture]:
        """Return captioned pictures of one image from its tokens (1, C, h, w), with and without centring."""
        size, spec = image.original.shape[:2], self.backbone.spec

        def drawn(prediction: Prediction) -> Picture:
            return draw_prediction(image.original, full_size(prediction, 0, image, "guided"))

        source = default_source(spec, cuts=True)
        cut_from = features if source.centre else tokens
        views = {"features, PCA": to_picture(colours(features, size=size)[0])}
        attended = middle(1, tokens.shape[-2:]).to(tokens)  # type: ignore[arg-type]
        if attention is not None and spec.class_token:
            attended = attention[:, :, 0].mean(1).unflatten(-1, tokens.shape[-2:])
            views["class attention"] = enlarge(heat(attended[0].cpu()), size)
        for name, method in {"object, TokenCut": TokenCut(), "objects, MaskCut": MaskCut()}.items():
            views[name] = drawn(suited(method, spec, source)(cut_from, attended))
        views["regions, k-means"] = drawn(KMeans()(features))
        if self.query is not None:
            views[SIMILARITY] = similarity_picture(image.original, similarity(tokens, self.query)[0])
        return views


def pictures_of(path: Path, frames: int = FRAMES, reading: Reading = PHOTOGRAPHS) -> tuple[list[Picture], list[str]]:
    """Return an image, or evenly spaced frames of a video, and their names."""
    if not is_video(path):
        return [read_image(path, reading=reading)], [path.name]
    video = Video(path)
    numbers = video.spread(frames)
    return [video.frame(number) for number in numbers], [video.clock(number) for number in numbers]


def sample(items: Sequence[T], most: int, option: str = "--most") -> list[T]:
    """Return at most so many items, evenly spaced, and report how many are left out."""
    if len(items) > most:
        warn(f"{len(items)} images, of which {most} are taken, evenly spaced; {option} takes more")
    return spaced(items, most)
