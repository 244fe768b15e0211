"""Backbone and projection heads over crops of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dense.backbone import Backbone
from pretrain.masking import VIEWS, Grid


class Output(NamedTuple):
    """What the terms of an objective see; None for what was not asked for."""

    logits: Tensor  # V*B, K, crop-major
    features: Tensor  # V*B, D: of the images, before the head
    patch_logits: Tensor | None = None  # M, K' of the chosen patches
    patches: Tensor | None = None  # 2*B, h*w, D of the global crops, before the head


class MultiCropNetwork(nn.Module):
    """A backbone and its heads: crops of all sizes run as one packed sequence where the backbone can, each head on all.

    patch_head: for chosen patches; without one they share `head`. local_norm: takes the place of the backbone's final norm
    for the class tokens of local crops (DINOv3).
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        patch_head: nn.Module | None = None,
        local_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.patch_head = patch_head
        self.local_norm = local_norm

    @property
    def prototypes(self) -> list[nn.Parameter]:
        """Parameters of the heads' last layers."""
        heads = [head for head in (self.head, self.patch_head) if head is not None]
        return [parameter for head in heads for parameter in head.prototypes]  # type: ignore[union-attr]

    def forward(
        self,
        crops: Sequence[Tensor],
        masks: Tensor | None = None,
        chosen: Tensor | None = None,
        patches: bool = False,
    ) -> Output:
        """See `Output`, of V crops (B, 3, S, S), uint8 or normalised, the two global ones first.

        masks: (2*B, h*w), true where the global crops' patches are hidden. chosen: (M,) indices among the 2*B*h*w patches
        of the global crops whose logits are wanted. patches: whether their features are.
        """
        wanted = chosen is not None or patches
        apart = VIEWS if wanted or masks is not None or self.local_norm is not None else 0
        groups = [self._images(crops[:apart])] if apart else []
        groups += [self._images(list(group)) for _, group in groupby(crops[apart:], key=lambda c: c.shape[-2:])]
        images, tokens = self.backbone.image_features(groups, masks, wanted, self.local_norm)
        logits, patch_logits = self._project(images, None if chosen is None else tokens.flatten(0, 1)[chosen])  # type: ignore[union-attr]
        return Output(logits, images, patch_logits, tokens if patches else None)

    def _project(self, images: Tensor, patches: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if patches is None:
            return self.head(images), None
        if self.patch_head is not None:
            return self.head(images), self.patch_head(patches)
        both = self.head(torch.cat((images, patches)))
        return both[: len(images)], both[len(images) :]

    def grid(self, crop: Tensor) -> Grid:
        """Rows and columns of patches that a crop (B, 3, H, W) has."""
        return grid_of(self.backbone, (crop.shape[-2], crop.shape[-1]))

    def _images(self, crops: Sequence[Tensor]) -> Tensor:
        images = torch.cat(list(crops))  # v*B, 3, S, S
        return self.backbone.normalise(images) if images.dtype == torch.uint8 else images


def grid_of(backbone: Backbone, size: tuple[int, int]) -> Grid:
    """Rows and columns of patches of an image of a size (H, W)."""
    fitted = backbone.pad_to_patch_multiple(torch.empty(1, 3, *size, device="meta"))[0]
    return fitted.shape[-2] // backbone.spec.patch, fitted.shape[-1] // backbone.spec.patch
