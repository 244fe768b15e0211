"""Image retrieval and copy detection: how early a frozen backbone's features rank the images that belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.backbone import Backbone
from dense.console import progress, say, warn
from dense.data.image import ImageError
from dense.data.levels import Reading
from dense.data.loader import init_worker
from dense.data.retrieval import Item, RetrievalSet, open_retrieval, other_images
from dense.evaluate.classification.data import CenterCrop, resized
from dense.evaluate.classification.features import (
    evaluating,
    final_norm,
    statistics,
    to_input,
)
from dense.evaluate.protocol import Protocol, Result
from dense.metrics.retrieval import average_precision, precision_at, ranked
from dense.suggest import did_you_mean

Readout = Literal["class", "average", "gem", "class_gem"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
View = Literal["crop", "longer", "square"]
VIEWS: tuple[View, ...] = get_args(View)
VIEW_OF: dict[str, tuple[View, int]] = {  # layout -> view and size
    "folder": ("crop", 224), "roxford5k": ("longer", 224), "rparis6k": ("longer", 224), "copydays": ("square", 320),
}  # fmt: skip
SCALES = (1.0, 0.5**0.5, 0.5)  # of --multi-scale
MULTI_SCALE_SIZE = 512
POWER = 4.0  # of GeM
PRECISIONS = (1, 5, 10)
PAIRS = 2**22  # of a query and an image, in memory at once


class Fit:
    """Bring an image to the size at which it is described."""

    def __init__(self, view: View, size: int) -> None:
        self.view, self.size = view, size
        self.crop = CenterCrop(round(size * 256 / 224), size)

    def __str__(self) -> str:
        words = {"longer": f"longer side at most {self.size}", "square": f"resized to {self.size}x{self.size}"}
        return str(self.crop) if self.view == "crop" else f"{words[self.view]} bicubic (PIL, antialiased)"

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.view == "crop":
            return self.crop(image)
        height, width = image.shape[:2]
        factor = min(self.size / max(height, width), 1)
        size = (self.size, self.size)
        if self.view == "longer":
            size = (max(round(factor * width), 2), max(round(factor * height), 2))
        return resized(image, size[::-1], "bicubic")


class _Fitted(Dataset[NDArray[np.uint8] | str]):
    """The image as it is described, or the error of one that cannot be read."""

    def __init__(self, items: Sequence[Item], fit: Fit) -> None:
        self.items, self.fit = items, fit

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> NDArray[np.uint8] | str:
        try:
            return self.fit(self.items[index].read())
        except ImageError as error:
            return str(error)


class Descriptor:
    """``descriptor(items, name)``: a unit vector per image (N, D), and the errors of those that cannot be read.

    `scales` are averaged, each an enlargement of the image. Vectors of images that cannot be read are 0.
    """

    def __init__(
        self, backbone: Backbone, readout: Readout, fit: Fit, scales: Sequence[float], batch_size: int, workers: int
    ) -> None:
        self.backbone, self.readout, self.fit, self.scales = backbone, readout, fit, scales
        self.batch_size, self.workers = batch_size, workers

    def __call__(self, items: Sequence[Item], name: str) -> tuple[Tensor, dict[int, str]]:
        images = _Fitted(items, self.fit)
        batches = DataLoader(
            images, self.batch_size, num_workers=self.workers, collate_fn=list, worker_init_fn=init_worker,
            generator=torch.Generator(),
        )  # fmt: skip
        found: Tensor | None = None
        failed, start = {}, 0
        with evaluating(self.backbone):
            for batch in progress(batches, name, len(batches)):
                by_shape = defaultdict(list)
                for place, image in enumerate(batch, start):
                    if isinstance(image, str):
                        failed[place] = image
                    else:
                        by_shape[image.shape].append((place, image))
                for same in by_shape.values():
                    stacked = torch.from_numpy(np.stack([image for _, image in same])).permute(0, 3, 1, 2)
                    vectors = self.describe(stacked)
                    found = vectors.new_zeros(len(items), vectors.shape[1]) if found is None else found
                    found[[place for place, _ in same]] = vectors
                start += len(batch)
        if found is None:
            raise ValueError(
                f"none of the {len(items)} images of the {name} could be read; {next(iter(failed.values()))}"
            )
        if not torch.isfinite(found).all():
            raise ValueError(
                f"features of the {name} are not finite; are the weights those of {self.backbone.spec.name}?"
            )
        return found, failed

    @torch.inference_mode()
    def describe(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D), on the CPU, of uint8 images (B, 3, H, W)."""
        images = to_input(self.backbone, images.to(next(self.backbone.parameters()).device))
        scaled = [
            images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
            for scale in self.scales
        ]
        return F.normalize(torch.stack([self.pool(image) for image in scaled]).mean(0)).cpu()

    def pool(self, images: Tensor) -> Tensor:
        """Return the readout (B, D) of the last layer, after the final norm."""
        layers = (self.backbone.spec.depth - 1,)
        features = self.backbone(images, layers=layers, norm=final_norm(self.backbone))
        patches = features.maps[-1].float()
        if self.readout == "average":
            return patches.mean((-2, -1))
        parts = [features.class_token.float()] if self.readout.startswith("class") else []
        if self.readout.endswith("gem"):
            parts.append(patches.clamp(min=1e-6).pow(POWER).mean((-2, -1)).pow(1 / POWER))
        return torch.cat(parts, dim=1)


class Whitening:
    """PCA of unit vectors (N, D), each component divided by the square root of its variance; unit vectors again.

    Components with less than 1e-5 of the largest variance are left out: with few images they are noise.
    """

    def __init__(self, vectors: Tensor) -> None:
        exact = vectors.double()
        self.mean = exact.mean(0)
        variance, components = torch.linalg.eigh((exact - self.mean).T @ (exact - self.mean) / len(exact))
        kept = variance > 1e-5 * variance[-1]
        if len(vectors) < 2 or variance[-1] <= 1e-12:
            raise ValueError(f"the {len(vectors)} images to whiten with have one feature; expected different images")
        self.matrix = components[:, kept] / variance[kept].sqrt()

    def __call__(self, vectors: Tensor) -> Tensor:
        return F.normalize((vectors.double() - self.mean) @ self.matrix).float()


def measure_retrieval(
    backbone: Backbone, data: str | Path, *, layout: str = "folder", readout: Readout | None = None,
    view: View | None = None, size: int | None = None, multi_scale: bool = False, whiten: str | Path | None = None,
    distractors: str | Path | None = None, query_crop: bool = True, batch_size: int = 64, workers: int = 0,
) -> Result:  # fmt: skip
    """Rank a database by cosine for each query, and measure how early the images that belong to it come.

    Args:
        data, layout, query_crop, distractors: as in `open_retrieval`.
        readout: class, average, gem or class_gem; the class token, or without one the average of patches, if left out.
        view, size: crop (shorter side resized, centre crop), longer (longer side at most `size`) or square; those of
            the published protocol if left out.
        multi_scale: average features of the image, and of it reduced by the square root of 2 and by 2.
        whiten: folder of other images, on which a PCA whitening is learnt.
    """
    reading = Reading.of_spec(backbone.spec)
    opened = open_retrieval(data, layout, query_crop=query_crop, distractors=distractors, reading=reading)
    readout = readout or ("class" if backbone.spec.class_token else "average")
    usual_view, usual_size = VIEW_OF[layout]
    view = view or usual_view
    if size is None:
        size = MULTI_SCALE_SIZE if multi_scale and usual_view == "longer" else usual_size
    for name, value, known in (("readout", readout, READOUTS), ("view", view, VIEWS)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {', '.join(known)}.{did_you_mean(str(value), known)}")
    if readout.startswith("class") and not backbone.spec.class_token:
        raise ValueError(f"readout {readout!r} needs a class token, and {backbone.spec.name} has none; use 'gem'")
    for name, number, least in (
        ("size", size, backbone.spec.patch), ("batch_size", batch_size, 1), ("workers", workers, 0),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name} {number}: expected {least} or more")
    others = () if whiten is None else other_images(whiten, opened, "an image to whiten with")
    scales = SCALES if multi_scale else (1.0,)
    fit = Fit(view, size)
    descriptor = Descriptor(backbone, readout, fit, scales, batch_size, workers)
    white = None
    skipped: dict[str, str] = {}  # path -> what is wrong
    if others:
        learnt, failed = descriptor(others, "images to whiten with")
        white = Whitening(learnt[[i for i in range(len(others)) if i not in failed]])
        if (usable := len(others) - len(failed)) <= len(white.mean):
            warn(
                f"{usable} images to whiten vectors of {len(white.mean)} numbers leave {white.matrix.shape[1]} "
                "components; give more images than numbers"
            )
        skipped |= {others[i].path: message for i, message in failed.items()}
    database, unreadable = descriptor(opened.database, "database")
    if opened.queries == opened.database[: len(opened.queries)]:  # described once
        queries, unusable = database[: len(opened.queries)], unreadable
    else:
        queries, unusable = descriptor(opened.queries, "queries")
    skipped |= {opened.database[i].path: message for i, message in unreadable.items()}
    skipped |= {opened.queries[i].path: message for i, message in unusable.items() if i < len(opened.queries)}
    if white is not None:
        database, queries = white(database), white(queries)
    device = next(backbone.parameters()).device
    numbers, without = scores(opened, queries.to(device), database.to(device), unreadable, unusable)
    protocol = Protocol(
        name="retrieval",
        train="none" if white is None else f"{whiten}, {len(others)} images to whiten with",
        val=f"{layout} {opened.source}, {len(opened.database)} images, {len(opened.queries)} queries",
        view=str(fit),
        resolution=size,
        features=readout,
        norm=final_norm(backbone),
        statistics=statistics(backbone),
        classes=opened.classes,
        settings={
            "similarity": "cosine",
            "scales": [round(scale, 3) for scale in scales],
            "whitening": "none" if white is None else f"{white.matrix.shape[1]} of {len(white.mean)} components",
            "distractors": str(distractors) if distractors else "none",
            "query crop": query_crop if opened.levels != ("",) else "none",
            "average precision": "trapezoids" if opened.trapezoids else "mean of precisions",
            "queries without positives": without,
        },
    )
    one = opened.levels == ("",)
    result = numbers[""] if one else numbers
    return Result(protocol, result, backbone.spec, sorted(skipped.values()), "" if one else table(numbers))


def table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    """A line per level."""
    lines = []
    for level, found in numbers.items():
        words = (f"{name} {value if name == 'queries' else format(value, '.4f')}" for name, value in found.items())
        lines.append(f"{level:<6}  {'  '.join(words)}")
    return "\n".join(lines)


def scores(
    opened: RetrievalSet,
    queries: Tensor,
    database: Tensor,
    unreadable: Collection[int] = (),
    unusable: Collection[int] = (),
) -> tuple[dict[str, Any], dict[str, int] | int]:
    """Return map and precisions by level, and the number of queries that have no positive, which are left out.

    unreadable: places of the database that nothing is known of; unusable: such queries.
    """
    usable = [i for i in range(len(queries)) if i not in unusable]
    step = max(PAIRS // len(database), 1)
    found: dict[str, list[Tensor]] = {level: [] for level in opened.levels}
    for start in range(0, len(usable), step):
        some = usable[start : start + step]
        similarity = queries[some] @ database.T
        for level in opened.levels:
            positive = np.zeros(similarity.shape, bool)
            ignored = np.zeros(similarity.shape, bool)
            ignored[:, list(unreadable)] = True
            for row, query in enumerate(some):
                right, junk = opened.truth(level, query)
                positive[row, right], ignored[row, junk] = True, True
            masks = (torch.from_numpy(mask).to(similarity.device) for mask in (positive, ignored))
            hits = ranked(similarity, *masks)
            columns = [average_precision(hits, opened.trapezoids)]
            columns += [precision_at(hits, k, until_last=opened.trapezoids) for k in PRECISIONS]
            found[level].append(torch.stack(columns, 1).cpu())
    numbers, without = {}, {}
    for level, parts in found.items():
        values = torch.cat(parts) if parts else torch.zeros(0, 1 + len(PRECISIONS))
        kept = values[~values[:, 0].isnan()]
        without[level] = len(values) - len(kept)
        if without[level]:
            where = f" at level {level}" if level else ""
            say(f"{without[level]} of {len(values)} queries have no positive image{where} and are left out")
        if len(kept):
            names = ("map", *(f"precision@{k}" for k in PRECISIONS))
            numbers[level] = dict(zip(names, kept.mean(0).tolist(), strict=True)) | {"queries": len(kept)}
    if not numbers:
        raise ValueError(f"no query of {opened.source} has a positive image in the database; each needs at least one")
    return numbers, without if len(without) > 1 else without[opened.levels[0]]
