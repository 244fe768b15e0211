"""From good images to a model that scores what differs from them: a bank of their patches and a threshold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.console import progress, warn
from dense.data.image import ImageError, list_images, read_image
from dense.data.labelled.sample import DataError
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.transforms import resize_image
from dense.memory.budget import Budget
from dense.model.network import DenseModel, Inference
from heads.anomaly import AnomalyHead
from heads.features import Features, Norm
from heads.layers import to_image_size
from heads.options import check_options
from heads.outputs import Regression

RGB = NDArray[np.uint8]  # H, W, 3
Choice = Literal["random", "coreset"]
JUDGED = 100  # images, evenly spaced, whose scores choose the threshold
SAME = 1e-4  # distance below which patches are the same
ROUNDED = 1e-3  # least distance that half precision tells from none


@torch.inference_mode()
def build_anomaly(
    backbone: Backbone,
    images: str | Path | Sequence[str | Path | RGB],
    *,
    layers: Layers | list[int] | None = "last",
    norm: Norm = True,
    resize: int | tuple[int, int] | None = 448,
    patches: int = 100_000,
    choice: Choice = "random",
    rotations: int = 1,
    foreground: float | None = None,
    quantile: float = 0.95,
    holdout: int = 1,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
) -> DenseModel:
    """Return a model that remembers patches of good images and measures how far those of other images are from them.

    Args:
        backbone: frozen.
        images: good ones: a folder, files or arrays. Files that cannot be read are named and left out.
        layers, norm: of the features; the last block after the final norm is published.
        resize: working size of images here and in prediction: the shorter side, or height and width; None keeps it.
        patches: largest number that is kept, divided equally among the images.
        choice: of patches where there are more, "random" or "coreset", see `dense.memory.budget.Budget`. Published
            results keep all.
        rotations: of each good image, evenly spaced, where orientation means nothing: 8 are published, 1 is none.
        foreground: see `heads.AnomalyHead`.
        quantile: of the scores of good images that is the threshold. Each is scored without its own patches.
        holdout: so many consecutive images are scored without one another's patches: more than 1 for frames of a
            video, which resemble their neighbours.
        seed: of the choice.
        facts: of the model card.
    """
    check_options(build_anomaly, {"patches": patches, "rotations": rotations, "holdout": holdout})
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: expected a number above 0 and at most 1, such as 0.95")
    spec, reading = backbone.spec, Reading.of_spec(backbone.spec)
    sources = once(list_images(images, reading=reading) if isinstance(images, str | Path) else images)
    inference = Inference(resize=resize, reading=reading)
    chosen = resolve_layers(layers, spec)
    channels = [spec.width_of(layer) for layer in chosen]
    outputs = {"anomaly": Regression("identity")}
    head = AnomalyHead(channels, outputs, 1, foreground=foreground)
    model = DenseModel(backbone, head, chosen, norm, "anomaly", None, inference).eval()
    budget = Budget(patches, len(sources) * rotations, choice, seed, Choice)
    judged = set(np.linspace(0, len(sources) - 1, min(JUDGED, len(sources))).round().astype(int))
    vectors, owners = list[Tensor](), list[int]()
    first, copies = dict[bytes, int](), 0  # the owner of each image's pixels, by their hash
    queries: dict[int, tuple[Tensor, Tensor]] = {}  # vectors (h, w, D) and mask (h, w) of judged images
    shares = list[float]()  # of their patches, those of the foreground
    for index, image in progress(readable(sources, reading), "good images", len(sources)):
        owner_of = first.setdefault(hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest(), index)
        copies += owner_of != index
        for turn in range(rotations):
            features = features_of(model, rotated(image, 360 * turn / rotations))
            own = head.vectors(features).cpu()
            if turn == 0 and index in judged:
                inside = head.inside(features)
                queries[owner_of] = own[0].half(), head.mask(inside)[0].cpu()
                shares.append(float(inside.float().mean()))
            own = own.flatten(0, 2)
            own = own[budget.of_image(len(own))]
            vectors.append(own.half())
            owners += [owner_of] * len(own)
    if not vectors:
        raise DataError(f"none of {len(sources)} images can be used; give at least one good image")
    if copies:
        warn(f"{copies} of {len(sources)} good images have the same pixels as another; they count as one image")
    warn_of_foreground(foreground, shares, "good images")
    bank, owner = torch.cat(vectors), torch.tensor(owners)
    places = budget.of_all(bank)
    bank, owner = bank[places], owner[places]
    device = next(backbone.parameters()).device
    scores = held_out_scores(head, bank.to(device), owner.to(device), queries, holdout)
    head = AnomalyHead(channels, outputs, len(bank), threshold=upper_quantile(scores, quantile), foreground=foreground)
    head.bank.copy_(bank)
    if bool((bank.float() @ bank[0].float() > 1 - SAME).all()) or not bank.any():
        warn("all patches of the good images have the same features, so scores will mean nothing; use another backbone")
    elif near := sum(score < ROUNDED for score in scores):
        warn(
            f"{near} of {len(scores)} good images are nearly the same as one that is not held out with them, so the "
            "threshold may be too low; leave copies out, or hold out more images together (holdout)"
        )
    about: dict[str, Any] = {"good images": len(set(owners)), "patches": len(bank), "patches at most": patches}
    about |= {"choice": choice, "seed": seed}
    about |= {"rotations": rotations, "threshold": rule(head.threshold, scores, quantile, holdout)}
    return DenseModel(backbone, head.to(device), chosen, norm, "anomaly", None, inference, about | (facts or {})).eval()


def warn_of_foreground(foreground: float | None, shares: Sequence[float], what: str) -> None:
    """Warn where the foreground of images is nothing or everything; shares: of their patches."""
    found = {"no patch": shares.count(0.0), "all patches": shares.count(1.0)}
    words = " and ".join(f"{name} of {count} of {len(shares)}" for name, count in found.items() if count)
    if foreground is not None and words:
        warn(
            f"foreground {foreground:g} selects {words} {what}, of which all patches count; the number is in the units "
            "of the backbone's features, so try others"
        )


def once(sources: Iterable[str | Path | RGB]) -> list[str | Path | RGB]:
    """Return images without the files that were given before."""
    found: dict[Any, str | Path | RGB] = {}
    for number, source in enumerate(sources):
        found.setdefault(number if isinstance(source, np.ndarray) else Path(source).resolve(), source)
    return list(found.values())


def readable(sources: Sequence[str | Path | RGB], reading: Reading = PHOTOGRAPHS) -> Iterator[tuple[int, RGB]]:
    """Yield images by index; warn of those that cannot be read."""
    for index, source in enumerate(sources):
        try:
            yield index, source if isinstance(source, np.ndarray) else read_image(source, reading=reading)
        except ImageError as error:
            warn(f"left out: {error}")


def features_of(model: DenseModel, image: RGB, resize: int | tuple[int, int] | None = None) -> Features:
    """Return the features of an image at the model's working size, or at another."""
    resized = resize_image(image, resize or model.inference.resize)
    batch = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None]
    return model.features(model.backbone.normalise(batch.to(next(model.parameters()).device)))


def rotated(image: RGB, degrees: float) -> RGB:
    """Rotate an image: by quarter turns as a whole, else around its centre at its size, with its edge repeated."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(image, int(degrees // 90)))
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def held_out_scores(
    head: AnomalyHead, bank: Tensor, owner: Tensor, queries: dict[int, tuple[Tensor, Tensor]], holdout: int
) -> list[float]:
    """Return the scores of good images against the patches (N, D) of the images that are not of their group.

    owner: the index of the image of each patch. Groups are `holdout` consecutive images.
    """
    scores = []
    for index, (vectors, mask) in progress(queries.items(), "held-out good images", len(queries)):
        others = bank[owner // holdout != index // holdout]
        if len(others):
            distances = head.distances(vectors.to(bank.device).float(), others) * mask.to(bank.device)
            scores.append(float(head.score(distances[None])))
    return scores


def upper_quantile(scores: Sequence[float], quantile: float) -> float | None:
    """Return number ceil((n + 1) quantile) of n scores, at most the largest; None without scores.

    A further good image exceeds it with a probability of at most 1 - quantile, or of 1 / (n + 1) if that is more.
    """
    ordered = sorted(scores)
    return ordered[min(math.ceil((len(ordered) + 1) * quantile), len(ordered)) - 1] if ordered else None


def rule(threshold: float | None, scores: Sequence[float], quantile: float, holdout: int) -> str:
    """Return in words how a threshold was chosen."""
    if threshold is None:
        if holdout > 1:
            return f"none, since all good images are of one group that is held out together; lower holdout={holdout}"
        return "none, which needs at least two good images, since each is scored without its own patches"
    alarms = max(1 - quantile, 1 / (len(scores) + 1))
    left = "without its own patches" if holdout == 1 else f"without those of its group of {holdout}"
    return (
        f"{threshold:.4f}, the {quantile:g} quantile of {len(scores)} good images ({min(scores):.4f} to "
        f"{max(scores):.4f}), each scored {left}; about {100 * alarms:.0f} % of further good images exceed it"
    )


def detect(
    model: DenseModel, image: RGB, resize: int | tuple[int, int] | None = None
) -> tuple[float, NDArray[np.float32]]:
    """Return the score of an image (H, W, 3) and the map (H, W) of distances to good images.

    resize: another working size than the model's.
    """
    return detect_inside(model, image, resize)[:2]


@torch.inference_mode()
def detect_inside(
    model: DenseModel, image: RGB, resize: int | tuple[int, int] | None = None
) -> tuple[float, NDArray[np.float32], float]:
    """Return what `detect` returns, and the share of patches that are foreground."""
    head: AnomalyHead = model.head
    features = features_of(model, image, resize)
    inside = head.inside(features)
    distances = head.counted(features, inside).float()
    values = to_image_size(distances, features, (image.shape[0], image.shape[1]), False)[0, 0].cpu().numpy()
    if head.sigma:
        values = cv2.GaussianBlur(values, (0, 0), head.sigma, borderType=cv2.BORDER_REFLECT)
    return float(head.score(distances[:, 0])), np.asarray(values, np.float32), float(inside.float().mean())
