"""The principal components of features as colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.media.draw import Picture, to_picture
from heads.features import Features

Colours = Literal["rgb", "hsv", "hue"]
ROBUST = (0.02, 0.98)  # quantiles that become 0 and 1


@dataclass(frozen=True)
class PCA:
    """Three principal components of the patches it was fitted to.

    low, high: the values of each component that become 0 and 1. foreground: a direction (C,) and an offset, with the
    object on the positive side; the components were then fitted to the object alone and the rest is drawn black.
    """

    mean: Tensor  # C
    directions: Tensor  # C, 3
    low: Tensor  # 3
    high: Tensor  # 3
    foreground: tuple[Tensor, Tensor] | None = None

    @classmethod
    def fit(cls, batches: Iterable[Tensor], foreground: bool = False, colours: Colours = "rgb") -> Self:
        """Fit to features (B, C, h, w) of one or several batches. Memory holds them all; pass a sample of a large set.

        foreground: first separate object and background by the sign of the first component. colours: those for which
        components are scaled: "hue" from the least to the largest value, the others leave out outliers.
        """
        if colours not in get_args(Colours):
            raise ValueError(f"colours={colours!r}: expected one of {', '.join(get_args(Colours))}")
        maps = list(batches)
        rows = torch.cat([m.float().permute(0, 2, 3, 1).flatten(0, 2) for m in maps])  # N, C
        split = None
        if foreground:
            mean, direction = _components(rows, 1)
            direction = direction[:, 0] * _centre_sign(maps, mean, direction[:, 0])
            split = direction, mean @ direction
            inside = rows[rows @ direction > split[1]]
            rows = inside if len(inside) > 3 else rows
        mean, directions = _components(rows, 3)
        scores = (rows - mean) @ directions
        step = max(1, len(scores) // 1_000_000)
        low, high = (scores[::step].quantile(q, dim=0) for q in ((0.0, 1.0) if colours == "hue" else ROBUST))
        return cls(mean, directions, low, high, split)

    def scores(self, features: Tensor) -> Tensor:
        """Return the components (B, 3, h, w) of features (B, C, h, w), scaled to 0..1, with the background."""
        rows = features.float().permute(0, 2, 3, 1) - self.mean
        scale = self.high - self.low
        constant = scale <= 1e-5 * (self.mean.norm() + 1e-12)
        values = (rows @ self.directions - self.low) / scale.masked_fill(constant, 1.0)
        return torch.where(constant, 0.5, values).clamp(0, 1).permute(0, 3, 1, 2)

    def inside(self, features: Tensor) -> Tensor:
        """Return the mask of the object, (B, 1, h, w) bool; everything without `foreground`."""
        if self.foreground is None:
            return features.new_ones(len(features), 1, *features.shape[-2:], dtype=torch.bool)
        direction, offset = self.foreground
        return ((features.float().permute(0, 2, 3, 1) @ direction) > offset)[:, None]

    def __call__(
        self, features: Tensor, colours: Colours = "rgb", size: tuple[int, int] | None = None, smooth: bool = False
    ) -> Tensor:
        """Return colours (B, 3, h, w) in 0..1, or of `size` by nearest neighbour (bicubic interpolation if `smooth`).

        hsv: the first two components give hue (angle) and saturation (radius), the third gives brightness. hue: the
        first component is the hue, the second the value, at a saturation of 0.8, as in DINOv2's and DINOv3's write-ups.
        """
        values, inside = self.scores(features), self.inside(features).float()
        if size is not None:
            mode = {"mode": "bicubic", "align_corners": False} if smooth else {"mode": "nearest-exact"}
            values, inside = (F.interpolate(x, size=size, **mode).clamp(0, 1) for x in (values, inside))
        if colours == "hsv":
            values = _hsv(values)
        elif colours == "hue":
            values = _coloured(values[:, 0], 0.8, values[:, 1])
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
    """Draw the deepest map of one image (a batch of one) at the image's size.

    colours, smooth: as for `PCA`. foreground: as for `PCA.fit`. shared: a fitted PCA to use instead of the image's own.
    """
    pca = shared or PCA.fit([features.maps[-1]], foreground, colours)
    drawn = pca(features.maps[-1], colours, features.padded_size, smooth)
    if features.resized:
        drawn = F.interpolate(drawn, size=features.image_size, mode="nearest-exact")
    else:
        drawn = features.to_image(drawn)
    return to_picture(drawn[0])


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return mean (C,) and principal directions (C, count) of rows (N, C), the largest entry of each positive."""
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    mean = rows.mean(0)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=exact, device=rows.device)
    for part in (rows - mean).split(65536):
        covariance += (part.mT @ part).to(exact)
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, :count].to(rows.dtype)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    return mean, F.pad(directions, (0, count - directions.shape[1]))


def _centre_sign(maps: Iterable[Tensor], mean: Tensor, direction: Tensor) -> float:
    """Return the sign, 1 or -1, of the side of a direction that lies more in the middle of images than at borders."""
    border = middle = torch.zeros(())
    for m in maps:
        scores = (m.float().permute(0, 2, 3, 1) - mean) @ direction  # B, h, w
        edge = torch.zeros_like(scores, dtype=torch.bool)
        edge[:, [0, -1]], edge[:, :, [0, -1]] = True, True
        border = border + scores[edge].sum().cpu()
        middle = middle + scores[~edge].sum().cpu()
    return 1.0 if middle >= border else -1.0


def _hsv(values: Tensor) -> Tensor:
    """Map components (B, 3, h, w) in 0..1 to RGB by hue, saturation and brightness."""
    x, y, z = (values - 0.5).unbind(1)
    saturation = (2 * torch.hypot(x, y)).clamp_max(1)
    return _coloured(torch.atan2(y, x) / (2 * torch.pi), saturation, 0.35 + 0.65 * (z + 0.5))


def _coloured(hue: Tensor, saturation: Tensor | float, value: Tensor) -> Tensor:
    """Return RGB (B, 3, h, w) of hues in turns, saturations and values (B, h, w)."""
    third = torch.tensor([0.0, 2 / 3, 1 / 3], device=hue.device).view(1, 3, 1, 1)
    full = ((6 * ((hue[:, None] + third) % 1) - 3).abs() - 1).clamp(0, 1)
    saturation = saturation[:, None] if isinstance(saturation, Tensor) else saturation
    return value[:, None] * (1 - saturation * (1 - full))
