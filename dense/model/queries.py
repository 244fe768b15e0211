"""From mask and class logits of queries to classes per pixel, instances or panoptic segments, as EoMT and Mask2Former.

mask_logits: (B, Q, h, w); class_logits: (B, Q, C + 1), no object last. Logits are resized to `size` bilinearly, after
they were resized to `through` where that is given: the size of the network's input, as published numbers were measured.
part: height and width of the image in that input, at its upper left; the rest is padding, see `Inference.square`.
Only masks that are kept are resized, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heads.features import Size
from heads.layers import resize

TOP = 100  # instances of an image
AT_ONCE = 64_000_000  # numbers of resized masks in memory at once


class Found(NamedTuple):
    """The instances of an image, the most certain first."""

    masks: Tensor  # N, H, W bool
    classes: Tensor  # N int64
    scores: Tensor  # N, in 0..1


class Partition(NamedTuple):
    """The panoptic segments of an image."""

    segments: Tensor  # H, W int64: the place of each pixel's segment in classes and scores, -1 where there is none
    classes: Tensor  # N int64
    scores: Tensor  # N, in 0..1


def semantic(mask_logits: Tensor, class_logits: Tensor, size: Size, through: Size | None = None) -> Tensor:
    """Return scores of classes (B, C, H, W): the sum over queries of the probabilities of class and mask.

    They are no probabilities: their sum at a pixel may be below or above 1. `through` is the size at which scores are
    computed before they are resized.
    """
    classes = class_logits.float().softmax(-1)[..., :-1]
    masks = resize(mask_logits.float(), through or size, align_corners=False).sigmoid()
    return resize(torch.einsum("bqc,bqhw->bchw", classes, masks), size, align_corners=False)


def as_classes(network: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a network of queries as one of classes: normalised images to "labels", their `semantic` scores."""

    def run(images: Tensor) -> dict[str, Tensor]:
        maps = network(images)
        return {"labels": semantic(maps["mask_logits"], maps["class_logits"], (images.shape[-2], images.shape[-1]))}

    return run


def instances(
    mask_logits: Tensor, class_logits: Tensor, size: Size, top: int = TOP, through: Size | None = None,
    part: Size | None = None, least: float = 0.0,
) -> list[Found]:  # fmt: skip
    """Return the `top` pairs of query and class of each image whose masks have pixels, the most certain first.

    The score is the probability of the class times the mean probability of the mask over its pixels. A query may appear
    with several classes. least: a probability of the class below which a pair is left out, before its mask is resized;
    no score is larger than it.
    """
    found = []
    for logits, classes in zip(mask_logits.float(), class_logits.float(), strict=True):
        shares = classes.softmax(-1)[:, :-1]  # Q, C
        best, place = shares.flatten().topk(min(top, shares.numel()))
        best, place = best[best >= least], place[best >= least]
        query, label = place // shares.shape[1], place % shares.shape[1]
        own, which = query.unique(return_inverse=True)
        masks, certain = _masks(logits[own], size, through, part)
        scores = best * certain[which]
        order = scores.argsort(descending=True, stable=True)
        order = order[masks.flatten(1).any(1)[which[order]]]
        found.append(Found(masks[which[order]], label[order], scores[order]))
    return found


def _masks(logits: Tensor, size: Size, through: Size | None, part: Size | None) -> tuple[Tensor, Tensor]:
    """Return where logits (N, h, w) are positive at `size`, and the mean probability there (N,)."""
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    certain = torch.zeros(len(logits), device=logits.device)
    step = max(1, AT_ONCE // (size[0] * size[1]))
    for first in range(0, len(logits), step):
        few = slice(first, first + step)
        large = resized(logits[few], size, through, part)
        masks[few] = large > 0
        inside = masks[few].flatten(1)
        certain[few] = (large.sigmoid_().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)
    return masks, certain


def resized(logits: Tensor, size: Size, through: Size | None = None, part: Size | None = None) -> Tensor:
    """Return mask logits (N, h, w) at a size."""
    first = resize(logits[None], through or size, align_corners=False)
    if part is not None:
        first = first[..., : part[0], : part[1]]
    return resize(first, size, align_corners=False)[0].clone()


def panoptic(
    mask_logits: Tensor,
    class_logits: Tensor,
    size: Size,
    things: Sequence[bool],
    mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    through: Size | None = None,
    part: Size | None = None,
) -> list[Partition]:
    """Return the panoptic segments of each image.

    Queries whose best class has a probability above `mask_threshold` share the pixels: each gets those where its
    probability of class times mask is largest, if the mask itself is at least .5 there. A query that gets less than the
    share `overlap_threshold` of its own mask is dropped. Queries of one stuff class are one segment.
    """
    found = []
    for logits, classes in zip(mask_logits.float(), class_logits.float(), strict=True):
        scores, labels = classes.softmax(-1).max(-1)
        kept = (labels < classes.shape[-1] - 1) & (scores > mask_threshold)
        found.append(
            _partition(logits[kept], labels[kept], scores[kept], size, things, overlap_threshold, through, part)
        )
    return found


def _partition(
    logits: Tensor, labels: Tensor, scores: Tensor, size: Size, things: Sequence[bool], overlap: float,
    through: Size | None, part: Size | None,
) -> Partition:  # fmt: skip
    segments = torch.full(size, -1, dtype=torch.long, device=logits.device)
    best, owner = torch.zeros(size, device=logits.device), torch.full_like(segments, -1)
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for k, one in enumerate(logits):
        share = resized(one[None], size, through, part)[0].sigmoid_()
        masks[k] = share >= 0.5
        weighted = scores[k] * share
        nearer = (weighted > best) | (owner < 0)
        owner[nearer], best[nearer] = k, weighted[nearer]
    number, of_stuff = 0, dict[int, int]()
    kept: list[int] = []
    for k, label in enumerate(labels.tolist()):
        own, final = owner == k, (owner == k) & masks[k]
        area = int(masks[k].sum())
        if not area or not final.any() or int(own.sum()) / area < overlap:
            continue
        if not things[label]:
            if label in of_stuff:
                segments[final] = of_stuff[label]
                continue
            of_stuff[label] = number
        segments[final] = number
        kept.append(k)
        number += 1
    return Partition(segments, labels[kept], scores[kept])
