"""Mask queries inside the backbone: they join the last blocks of the ViT, and no decoder follows.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (EoMT), CVPR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Features, LendsBlocks, Size, check_channels
from heads.head import DenseHead
from heads.layers import ChannelNorm, resize, to_image_size
from heads.options import Fraction, as_tuple, check_length, checked
from heads.outputs import Masks, Output

Activation = Literal["gelu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
MASKED = 0.5  # probability of masked attention from which it applies outside of training


class Upscale(nn.Module):
    """Double the size of a map: transposed convolution, activation, depthwise 3x3 convolution, norm of channels."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.activation = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = ChannelNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(self.activation(self.conv1(x))))


class EoMT(DenseHead):
    """Masks and classes of `queries` that run through the last `blocks` of the backbone, beside its own tokens.

    It needs the unnormed features of the block before those, and the backbone itself. Before each of its blocks and
    behind the last one it predicts from the normed tokens: the class of a query by a linear layer, its mask by the
    product of an MLP of the query with the patches, whose map is doubled `upscales` times. In a block with masked
    attention, a query attends to patches only where it just predicted its mask.

    in_channels: of the map. upscales: see `upscales_of`. masking: for each block the probability in training that a
    query is masked, see `annealed`; in evaluation a block masks all queries if its probability is at least 1/2. None
    stands for 1 in every block. activation: of MLP and upscaling; GELU in all published models.
    """

    @checked
    def __init__(
        self,
        in_channels: int | Sequence[int],
        outputs: Mapping[str, Output],
        queries: int = 100,
        blocks: int = 3,
        upscales: int = 2,
        masking: Sequence[Fraction] | None = None,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__(outputs)
        if list(outputs) != ["masks"] or not isinstance(outputs["masks"], Masks):
            raise ValueError("a head of queries has one output, masks: {name: masks}")
        self.in_channels, self.blocks = as_tuple(in_channels), blocks
        check_length("in_channels", self.in_channels, 1)
        self.masking = (1.0,) * blocks if masking is None else tuple(masking)
        check_length("masking", self.masking, blocks, "block")
        width, act, self.activation = self.in_channels[0], ACTIVATIONS[activation], activation
        self.query = nn.Parameter(torch.randn(queries, width))
        self.class_head = nn.Linear(width, outputs["masks"].count + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), act(), nn.Linear(width, width), act(), nn.Linear(width, width)
        )
        self.upscale = nn.Sequential(*(Upscale(width, activation) for _ in range(upscales)))

    def forward(
        self,
        features: Features,
        images: Tensor | None = None,
        size: Size | None = None,
        backbone: LendsBlocks | None = None,
    ) -> dict[str, Tensor]:
        """Return `mask_logits` (B, Q, h, w) over the whole image and `class_logits` (B, Q, C + 1).

        The last class is no object. Masks have the head's own resolution, or the given size. In training there are also
        the earlier predictions, `mask_logits.0` and `class_logits.0` before the first block, and so on.
        """
        found = self.logits(features, images, backbone)
        return {n: x if n.startswith("class") else self._over_image(x, features, size) for n, x in found.items()}

    def logits(
        self, features: Features, images: Tensor | None, backbone: LendsBlocks | None = None
    ) -> dict[str, Tensor]:
        if backbone is None:
            raise ValueError("this head runs blocks of its backbone: call a DenseModel, or give backbone=")
        check_channels(features.maps, self.in_channels)
        if features.norm is not False:
            raise ValueError(f"norm={features.norm!r}: queries join tokens before the final norm; use norm=False")
        patches, prefix = features.maps[0], features.prefix[0]
        grid = (patches.shape[-2], patches.shape[-1])
        queries = self.query.to(patches.dtype).expand(patches.shape[0], -1, -1)
        tokens = torch.cat((prefix, queries, patches.flatten(2).mT), 1)
        step = backbone.last_blocks(grid, len(self.query))
        found: dict[str, Tensor] = {}
        for number, probability in enumerate(self.masking):
            mask = None
            if self.training or probability >= MASKED:
                masks, classes = self.predict(backbone.final_norm(tokens), prefix.shape[1], grid)
                if self.training:
                    found |= {f"mask_logits.{number}": masks, f"class_logits.{number}": classes}
                if probability:
                    mask = self.attention_mask(masks, prefix.shape[1], grid, probability)
            tokens = step(features.layers[0] + 1 + number, tokens, mask)
        masks, classes = self.predict(backbone.final_norm(tokens), prefix.shape[1], grid)
        return found | {"mask_logits": masks, "class_logits": classes}

    def predict(self, tokens: Tensor, prefix: int, grid: Size) -> tuple[Tensor, Tensor]:
        """Return masks (B, Q, h, w) and classes (B, Q, C + 1) of normed tokens (B, P + Q + h*w, D)."""
        first = prefix + len(self.query)
        queries, patches = tokens[:, prefix:first], tokens[:, first:]
        pixels = self.upscale(patches.mT.unflatten(2, grid))
        return torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), pixels), self.class_head(queries)

    def attention_mask(self, masks: Tensor, prefix: int, grid: Size, probability: float) -> Tensor:
        """Return where tokens attend (B, 1, N, N): queries to patches inside their masks, all else everywhere."""
        inside = resize(masks.detach(), grid, align_corners=False).flatten(2) > 0  # B, Q, h*w
        if self.training and probability < 1:
            inside = inside | (torch.rand(inside.shape[:2], device=inside.device) > probability)[..., None]
        before = prefix + len(self.query)
        return F.pad(inside, (before, 0, prefix, inside.shape[2]), value=1)[:, None]

    def _over_image(self, masks: Tensor, features: Features, size: Size | None) -> Tensor:
        """Return masks of the padded image as masks of the image."""
        if size is None:
            if features.resized or not any(features.padding):
                return masks
            pairs = zip(masks.shape[-2:], features.image_size, features.padded_size, strict=True)
            height, width = (max(1, round(cells * side / padded)) for cells, side, padded in pairs)
            size = (height, width)
        return to_image_size(masks, features, size, align_corners=False)

    def options(self) -> dict[str, Any]:
        return {
            "name": "eomt",
            "in_channels": list(self.in_channels),
            "queries": len(self.query),
            "blocks": self.blocks,
            "upscales": len(self.upscale),
            "masking": list(self.masking),
            "activation": self.activation,
        }


def upscales_of(patch: int) -> int:
    """Return how often the map of patches is doubled in published models: to cells of 4 pixels, 7 for patches of 14."""
    return max(1, int(math.log2(patch)) - 2)


def annealed(progress: float, spans: Sequence[Sequence[float]], power: float = 0.9) -> tuple[float, ...]:
    """Return each block's probability of masked attention at `progress` of the run, 0 to 1.

    It is 1 before the block's span (start, end), 0 behind it, and (1 - t)^power at the share t of it.
    """
    shares = ((progress - start) / max(end - start, 1e-9) for start, end in spans)
    return tuple((1 - min(max(share, 0.0), 1.0)) ** power for share in shares)


def default_spans(blocks: int) -> list[tuple[float, float]]:
    """Return the published spans: one after another, with a span of their length before and behind them."""
    return [((i + 1) / (blocks + 2), (i + 2) / (blocks + 2)) for i in range(blocks)]
