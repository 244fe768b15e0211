"""Objects of a video's first frame tracked by propagating labels between similar patches, as DINO and DINOv3 do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone, BackboneSpec
from dense.data.video import objects_of
from dense.discover.results import Size, resize_nearest
from dense.discover.source import Source, check_features, has_norm
from dense.suggest import did_you_mean

Shape = Literal["square", "circle"]
DecisionSize = Literal["shown", "own"]
PROTOCOLS = ("auto", "v1", "v3")
ACROSS = 4  # patches, of the protocol auto
MOST = 2  # times that small objects may enlarge the input
TILE = 12  # side in patches of the tiles that are compared at once
ONE = 1 - 1e-4  # labels above this value count as 1


@dataclass(frozen=True)
class Propagation:
    """Each patch takes the labels of the patches most similar to it, weighted by exp(cosine / temperature).

    context: number of preceding frames to compare with, besides the first. neighbourhood: largest distance in patches
    between two patches that are compared, along each axis (`square`) or in any direction (`circle`); 0 for no limit.
    topk: number of patches, of all frames together, whose labels are used.
    """

    context: int = 7
    neighbourhood: int = 12
    shape: Shape = "square"
    topk: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("neighbourhood", 0), ("topk", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape={self.shape!r}: expected {' or '.join(get_args(Shape))}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected a positive number, such as 0.1")

    def near(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return whether patches at these distances in rows (R, V) and columns (S, W) are compared: (R * S, V * W)."""
        rows, columns = rows.abs()[:, None, :, None], columns.abs()[None, :, None]
        if not self.neighbourhood:
            near = rows + columns >= 0
        elif self.shape == "circle":
            near = rows**2 + columns**2 <= self.neighbourhood**2
        else:
            near = torch.maximum(rows, columns) <= self.neighbourhood
        return near.flatten(2).flatten(0, 1)


def propagate(features: Tensor, context: Tensor, labels: Tensor, settings: Propagation) -> Tensor:
    """Propagate labels (B, n, K, h, w) of n frames with features (B, n, C, h, w) to features (B, C, h, w).

    Features have unit length. One tile of patches at a time is compared with its neighbourhood, so that memory never
    holds the similarities of all pairs.
    """
    height, width = features.shape[-2:]
    propagated = torch.empty_like(labels[:, 0])
    for (top, rows), (left, columns) in product(_tiles(height, settings), _tiles(width, settings)):
        query = features[..., top, :][..., left].flatten(2).mT  # B, q, C
        keys = context[..., rows, :][..., columns].transpose(1, 2).flatten(2)  # B, C, n * s
        values = labels[..., rows, :][..., columns].transpose(1, 2).flatten(2)  # B, K, n * s
        near = settings.near(_distances(top, rows, query), _distances(left, columns, query))  # q, s
        cosines = (query @ keys).unflatten(-1, (-1, near.shape[-1]))
        cosines = cosines.masked_fill_(~near[:, None], -torch.inf).flatten(2)
        best, index = cosines.topk(min(settings.topk, cosines.shape[-1]))  # B, q, k
        weights = (best / settings.temperature).softmax(-1)
        chosen = values.gather(-1, index.flatten(1)[:, None].expand(-1, values.shape[1], -1))  # B, K, q * k
        chosen = chosen.unflatten(-1, index.shape[1:]) * weights[:, None]
        propagated[..., top, left] = chosen.sum(-1).unflatten(-1, (top.stop - top.start, -1))
    return propagated


def _tiles(side: int, settings: Propagation) -> list[tuple[slice, slice]]:
    """Divide a side of the grid into tiles, each with the range of its neighbourhood."""
    reach = settings.neighbourhood or side
    starts = range(0, side, TILE)
    return [(slice(a, min(side, a + TILE)), slice(max(0, a - reach), min(side, a + TILE + reach))) for a in starts]


def _distances(part: slice, others: slice, like: Tensor) -> Tensor:
    """Return the differences of all positions of two ranges."""
    a, b = (torch.arange(one.start, one.stop, device=like.device) for one in (part, others))
    return a[:, None] - b


class Tracker:
    """Propagates the labels of a first frame through a video; holds the first frame and the last `context` frames."""

    def __init__(self, features: Tensor, labels: Tensor, settings: Propagation) -> None:
        """Start from features (B, C, h, w) of the first frames of B videos, and labels (B, K, h, w) on their grid."""
        if features.shape[0] != labels.shape[0] or features.shape[-2:] != labels.shape[-2:]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} differ in grid or number"
            )
        self.settings = settings
        self.first = F.normalize(check_features(features), dim=1), labels.float()
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.context)

    def step(self, features: Tensor) -> Tensor:
        """Return the labels (B, K, h, w) of the next frames from their features (B, C, h, w)."""
        first = self.first[0]
        if features.shape != first.shape:
            raise ValueError(f"features are {tuple(features.shape)}, those of the first frame {tuple(first.shape)}")
        features = F.normalize(check_features(features), dim=1)
        context, labels = (torch.stack(frames, 1) for frames in zip(self.first, *self.recent, strict=True))
        propagated = propagate(features, context, labels, self.settings)
        self.recent.append((features, propagated))
        return propagated


@dataclass(frozen=True)
class Tracking(Propagation):
    """Settings of propagation, of the size of the backbone's input, and of how pixels are assigned to objects.

    size: shorter side of the input, 0 for the video's own. across: patches that the smallest object of the first frame
    should be across; if it is less, the input is enlarged, at most twofold; 0 for never. multiple: the longer side is
    cut down to a multiple of so many pixels, 0 for no cut; both sides are whole patches in any case. decide: pixels are
    assigned at the size of the backbone's input (`shown`) or at the video's (`own`). normalise: scale the labels of
    each object to 0..1 in each frame.
    """

    size: int = 480
    across: int = 0
    multiple: int = 64
    decide: DecisionSize = "shown"
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, unit in (("size", "pixels"), ("across", "patches"), ("multiple", "pixels")):
            if isinstance(getattr(self, name), bool) or getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 or more {unit}")
        if self.decide not in get_args(DecisionSize):
            raise ValueError(f"decide={self.decide!r}: expected {' or '.join(get_args(DecisionSize))}")

    def input_size(self, size: Size, patch: int, smallest: float = float("inf")) -> Size:
        """Return height and width of the backbone's input for frames of a size; smallest: pixels of an object."""
        sides = list(size)
        if self.size:
            long = 0 if size[0] > size[1] else 1
            exact, sides[1 - long] = size[long] * self.size, self.size
            sides[long] = round(exact / size[1 - long])
            if self.multiple:
                sides[long] = max(self.size, exact // size[1 - long] // self.multiple * self.multiple)
        across = (smallest * sides[0] * sides[1] / (size[0] * size[1])) ** 0.5 / patch
        factor = min(MOST, max(1.0, self.across / across)) if across else 1.0
        height, width = (max(1, round(side * factor / patch)) * patch for side in sides)
        return height, width

    def assign(self, soft: Tensor, input_size: Size, size: Size) -> Tensor:
        """Assign each pixel (B, H, W) at the video's size to one of K labels on the grid (B, K, h, w)."""
        target = input_size if self.decide == "shown" else size
        soft = F.interpolate(soft, size=target, mode="bilinear", align_corners=False)
        if self.normalise:
            low, high = soft.amin((-2, -1), keepdim=True), soft.amax((-2, -1), keepdim=True)
            full = low > ONE  # a label that is 1 everywhere has no range
            soft = torch.where(full, soft, (soft - low) / (high - low).clamp_min(torch.finfo(soft.dtype).tiny))
        return resize_nearest(soft.argmax(1, keepdim=True), size)[:, 0]


def tracking(protocol: str, patch: int, **changes: Any) -> Tracking:
    """Return the settings of a published protocol; fields that are not None in `changes` replace its own.

    v1: DINO's, frames of 480 pixels. v3: DINOv3's medium size, 60 patches, at most 960 pixels. auto: v1, enlarged where
    the smallest object would be less than ACROSS patches across, unless a size is given.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: expected auto, v1 or v3.{did_you_mean(protocol, PROTOCOLS)}")
    given = {name: value for name, value in changes.items() if value is not None}
    settings = Tracking(across=ACROSS if protocol == "auto" and "size" not in given else 0)
    if protocol == "v3":
        settings = Tracking(shape="circle", temperature=0.2, size=min(960, 60 * patch), multiple=0, decide="own")
    return replace(settings, **given)


def tracking_source(spec: BackboneSpec) -> Source:
    """Return the features of both protocols for every family: the last tokens after the final norm."""
    return Source("token", norm=has_norm(spec))


@torch.no_grad()
def track(
    backbone: Backbone,
    frames: Iterable[NDArray[np.uint8] | Tensor],
    mask: NDArray[np.integer] | Tensor,
    protocol: str = "auto",
    source: Source | None = None,
    **changes: Any,
) -> Iterator[Tensor]:
    """Yield the object number of every pixel, (H, W) uint8 per frame; the first frame's is `mask`.

    frames: uint8 images (H, W, 3) or (3, H, W) of one size, read one at a time; memory holds the features of `context`
    + 1. mask: (H, W), 0 where there is no object; 255 is unknown, unless it is the only number. protocol: auto, v1 or
    v3; `changes` are fields of `Tracking`.
    """
    settings = tracking(protocol, backbone.spec.patch, **changes)
    source = source or tracking_source(backbone.spec)
    device = next(backbone.parameters()).device
    mask = torch.as_tensor(mask, device=device)
    mask = mask.byte() if mask.dtype == torch.bool else mask
    numbers = torch.tensor([0, *objects_of(mask.cpu().numpy())], dtype=torch.uint8, device=device)
    mask = mask.long()  # torch supports few operations on uint16
    rest = iter(frames)
    begin = [frame for _, frame in zip(range(2), rest, strict=False)]
    if len(begin) < 2:
        raise ValueError(f"the video has {len(begin)} frames: expected 2 or more, to carry the mask to")
    size = (mask.shape[0], mask.shape[1])
    input_size = settings.input_size(size, backbone.spec.patch, smallest_of(mask, numbers))
    tracker: Tracker | None = None
    for number, frame in enumerate(chain(begin, rest)):
        pixels = _pixels(frame)
        if tuple(pixels.shape[-2:]) != size:
            found, wanted = ("x".join(map(str, sides)) for sides in (pixels.shape[-2:], size))
            reference = "that of the first frame" if number else "the mask's size; draw it on the first frame"
            raise ValueError(f"frame {number} is {found}, not {wanted} (height x width), {reference}")
        features = source(backbone, backbone.normalise(_resized(pixels.to(device), input_size)))
        if tracker is None:
            tracker = Tracker(
                features, labels_on_grid(mask, numbers, (features.shape[-2], features.shape[-1])), settings
            )
            yield torch.where(torch.isin(mask, numbers), mask, 0).to(torch.uint8)
        else:
            yield numbers[settings.assign(tracker.step(features), input_size, size)[0]]


def smallest_of(mask: Tensor, numbers: Tensor) -> int:
    """Return the pixels of the smallest of the objects with these numbers, 0 left out, in a mask (H, W)."""
    return min(int((mask == number).sum()) for number in numbers.tolist() if number)


def _pixels(frame: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return a frame as (1, 3, H, W) uint8."""
    pixels = torch.as_tensor(frame)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or 3 not in (pixels.shape[0], pixels.shape[-1]):
        raise ValueError(
            f"expected frames of shape (H, W, 3) or (3, H, W) in uint8, got {tuple(pixels.shape)} in {pixels.dtype}"
        )
    return (pixels.permute(2, 0, 1) if pixels.shape[-1] == 3 else pixels)[None]


def _resized(pixels: Tensor, size: Size) -> Tensor:
    """Return uint8 images (B, 3, H, W) at another size."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    full = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return full.round().clamp(0, 255).to(torch.uint8)


def labels_on_grid(mask: Tensor, numbers: Tensor, grid: Size) -> Tensor:
    """Return one-hot labels (1, K, h, w) of each number in a mask (H, W), taken at the centre of each patch.

    An object that covers no centre gets the patch that it covers most.
    """
    known = torch.where(torch.isin(mask, numbers), mask, 0)
    full = known == numbers[:, None, None]  # K, H, W
    labels = resize_nearest(known[None, None], grid)[0] == numbers[:, None, None]  # K, h, w
    missed = full.flatten(1).any(1) & ~labels.flatten(1).any(1)
    for k in missed.nonzero()[:, 0].tolist():
        patch = int(F.interpolate(full[k][None, None].float(), size=grid, mode="area").argmax())
        labels.flatten(1)[:, patch] = torch.arange(len(numbers), device=labels.device) == k
    return labels[None].float()
