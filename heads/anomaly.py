"""Anomaly maps without training: the distance of each patch to its nearest neighbour among patches of good images.

Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.features import Features
from heads.layers import resize
from heads.memory import BankHead, nearest
from heads.options import Fraction, NotNegative, checked
from heads.outputs import Output, Regression


class AnomalyHead(BankHead):
    """Distance 1 - cosine of each patch to the nearest patch of good images (AnomalyDINO).

    in_channels: of each map. patches: in the bank. top: the share of an image's patches, the farthest ones, whose mean
    distance is its score. sigma: of the Gaussian that smooths the map of the image's size, in pixels. threshold: the
    score above which an image is anomalous; None without one. foreground: patches count only if the first principal
    component of their image's features is above this number; 10 is published for DINOv2-S, and other backbones need
    their own; None counts all.
    """

    BORDER, CENTRE = 0.2, 0.35  # the component's sign is flipped unless so much within the border is foreground

    @checked
    def __init__(
        self,
        in_channels: int | Sequence[int],
        outputs: Mapping[str, Output],
        patches: int,
        top: Fraction = 0.01,
        sigma: NotNegative = 4.0,
        threshold: float | None = None,
        foreground: float | None = None,
    ) -> None:
        super().__init__(in_channels, outputs, patches)
        if list(outputs) != ["anomaly"] or not isinstance(outputs["anomaly"], Regression):
            raise ValueError("an anomaly head has one output, anomaly, of Regression('identity')")
        self.top, self.sigma, self.threshold, self.foreground = top, sigma, threshold, foreground

    def distances(self, vectors: Tensor, bank: Tensor | None = None) -> Tensor:
        """Return the distance (...) of unit vectors (..., D) to the nearest one of the bank, or of another."""
        cosines, _ = nearest(vectors.flatten(0, -2), self.bank if bank is None else bank, 1)
        return (1 - cosines[:, 0].float()).clamp_min(0).unflatten(0, vectors.shape[:-1])

    def score(self, distances: Tensor) -> Tensor:
        """Return the score (B,) of distances (B, h, w)."""
        flat = distances.flatten(1)
        return flat.topk(max(1, int(self.top * flat.shape[1])), dim=1).values.mean(1)

    def inside(self, features: Features) -> Tensor:
        """Return the patches (B, h, w) of the foreground; all without a `foreground`."""
        size = (features.maps[-1].shape[-2], features.maps[-1].shape[-1])
        if self.foreground is None:
            return features.maps[-1].new_ones(len(features.maps[-1]), *size, dtype=torch.bool)
        tokens = torch.cat([resize(m.float(), size, False) for m in features.maps], 1).flatten(2).transpose(1, 2)
        tokens = tokens - tokens.mean(1, keepdim=True)
        _, vectors = torch.linalg.eigh(tokens.transpose(1, 2) @ tokens)
        axis = vectors[..., -1]
        axis = axis * axis.gather(1, axis.abs().argmax(1, keepdim=True)).sign()  # the same sign on every machine
        first = torch.einsum("bnc,bc->bn", tokens, axis).unflatten(1, size)
        rows, columns = (slice(int(n * self.BORDER), max(int(n * (1 - self.BORDER)), 1)) for n in size)
        centre = (first > self.foreground)[:, rows, columns].float().mean((1, 2), keepdim=True)
        mask = torch.where(centre > self.CENTRE, first > self.foreground, -first > self.foreground)
        grown = F.max_pool2d(mask[:, None].float(), 3, 1, 1)
        closed = -F.max_pool2d(-F.max_pool2d(grown, 3, 1, 1), 3, 1, 1)
        return closed[:, 0] > 0

    def mask(self, inside: Tensor) -> Tensor:
        """Return the patches (B, h, w) that count: those of the foreground, or all of an image that has none."""
        return inside | ~inside.flatten(1).any(1)[:, None, None]

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Return distances (B, 1, h, w), 0 where a patch does not count."""
        return {"anomaly": self.counted(features, self.inside(features))}

    def counted(self, features: Features, inside: Tensor) -> Tensor:
        """Return distances (B, 1, h, w), 0 where a patch does not count; inside: what `inside` returned."""
        return (self.distances(self.vectors(features)) * self.mask(inside))[:, None]

    def options(self) -> dict[str, Any]:
        return {
            "name": "anomaly",
            "in_channels": list(self.in_channels),
            "patches": len(self.bank),
            "top": self.top,
            "sigma": self.sigma,
            "threshold": self.threshold,
            "foreground": self.foreground,
        }
