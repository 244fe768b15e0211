"""Objects of a video's first frame followed through all of it, by the protocols of DINO and DINOv3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone, BackboneSpec
from dense.data.video import objects_of
from dense.discover.propagate import Propagation, Tracker
from dense.discover.results import Size, nearest
from dense.discover.source import Source, has_norm
from dense.suggest import did_you_mean

Decide = Literal["shown", "own"]
FULL = 1e-4  # labels up to here below 1 are rounding


@dataclass(frozen=True)
class Tracking(Propagation):
    """How objects are followed: how labels are carried, what the backbone sees, and how pixels choose their object.

    size: shorter side that the backbone sees, 0 for the video's own. multiple: the longer side is cut down to a multiple of so
    many pixels, 0 not; both sides are whole patches in any case. decide: pixels choose at the size that the backbone
    saw (`shown`), or at the video's (`own`). normalise: bring the labels of each object to 0..1 over the frame before.
    """

    size: int = 480
    multiple: int = 64
    decide: Decide = "shown"
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "multiple"):
            if isinstance(getattr(self, name), bool) or getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 or more pixels")
        if self.decide not in get_args(Decide):
            raise ValueError(f"decide={self.decide!r}: expected {' or '.join(get_args(Decide))}")

    def shown(self, size: Size, patch: int) -> Size:
        """Height and width at which the backbone sees frames of a size."""
        sides = list(size)
        if self.size:
            long = 0 if size[0] > size[1] else 1
            exact, sides[1 - long] = size[long] * self.size, self.size
            sides[long] = round(exact / size[1 - long])
            if self.multiple:
                sides[long] = max(self.size, exact // size[1 - long] // self.multiple * self.multiple)
        height, width = (max(1, round(side / patch)) * patch for side in sides)
        return height, width

    def labels(self, soft: Tensor, shown: Size, own: Size) -> Tensor:
        """Which of K each pixel is, (B, H, W) at the video's own size, from labels on the grid (B, K, h, w)."""
        soft = F.interpolate(soft, size=shown if self.decide == "shown" else own, mode="bilinear", align_corners=False)
        if self.normalise:
            low, high = soft.amin((-2, -1), keepdim=True), soft.amax((-2, -1), keepdim=True)
            full = low > 1 - FULL  # what is everywhere has no range
            soft = torch.where(full, soft, (soft - low) / (high - low).clamp_min(torch.finfo(soft.dtype).tiny))
        return nearest(soft.argmax(1, keepdim=True), own)[:, 0]


PROTOCOLS = ("v1", "v3")


def tracking(protocol: str, patch: int, **changes: Any) -> Tracking:
    """Settings of a published protocol, some of them changed; what is None in `changes` is not.

    v1: DINO's, frames of 480 pixels. v3: DINOv3's medium size, 60 patches, at most 960 pixels.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: expected v1 or v3.{did_you_mean(protocol, PROTOCOLS)}")
    settings = Tracking()
    if protocol == "v3":
        settings = Tracking(shape="circle", temperature=0.2, size=min(960, 60 * patch), multiple=0, decide="own")
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def tracking_source(spec: BackboneSpec) -> Source:
    """Last tokens after the final norm, of every family, as both protocols have them."""
    return Source("token", norm=has_norm(spec))


@torch.no_grad()
def track(
    backbone: Backbone,
    frames: Iterable[NDArray[np.uint8] | Tensor],
    mask: NDArray[np.integer] | Tensor,
    protocol: str = "v1",
    source: Source | None = None,
    **changes: Any,
) -> Iterator[Tensor]:
    """The number of the object at every pixel, (H, W) uint8 frame by frame, the first frame's being `mask`.

    frames: uint8 images (H, W, 3) or (3, H, W) of one size, of which one is held at a time and the features of
    `context` + 1. mask: (H, W), 0 where there is no object; 255 is unknown, unless no other number is there.
    protocol: v1 or v3; `changes` are settings of `Tracking`.
    """
    how = tracking(protocol, backbone.spec.patch, **changes)
    source = source or tracking_source(backbone.spec)
    device = next(backbone.parameters()).device
    mask = torch.as_tensor(mask, device=device)
    mask = mask.byte() if mask.dtype == torch.bool else mask
    numbers = torch.tensor([0, *objects_of(mask.cpu().numpy())], dtype=torch.uint8, device=device)
    mask = mask.long()  # torch hardly computes with uint16
    rest = iter(frames)
    begin = [frame for _, frame in zip(range(2), rest, strict=False)]
    if len(begin) < 2:
        raise ValueError(f"the video has {len(begin)} frames: expected 2 or more, to carry the mask to")
    own = tuple(mask.shape)
    shown = how.shown((own[0], own[1]), backbone.spec.patch)
    tracker: Tracker | None = None
    for number, frame in enumerate(chain(begin, rest)):
        pixels = pixels_of(frame)
        if tuple(pixels.shape[-2:]) != own:
            what = "the mask's size; draw it on the first frame" if not number else "that of the first frame"
            raise ValueError(
                f"frame {number} is {_words(pixels.shape[-2:])}, not {_words(own)} (height x width), {what}"
            )
        features = source(backbone, backbone.normalise(resized(pixels.to(device), shown)))
        if tracker is None:
            tracker = Tracker(features, on_grid(mask, numbers, (features.shape[-2], features.shape[-1])), how)
            yield torch.where(torch.isin(mask, numbers), mask, 0).to(torch.uint8)
        else:
            yield numbers[how.labels(tracker.step(features), shown, (own[0], own[1]))[0]]


def pixels_of(frame: NDArray[np.uint8] | Tensor) -> Tensor:
    """An image as (1, 3, H, W) uint8."""
    pixels = torch.as_tensor(frame)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or 3 not in (pixels.shape[0], pixels.shape[-1]):
        raise ValueError(
            f"expected frames of shape (H, W, 3) or (3, H, W) in uint8, got {tuple(pixels.shape)} in {pixels.dtype}"
        )
    return (pixels.permute(2, 0, 1) if pixels.shape[-1] == 3 else pixels)[None]


def resized(pixels: Tensor, size: Size) -> Tensor:
    """uint8 images (B, 3, H, W) at another size."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    full = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return full.round().clamp(0, 255).to(torch.uint8)


def on_grid(mask: Tensor, numbers: Tensor, grid: Size) -> Tensor:
    """A mask (H, W) as labels of each number, (1, K, h, w), by what is at the centre of each patch.

    An object that is at no centre gets the patch that it covers most.
    """
    clean = torch.where(torch.isin(mask, numbers), mask, 0)
    full = clean == numbers[:, None, None]  # K, H, W
    labels = nearest(clean[None, None], grid)[0] == numbers[:, None, None]  # K, h, w
    unseen = full.flatten(1).any(1) & ~labels.flatten(1).any(1)
    for k in unseen.nonzero()[:, 0].tolist():
        cell = int(F.interpolate(full[k][None, None].float(), size=grid, mode="area").argmax())
        labels.flatten(1)[:, cell] = torch.arange(len(numbers), device=labels.device) == k
    return labels[None].float()


def _words(size: Iterable[int]) -> str:
    return "x".join(map(str, size))
