"""The main directions of features as colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.media.draw import Picture, to_picture
from heads.features import Features

Colours = Literal["rgb", "hsv"]
SHARED = 64  # images at most, evenly spread, that shared colours are fitted to
ROBUST = (0.02, 0.98)  # quantiles that become 0 and 1


@dataclass(frozen=True)
class PCA:
    """Main directions of the patches it was fitted to.

    low, high: the values of each direction that become 0 and 1. foreground: the direction whose positive side is the
    object, as (C,) and an offset; the colours were then fitted to the object alone and the rest is black.
    """

    mean: Tensor  # C
    directions: Tensor  # C, 3
    low: Tensor  # 3
    high: Tensor  # 3
    foreground: tuple[Tensor, Tensor] | None = None

    @classmethod
    def fit(cls, batches: Iterable[Tensor], foreground: bool = False) -> Self:
        """From features (B, C, h, w), one or several batches that share colours. Means and directions take one pass;
        quantiles, and with `foreground` a second PCA, take the patches of all batches, so give a sample of large sets."""
        maps = list(batches)
        rows = torch.cat([m.float().permute(0, 2, 3, 1).flatten(0, 2) for m in maps])  # N, C
        split = None
        if foreground:
            mean, direction = _main(rows, 1)
            direction = direction[:, 0] * _inward(maps, mean, direction[:, 0])
            split = direction, mean @ direction
            inside = rows[rows @ direction > split[1]]
            rows = inside if len(inside) > 3 else rows
        mean, directions = _main(rows, 3)
        scores = (rows - mean) @ directions
        step = max(1, len(scores) // 1_000_000)
        low, high = (scores[::step].quantile(q, dim=0) for q in ROBUST)
        return cls(mean, directions, low, high, split)

    def scores(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> values of the directions in 0..1, (B, 3, h, w); before black is laid over the rest."""
        rows = features.float().permute(0, 2, 3, 1) - self.mean
        spread = self.high - self.low
        silent = spread <= 1e-5 * (self.mean.norm() + 1e-12)
        values = (rows @ self.directions - self.low) / spread.masked_fill(silent, 1.0)
        return torch.where(silent, 0.5, values).clamp(0, 1).permute(0, 3, 1, 2)

    def inside(self, features: Tensor) -> Tensor:
        """Where the object is: (B, 1, h, w) bool."""
        if self.foreground is None:
            return features.new_ones(len(features), 1, *features.shape[-2:], dtype=torch.bool)
        direction, offset = self.foreground
        return ((features.float().permute(0, 2, 3, 1) @ direction) > offset)[:, None]

    def __call__(
        self, features: Tensor, colours: Colours = "rgb", size: tuple[int, int] | None = None, smooth: bool = False
    ) -> Tensor:
        """Colours (B, 3, h, w) in 0..1, or of `size`: cells kept square, or blended if `smooth`.

        hsv: the first two directions are the angle of the colour wheel and how strong the colour is, the third is brightness.
        """
        values, inside = self.scores(features), self.inside(features).float()
        if size is not None:
            mode = {"mode": "bicubic", "align_corners": False} if smooth else {"mode": "nearest-exact"}
            values, inside = (F.interpolate(x, size=size, **mode).clamp(0, 1) for x in (values, inside))
        if colours == "hsv":
            values = _wheel(values)
        elif colours != "rgb":
            raise ValueError(f"colours={colours!r}: expected one of {', '.join(get_args(Colours))}")
        return values * (inside if smooth else (inside > 0.5))


def pca_picture(
    features: Features,
    colours: Colours = "rgb",
    foreground: bool = False,
    smooth: bool = False,
    shared: PCA | None = None,
) -> Picture:
    """Draw the deepest map of one image (a batch of one) at the image's size, by its own main directions or shared ones.

    colours, smooth: as for `PCA`. foreground: as for `PCA.fit`, unless `shared` was fitted already.
    """
    pca = shared or PCA.fit([features.maps[-1]], foreground)
    drawn = pca(features.maps[-1], colours, features.padded_size, smooth)
    if features.resized:
        drawn = F.interpolate(drawn, size=features.image_size, mode="nearest-exact")
    else:
        drawn = features.to_image(drawn)
    return to_picture(drawn[0])


def _main(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (C,) and main directions (C, count) of rows (N, C); of each, the loudest channel is positive."""
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    mean = rows.mean(0)
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=exact, device=rows.device)
    for part in (rows - mean).split(65536):
        gram += (part.mT @ part).to(exact)
    directions = torch.linalg.eigh(gram).eigenvectors.flip(-1)[:, :count].to(rows.dtype)
    loudest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * torch.where(loudest < 0, -1.0, 1.0)
    return mean, F.pad(directions, (0, count - directions.shape[1]))


def _inward(maps: Iterable[Tensor], mean: Tensor, direction: Tensor) -> float:
    """1 or -1: the sign of the side that keeps away from the borders of pictures more."""
    border = middle = torch.zeros(())
    for m in maps:
        scores = (m.float().permute(0, 2, 3, 1) - mean) @ direction  # B, h, w
        edge = torch.zeros_like(scores, dtype=torch.bool)
        edge[:, [0, -1]], edge[:, :, [0, -1]] = True, True
        border = border + scores[edge].sum().cpu()
        middle = middle + scores[~edge].sum().cpu()
    return 1.0 if middle >= border else -1.0


def _wheel(values: Tensor) -> Tensor:
    """Directions (B, 3, h, w) in 0..1 as a colour wheel, RGB."""
    x, y, z = (values - 0.5).unbind(1)
    hue = torch.atan2(y, x) / (2 * torch.pi)  # turns
    strength, bright = (2 * torch.hypot(x, y)).clamp_max(1), 0.35 + 0.65 * (z + 0.5)
    third = torch.tensor([0.0, 2 / 3, 1 / 3], device=values.device).view(1, 3, 1, 1)
    full = ((6 * ((hue[:, None] + third) % 1) - 3).abs() - 1).clamp(0, 1)
    return bright[:, None] * (1 - strength[:, None] * (1 - full))
