"""From annotated images to a model that segments by their patches, saved and used like any other model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.console import progress
from dense.data.labelled.sample import IGNORE, DataError, LabelledSource
from dense.data.levels import Reading
from dense.data.transforms import new_size, resize_image
from dense.memory.budget import Budget, Choice
from dense.memory.views import MemoryView
from dense.model.network import DenseModel, Inference, Refinement
from dense.suggest import did_you_mean
from heads.features import Features, Norm
from heads.head import DenseHead
from heads.insid3 import Insid3Head
from heads.layers import to_padded_size
from heads.memory import MemoryHead
from heads.options import Count, check_names, check_options
from heads.outputs import Classes, Output

RANK = 500 / 1024  # of the channels, the directions of position that INSID3 removes


def usual_layer(depth: int) -> int:
    """Return the block at three quarters of the depth: on CamVid better than the last one."""
    return max(0, round(0.75 * depth) - 1)


@torch.inference_mode()
def build_memory(
    backbone: Backbone,
    source: LabelledSource,
    *,
    layers: Layers | list[int] | None = None,
    norm: Norm = True,
    resize: int | tuple[int, int] | None = 448,
    patches: int = 100_000,
    choice: Choice = "balanced",
    augment: Count = 0,
    unknown: int | None = None,
    neighbours: int = 30,
    temperature: float = 0.02,
    lists: int | None = 0,
    probes: int = 32,
    refine: Refinement = "none",
    seed: int = 0,
    facts: dict[str, Any] | None = None,
) -> DenseModel:
    """Return a model whose head remembers patches of annotated images.

    Args:
        backbone: frozen.
        source: images with masks.
        layers: of the features; the block at three quarters of the depth if left out.
        norm: whether the final norm is applied to them.
        resize: working size of images here and in prediction: the shorter side, or height and width; None keeps it.
        patches: largest number that is kept, divided equally among the images.
        choice: of patches where there are more, see `dense.memory.budget.Budget`.
        augment: number of augmented views of each image that are remembered, see `MemoryView`; 0 remembers the image
            as it is. Hummingbird's protocol has 1 or 2.
        unknown: class that unknown pixels have in memory: its number, of references its value in the masks; None leaves
            them out.
        neighbours, temperature, lists, probes: of the vote and the search, see `heads.MemoryHead`; lists=None chooses
            four times the root of the number of patches.
        refine: of predictions, see `Inference`.
        seed: of the choice.
        facts: of the model card.
    """
    check_options(build_memory, {"patches": patches, "augment": augment})
    if patches < len(source.classes or ()):
        raise ValueError(f"patches={patches}: expected at least one for each of {len(source.classes or ())} classes")
    budget = Budget(patches, len(source) * max(augment, 1), choice, seed)
    spec = backbone.spec
    chosen = resolve_layers(usual_layer(spec.depth) if layers is None else layers, spec)
    unknown = None if unknown is None else class_of(source, unknown)
    inference, outputs = (
        Inference(resize=resize, refine=refine, reading=Reading.of_spec(backbone.spec)),
        outputs_of(source),
    )
    channels = [spec.width_of(layer) for layer in chosen]
    reader = MemoryHead(channels, outputs, 1)
    vectors, shares = list[Tensor](), list[Tensor]()
    for features, held in annotated(backbone, source, chosen, norm, inference, augment, unknown, seed):
        own = reader.vectors(features).flatten(0, 2).cpu()
        known = held.sum(1) > 0
        own, held = own[known], held[known] / held[known].sum(1, keepdim=True)
        places = budget.of_image(len(own), held)
        vectors.append(own[places].half())
        shares.append(held[places])
    if not sum(map(len, vectors)):
        raise unlabelled(source)
    bank, labels = torch.cat(vectors), torch.cat(shares)
    places = budget.of_all(bank)
    if len(places) < len(bank):
        bank, labels = bank[places], labels[places]
    lists = int(min(4 * len(bank) ** 0.5, len(bank))) if lists is None else lists
    head = MemoryHead(
        channels, outputs, len(bank), neighbours, temperature, lists, min(probes, lists) if lists else probes
    )
    head.fill(bank, labels)
    about = {"annotated images": len(source), "patches": len(bank), "choice": choice, "seed": seed}
    return model_of(backbone, head, source, chosen, norm, inference, about | (facts or {}))


@torch.inference_mode()
def build_insid3(
    backbone: Backbone,
    source: LabelledSource,
    *,
    layers: Layers | list[int] = "last",
    norm: Norm = True,
    resize: int | tuple[int, int] | None = (1024, 1024),
    rank: int | None = None,
    cluster: float = 0.6,
    least: float = 0.2,
    refine: Refinement = "none",
    facts: dict[str, Any] | None = None,
) -> DenseModel:
    """Return a model that segments what resembles the objects of a few annotated images, see `heads.Insid3Head`.

    Args:
        backbone, source, norm, facts: as for `build_memory`.
        layers: one layer.
        resize: working size; published is a square of 1024 pixels.
        rank: directions of position that are removed; published are 500 of the 1,024 channels of a ViT-L, of which
            other widths take the same share.
        cluster, least: see `heads.Insid3Head`.
        refine: of predictions, see `Inference`.
    """
    spec = backbone.spec
    chosen = resolve_layers(layers, spec)
    if len(chosen) != 1:
        raise ValueError(f"layers={layers!r}: the method insid3 reads one layer, such as last")
    channels = spec.width_of(chosen[0])
    rank = round(channels * RANK) if rank is None else rank
    window = max(resize) if isinstance(resize, tuple) else None  # which no image of this size exceeds
    inference = Inference(resize=resize, window=window, refine=refine, reading=Reading.of_spec(backbone.spec))
    images = list[tuple[Tensor, Tensor]]()
    size: tuple[int, int] | None = None
    for features, held in annotated(backbone, source, chosen, norm, inference):
        images.append((features.maps[0][0].flatten(1).T, inside(held)))
        size = features.image_size
    if size is None or not any(len(v) for v, _ in images):
        raise unlabelled(source)
    black = backbone.normalise(torch.zeros_like(backbone.blank(size, images[0][0].device), dtype=torch.uint8))
    empty = backbone(black, layers=chosen, norm=norm).maps[0][0].flatten(1).T
    count = sum(len(v) for v, _ in images)
    head = Insid3Head(channels, outputs_of(source), count, rank, cluster, least)
    head.to(empty.device).fill(empty, images)
    about = {"annotated images": len(images), "patches": count, "method": "insid3"}
    return model_of(backbone, head, source, chosen, norm, inference, about | (facts or {}))


def class_of(source: LabelledSource, number: int) -> int:
    """Return the index of a class that is given by number, or by its value in masks where a source names these."""
    names = source.classes or ()
    values = getattr(source, "values", range(len(names)))
    if number not in values:
        known = (f"{v} ({name})" if str(v) != name else name for v, name in zip(values, names, strict=True))
        raise ValueError(f"unknown={number!r}: expected a class: {', '.join(known)}")
    return list(values).index(number)


def outputs_of(source: LabelledSource) -> dict[str, Output]:
    """Return the output of a memory of annotated images."""
    if source.classes is None:
        raise DataError("a memory needs images with masks, and these have none")
    return {"labels": Classes(len(source.classes), names=tuple(source.classes))}


def model_of(
    backbone: Backbone, head: DenseHead, source: LabelledSource, layers: tuple[int, ...], norm: Norm,
    inference: Inference, facts: dict[str, Any],
) -> DenseModel:  # fmt: skip
    """Return a backbone and a filled memory as a model."""
    head.to(next(backbone.parameters()).device)
    classes = tuple(source.classes or ())
    return DenseModel(backbone, head, layers, norm, "segmentation", classes, inference, facts).eval()


def unlabelled(source: LabelledSource) -> DataError:
    return DataError(f"none of {len(source)} masks labels a patch; annotate at least one object")


def annotated(
    backbone: Backbone, source: LabelledSource, layers: tuple[int, ...], norm: Norm, inference: Inference,
    augment: int = 0, unknown: int | None = None, seed: int = 0,
) -> Iterator[tuple[Features, Tensor]]:  # fmt: skip
    """Yield the features of each view of each annotated image and the share (N, K) of each class in its patches."""
    device, view = next(backbone.parameters()).device, MemoryView() if augment else None
    for index in progress(range(len(source)), "annotated images"):
        sample = source.read(index)
        if sample.labels is None:
            continue
        size = inference.size_of(sample.image.shape[:2])
        if view is not None:  # all views have the working size of the whole image
            size = new_size(size, *sample.image.shape[:2])
        for number in range(max(augment, 1)):
            seen = sample if view is None else view(sample, (seed, number, index))
            image, labels = resize_image(seen.image, size), np.ascontiguousarray(seen.labels)
            if unknown is not None:
                labels = np.where(labels == IGNORE, np.uint8(unknown), labels)
            batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            features = backbone(backbone.normalise(batch), layers=layers, norm=norm)
            yield features, patch_shares(torch.from_numpy(labels), features, len(source.classes or ()))


def inside(shares: Tensor) -> Tensor:
    """Return the classes (N, K) of which patches hold more than half; of a class that none holds so, the fullest."""
    found = shares > 0.5
    lost = ~found.any(0) & (shares > 0).any(0)
    found[shares[:, lost].argmax(0), lost] = True
    return found


def patch_shares(labels: Tensor, features: Any, count: int) -> Tensor:
    """Return the share (N, K) of each class in each patch of labels (H, W); the rest of a patch is unknown."""
    stride = features.strides[-1]
    size = tuple(features.image_size)
    resized = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    known = resized != IGNORE
    one_hot = F.one_hot(resized.where(known, 0), count).float() * known[..., None]
    padded = to_padded_size(one_hot.permute(2, 0, 1)[None], features)
    return F.avg_pool2d(padded, stride)[0].flatten(1).T


METHODS: dict[str, Callable[..., DenseModel]] = {"knn": build_memory, "insid3": build_insid3}


def remember(method: str, backbone: Backbone, source: LabelledSource, **options: Any) -> DenseModel:
    """Return the model of a method by name; an option that it does not have raises."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected {' or '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    check_names(f"method {method}", options, METHODS[method], but={"backbone", "source"})
    return METHODS[method](backbone, source, **options)
