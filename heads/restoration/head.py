"""What the backbone sees of an image that is to be restored: never more than a fixed number of patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from heads.checks import one_of, positive_integer
from heads.features import Features, Size
from heads.head import DenseHead
from heads.outputs import Output
from heads.resize import resize
from heads.restoration.fusion import AddFusion, ChannelFusion, Fusion, Query, WindowFusion
from heads.restoration.psf import PixelSemanticFusion
from heads.restoration.restormer import Guide, build_body


def guide_size(size: Size, patch: int, tokens: int) -> Size:
    """Whole patches nearest to the shape of an image of `size`, at most `tokens` of them; never enlarged beyond rounding."""
    height, width = size
    scale = min(1.0, math.sqrt(tokens * patch**2 / (height * width)))
    rows, columns = (max(1, round(side * scale / patch)) for side in size)
    while rows * columns > tokens and (rows, columns) != (1, 1):
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return rows * patch, columns * patch


def guide_image(images: Tensor, patch: int, tokens: int) -> Tensor:
    """Images (B, 3, H, W) at `guide_size`, which covers all of them."""
    height, width = images.shape[-2:]
    rows, columns = guide_size((height, width), patch, tokens)
    if rows != height:
        images = weights(height, rows).to(images) @ images
    if columns != width:
        images = images @ weights(width, columns).to(images).mT
    return images


def weights(old: int, new: int) -> Tensor:
    """The matrix (new, old) of an antialiased linear resize: as `interpolate(mode="bilinear", antialias=True)` does, which
    ONNX does not know."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(old, dtype=torch.float64) + 0.5
    table = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
    return (table / table.sum(1, keepdim=True)).float()


Guidance = Literal["none", "addition", "channels", "windows"]


@dataclass(frozen=True)
class Picture(Output):
    """An image, RGB of 0 to 1, not clamped; an output of the restoration head alone."""

    align_corners: bool | None = None
    name: ClassVar[str] = "picture"

    @property
    def channels(self) -> int:
        """Red, green, blue."""
        return 3

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        """There is none."""
        raise ValueError("the output 'picture' needs the head 'restoration'; name that head, or another output")

    def decode(self, logits: Tensor, training: bool = False) -> Tensor:
        """As it is."""
        return logits

    def initialise(self, last: nn.Conv2d) -> None:
        """Refuse a head of one product."""
        self.branch(0, False)


class RestorationHead(DenseHead):
    """Images and their features to restored images.

    in_channels: of the backbone's maps, shallow to deep. body: a name of `BODIES` or the options of `Restormer`. guidance:
    "channels" and "windows" are D-R attention between channels, or between pixels of windows; "addition" adds; "none" is
    the body alone, for which no features are computed. query: who asks in the attention, "dino" or "restoration". width:
    channels of the fused features. window: side of the windows, in pixels of each level. tokens: most patches of a
    image that the backbone sees; a larger image is made smaller for it.
    """

    reads_pixels = True

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: Mapping[str, Output],
        body: str | Mapping[str, Any] = "restormer",
        guidance: Guidance = "channels",
        query: Query = "dino",
        width: int = 96,
        window: int = 8,
        tokens: int = 1024,
    ) -> None:
        super().__init__(outputs)
        if len(outputs) != 1 or not isinstance(next(iter(outputs.values())), Picture):
            raise ValueError(f"the head 'restoration' has one output, an image, and was given {', '.join(outputs)}")
        one_of("guidance", guidance, ("none", "addition", "channels", "windows"))
        one_of("query", query, ("dino", "restoration"))
        for name, value in (("width", width), ("window", window), ("tokens", tokens)):
            positive_integer(name, value)
        self.body = build_body(body)
        self.guidance, self.query, self.width, self.window, self.tokens = guidance, query, width, window, tokens
        self.in_channels = tuple(in_channels)
        self.reads_features = guidance != "none"
        self.psf: PixelSemanticFusion | None = None
        self.fusions = nn.ModuleList()
        if self.reads_features:
            self.psf = PixelSemanticFusion(self.in_channels, width)
            makers: dict[str, Callable[[int, int], Fusion]] = {
                "addition": lambda dim, heads: AddFusion(width, dim),
                "channels": lambda dim, heads: ChannelFusion(width, dim, heads, query),
                "windows": lambda dim, heads: WindowFusion(width, dim, heads, query, window),
            }
            levels = zip(self.body.dims, self.body.heads, strict=True)
            self.fusions.extend(makers[guidance](dim, heads) for dim, heads in levels)

    def seen(self, images: Tensor, patch: int) -> Tensor:
        """What the backbone shall see: whole patches, `tokens` at most."""
        return guide_image(images, patch, self.tokens)

    def forward(
        self, features: Features | None, images: Tensor | None = None, size: Size | None = None
    ) -> dict[str, Tensor]:
        """Output's name -> (B, 3, H, W), of 0 to 1 if `images` are. features: of what `seen` gave; None without guidance."""
        if images is None:
            raise ValueError("the head 'restoration' reads the images themselves; give them as images=, of 0 to 1")
        guide = None if features is None or self.psf is None else self._guide(self.psf(features.maps))
        if self.reads_features and guide is None:
            raise ValueError(f"guidance={self.guidance!r} needs features; give those of what head.seen(images) shows")
        restored = self.body(images, guide)
        return {name: restored if size is None else resize(restored, size, False) for name in self.outputs}

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """See `DenseHead.logits`."""
        return self.forward(features, images)

    def expert_weights(self, features: Features) -> Tensor:
        """How much each layer counts for each image, (B, layers)."""
        if self.psf is None:
            raise ValueError("guidance='none' has no experts; there are weights with addition, channels or windows")
        return self.psf.gate(features.maps)

    def options(self) -> dict[str, Any]:
        """The arguments as plain data, and the head's name."""
        return {
            "name": "restoration",
            "in_channels": list(self.in_channels),
            "body": self.body.config,
            "guidance": self.guidance,
            "query": self.query,
            "width": self.width,
            "window": self.window,
            "tokens": self.tokens,
        }

    def _guide(self, fused: Tensor) -> Guide:
        return partial(_guided, self.fusions, fused)


def _guided(fusions: nn.ModuleList, fused: Tensor, level: int, x: Tensor) -> Tensor:
    return fusions[level](x, fused)
