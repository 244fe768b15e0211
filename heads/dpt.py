"""DPT: maps of four layers, reassembled as a pyramid and fused from deep to shallow.

Ranftl, Bochkovskiy and Koltun, Vision Transformers for Dense Prediction, ICCV 2021. One module covers the published
variants: DPT and MiDaS, Depth Anything, DINOv2, DINOv3, VGGT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Features, Size, check_channels
from heads.head import Neck
from heads.layers import resize
from heads.options import check_length, checked

Readout = Literal["ignore", "add", "project"]
Residual = Literal["input", "activated"]
FusionSize = Literal["level", "double"]
Resample = Literal["learned", "bilinear"]
LEVELS = 4


class Reassemble(nn.Module):
    """The map of one layer, with its class token, as one level (B, width, h * factor, w * factor)."""

    def __init__(
        self,
        in_channels: int,
        middle: int | None,
        width: int,
        factor: float,
        readout: Readout,
        input_norm: bool,
        resample: Resample,
    ) -> None:
        super().__init__()
        self.mode, self.factor = readout, factor
        self.norm = nn.BatchNorm2d(in_channels) if input_norm else None
        self.readout = nn.Linear(2 * in_channels, in_channels) if readout == "project" else None
        self.project = nn.Conv2d(in_channels, middle, 1) if middle else None
        middle = middle or in_channels
        self.resize: nn.Module | None = None
        if factor > 1 and resample == "learned":
            self.resize = nn.ConvTranspose2d(middle, middle, int(factor), stride=int(factor))
        elif factor < 1:
            self.resize = nn.Conv2d(middle, middle, 3, stride=round(1 / factor), padding=1)
        self.adapt = nn.Conv2d(middle, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        """x: (B, C, h, w); class_token: (B, C), read by `add` and `project`."""
        if self.norm is not None:
            x = self.norm(x)
        if self.mode == "add" and class_token is not None:
            x = x + class_token[:, :, None, None]
        elif self.readout is not None and class_token is not None:
            # the product with [patch, class token] is a sum of two; that of the class token is needed once per image
            patch, token = self.readout.weight.chunk(2, 1)
            shift = F.linear(class_token, token, self.readout.bias)  # B, C
            x = F.linear(x.permute(0, 2, 3, 1), patch) + shift[:, None, None]  # B, h, w, C
            x = F.gelu(x).permute(0, 3, 1, 2)
        x = _fast_layout(x)
        if self.project is not None:
            x = self.project(x)
        if self.resize is not None:
            x = self.resize(x)
        x = self.adapt(x)
        if self.factor > 1 and self.resize is None:
            x = resize(x, (int(x.shape[-2] * self.factor), int(x.shape[-1] * self.factor)), align_corners=False)
        return x


def _fast_layout(x: Tensor) -> Tensor:
    """Copy to the memory layout in which the convolutions of the whole decoder are fastest.

    That is channels last, but for training on a CPU, where its backward pass is slower. A copy, because `contiguous`
    keeps the odd strides that a batch of one can have, from which convolutions fall back to channels first.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return x.contiguous()
    return x.clone(memory_format=torch.channels_last)


class ResidualConvUnit(nn.Module):
    """Two convolutions, each behind a ReLU, added to the input, or to its ReLU if `residual` is "activated"."""

    def __init__(self, width: int, batch_norm: bool, bias: bool, residual: Residual) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(width) if batch_norm else None
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(width) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        if self.residual == "activated":
            x = y
        y = self.conv1(y)
        if self.norm1 is not None:
            y = self.norm1(y)
        y = self.conv2(F.relu(y, inplace=True))
        if self.norm2 is not None:
            y = self.norm2(y)
        return y.add_(x)


class FeatureFusionBlock(nn.Module):
    """The fused map of the deeper levels, plus this level's map, resized to the next level."""

    def __init__(self, width: int, first: bool, batch_norm: bool, bias: bool, residual: Residual, align: bool) -> None:
        super().__init__()
        self.align_corners = align
        self.unit1 = ResidualConvUnit(width, batch_norm, bias, residual) if first else None
        self.unit2 = ResidualConvUnit(width, batch_norm, bias, residual)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: Size) -> Tensor:
        """Fuse `level` (B, width, h, w) with `deeper`, None at the deepest level: (B, width, *size)."""
        if deeper is not None:
            level = resize(level, (deeper.shape[-2], deeper.shape[-1]), align_corners=False)
        x = level if self.unit1 is None else self.unit1(level)
        x = x if deeper is None else x + deeper
        # a 1x1 convolution commutes with a bilinear resize, and the map has a quarter of the pixels before it
        return resize(self.project(self.unit2(x)), size, self.align_corners)


class DPT(Neck):
    """Features of four layers to one map (B, width, h, w), at eight times the token grid.

    in_channels: of each map; of a backbone with three blocks, the deepest map makes the two coarse levels. width:
    channels of the fused map. reassemble: channels of each level between projection and resize; by default 1/8, 1/4,
    1/2 and all of the map's (DINOv2), and for pyramids no projection (None).
    strides: of the maps of a pyramid; None for maps of one stride, which are resized by 4, 2, 1 and 1/2.

    readout: how the class token is read, for all levels or per level; registers are never read. batch_norm, bias,
    residual: of the residual units; `residual="activated"` adds to relu(x), as implementations whose first ReLU works
    in place do (VGGT). input_norm: BatchNorm of every map (DINOv3). project: a last 3x3 convolution with ReLU (DINOv2,
    DINOv3). deepest_unit: a first residual unit at the deepest level too (segmentation_models_pytorch). align_corners:
    of the resizes. fusion_size: where the grid is odd, a fusion is resized to the size of the next `level`, or to
    `double` its own, and the next level's map to that (DINOv2, DINOv3, DPT of transformers). resample: how the shallow
    levels are enlarged, by a transposed convolution (`learned`, all published heads), or by interpolation after the
    level's 3x3 convolution (`bilinear`), which costs less and leaves no grid in the map after a short training.
    """

    @checked
    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 256,
        reassemble: Sequence[int | None] | None = None,
        strides: Sequence[int] | None = None,
        readout: Readout | Sequence[Readout] = "ignore",
        batch_norm: bool = False,
        bias: bool = True,
        residual: Residual = "input",
        input_norm: bool = False,
        project: bool = False,
        deepest_unit: bool = False,
        align_corners: bool = True,
        fusion_size: FusionSize = "level",
        resample: Resample = "learned",
    ) -> None:
        super().__init__()
        self.in_channels, self.strides = tuple(in_channels), None if strides is None else tuple(strides)
        three = strides is None and len(self.in_channels) == LEVELS - 1
        self.reads = (0, 1, 2, 2) if three else tuple(range(len(self.in_channels)))  # map of each level
        channels = tuple(self.in_channels[i] for i in self.reads)
        if reassemble is None:
            reassemble = [None if strides else max(c >> (3 - i), 1) for i, c in enumerate(channels)]
        self.reassemble_channels = tuple(reassemble)
        self.readouts = (readout,) * LEVELS if isinstance(readout, str) else tuple(readout)
        for name, values in (
            ("in_channels", channels),
            ("reassemble", self.reassemble_channels),
            ("strides", self.strides),
            ("readout", self.readouts),
        ):
            if values is not None:
                check_length(name, values, LEVELS)
        self.width = self.auxiliary_width = width
        self.residual, self.align_corners, self.fusion_size = residual, align_corners, fusion_size
        self.resample = resample
        self.flags = {"batch_norm": batch_norm, "bias": bias, "input_norm": input_norm, "project": project}
        self.flags |= {"deepest_unit": deepest_unit, "align_corners": align_corners}
        self.reassemble = nn.ModuleList(
            Reassemble(c, middle, width, factor, choice, input_norm, resample)
            for c, middle, factor, choice in zip(
                channels, self.reassemble_channels, self._factors(), self.readouts, strict=True
            )
        )
        self.fusion = nn.ModuleList(
            FeatureFusionBlock(width, deepest_unit or i < LEVELS - 1, batch_norm, bias, residual, align_corners)
            for i in range(LEVELS)
        )
        self.project = nn.Conv2d(width, width, 3, padding=1) if project else None

    def paths(self, features: Features, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the fused map, and the one before it, at half its size."""
        check_channels(features.maps, self.in_channels)
        features.check_strides(self.strides)
        if set(self.readouts) != {"ignore"} and not features.has_class_token:
            raise ValueError(
                f"readout={self.options()['readout']!r} reads the class token, and these features have none; "
                "use readout='ignore'"
            )
        levels = [
            reassemble(features.maps[i], features.prefix[i][:, 0] if readout != "ignore" else None)
            for reassemble, i, readout in zip(self.reassemble, self.reads, self.readouts, strict=True)
        ]
        x: Tensor | None = None
        fused: list[Tensor] = []
        for i in reversed(range(LEVELS)):
            height, width = (2 * n for n in (levels[i] if x is None else x).shape[-2:])
            if i and self.fusion_size == "level":
                height, width = levels[i - 1].shape[-2:]
            x = self.fusion[i](levels[i], x, (height, width))
            fused.append(x)
        last = fused[-1] if self.project is None else F.relu(self.project(fused[-1]), inplace=True)
        return last, fused[-2]

    def options(self) -> dict[str, Any]:
        return {
            "name": "dpt",
            "in_channels": list(self.in_channels),
            "width": self.width,
            "reassemble": list(self.reassemble_channels),
            "strides": None if self.strides is None else list(self.strides),
            "readout": self.readouts[0] if len(set(self.readouts)) == 1 else list(self.readouts),
            "residual": self.residual,
            **self.flags,
            "fusion_size": self.fusion_size,
            "resample": self.resample,
        }

    def _factors(self) -> tuple[float, ...]:
        """Return the factor by which each map is resized, so that the strides of the levels are as 1, 2, 4 and 8."""
        if self.strides is None:
            return (4, 2, 1, 0.5)
        factors = tuple(s / (self.strides[0] * 2**i) for i, s in enumerate(self.strides))
        for factor, stride in zip(factors, self.strides, strict=True):
            if not (factor.is_integer() or (1 / factor).is_integer()):
                raise ValueError(
                    f"strides={self.strides}: {stride} is no whole multiple or part of its level's stride, which "
                    "doubles from map to map; choose other layers, such as those of strides (4, 8, 16, 32)"
                )
        return factors
