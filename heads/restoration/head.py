"""The restoration head: a Restormer body that DINO features of a reduced image guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from heads.features import Features, Size
from heads.head import DenseHead
from heads.layers import resize
from heads.options import checked
from heads.outputs import Output
from heads.restoration.guidance import AddFusion, ChannelFusion, LevelFusion, PixelSemanticFusion, Query, WindowFusion
from heads.restoration.restormer import build_body

Guidance = Literal["none", "addition", "channels", "windows"]


def guide_size(size: Size, patch: int, tokens: int) -> Size:
    """Return the size in whole patches, at most `tokens`, nearest to the shape of an image of `size`.

    The image is not enlarged, except to a whole patch.
    """
    height, width = size
    scale = min(1.0, math.sqrt(tokens * patch**2 / (height * width)))
    rows, columns = (max(1, round(side * scale / patch)) for side in size)
    while rows * columns > tokens and (rows, columns) != (1, 1):
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return rows * patch, columns * patch


def guide_image(images: Tensor, patch: int, tokens: int) -> Tensor:
    """Resize images (B, N, H, W) to `guide_size`."""
    height, width = images.shape[-2:]
    rows, columns = guide_size((height, width), patch, tokens)
    if rows != height:
        images = resize_matrix(height, rows).to(images) @ images
    if columns != width:
        images = images @ resize_matrix(width, columns).to(images).mT
    return images


def resize_matrix(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) of an antialiased linear resize along one side.

    It equals `interpolate(mode="bilinear", antialias=True)`, which ONNX does not have.
    """
    scale = old / new
    reach = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(old, dtype=torch.float64) + 0.5
    table = (1 - (pixels - centres[:, None]).abs() / reach).clamp(min=0)
    return (table / table.sum(1, keepdim=True)).float()


@dataclass(frozen=True)
class RestoredImage(Output):
    """An image of 0 to 1, not clamped; an output of the restoration head alone. count: of its channels."""

    count: int = 3
    align_corners: bool | None = None
    name: ClassVar[str] = "image"

    @property
    def channels(self) -> int:
        return self.count

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        raise ValueError("the output 'image' needs the head 'restoration'; name that head, or another output")

    def initialise(self, last: nn.Conv2d) -> None:
        self.branch(0, False)


class RestorationHead(DenseHead):
    """Images and their features to restored images.

    in_channels: of the backbone's maps, shallow to deep. body: a name of `BODIES` or the options of `Restormer`.
    guidance: "channels" and "windows" are cross-attention between channels, or between the pixels of windows;
    "addition" adds; "none" is the body alone, for which no features are computed. query: the side of the queries in the
    attention, "dino" or "restoration". width: channels of the fused features. window: side of the windows, in pixels of
    each level. tokens: the largest number of patches that the backbone reads per image; larger images are reduced for
    it.
    """

    reads_pixels = True

    @checked
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
        output = next(iter(outputs.values()))
        if len(outputs) != 1 or not isinstance(output, RestoredImage):
            raise ValueError(f"the head 'restoration' has one output, an image, and was given {', '.join(outputs)}")
        self.body = build_body(body, output.count)
        self.guidance, self.query, self.width, self.window, self.tokens = guidance, query, width, window, tokens
        self.in_channels = tuple(in_channels)
        self.reads_features = guidance != "none"
        self.psf: PixelSemanticFusion | None = None
        self.fusions = nn.ModuleList()
        if self.reads_features:
            self.psf = PixelSemanticFusion(self.in_channels, width)
            makers: dict[str, Callable[[int, int], LevelFusion]] = {
                "addition": lambda dim, heads: AddFusion(width, dim),
                "channels": lambda dim, heads: ChannelFusion(width, dim, heads, query),
                "windows": lambda dim, heads: WindowFusion(width, dim, heads, query, window),
            }
            levels = zip(self.body.dims, self.body.heads, strict=True)
            self.fusions.extend(makers[guidance](dim, heads) for dim, heads in levels)

    def backbone_input(self, images: Tensor, patch: int) -> Tensor:
        """Return the images in whole patches, `tokens` at most."""
        return guide_image(images, patch, self.tokens)

    def forward(
        self, features: Features | None, images: Tensor | None = None, size: Size | None = None
    ) -> dict[str, Tensor]:
        """Return the output's name -> (B, N, H, W), of 0 to 1 if `images` are.

        features: of `backbone_input(images)`; None without guidance.
        """
        if images is None:
            raise ValueError("the head 'restoration' reads the images themselves; give them as images=, of 0 to 1")
        guide = None
        if self.psf is not None:
            if features is None:
                raise ValueError(
                    f"guidance={self.guidance!r} needs features; give those of head.backbone_input(images)"
                )
            guide = partial(_guide, self.fusions, self.psf(features.maps))
        restored = self.body(images, guide)
        return {name: restored if size is None else resize(restored, size, False) for name in self.outputs}

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        return self.forward(features, images)

    def expert_weights(self, features: Features) -> Tensor:
        """Return the weight of each layer per image, (B, layers)."""
        if self.psf is None:
            raise ValueError("guidance='none' has no experts; there are weights with addition, channels or windows")
        return self.psf.gate(features.maps)

    def options(self) -> dict[str, Any]:
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


def _guide(fusions: nn.ModuleList, fused: Tensor, level: int, x: Tensor) -> Tensor:
    return fusions[level](x, fused)
