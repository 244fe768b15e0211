"""Outputs of a head: plain descriptions that can be saved, and the layers that they need on a decoder.

An output has `channels` logits per pixel and a rule that turns them into values (`decode`). On a decoder's fused map
the logits come from a small stack of convolutions (`branch`), on a linear head from one 1x1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Size
from heads.layers import resize
from heads.options import Fraction, NotNegative, Positive, Range, check_length, check_number, check_options

DepthKind = Literal["metric", "inverse_relative", "log"]
MaskKind = Literal["instance", "panoptic", "semantic"]
Activation = Literal["relu", "sigmoid", "exp", "softplus", "identity"]
Upsample = Literal["double", "image", "none"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "softplus": F.softplus, "exp": torch.exp}
FARTHEST_INVERSE = 1e-8  # no depth is beyond 1 / this


class Output:
    """Base of the outputs; each is a frozen dataclass, checked against its type hints.

    `align_corners` is that of the last resize, to the image; None follows the other resizes of the head.
    """

    name: ClassVar[str]  # in saved descriptions
    align_corners: bool | None

    def __post_init__(self) -> None:
        check_options(type(self), vars(self))

    @property
    def channels(self) -> int:
        """The number of logits per pixel."""
        raise NotImplementedError

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        """Return layers from a fused map (B, width, h, w) and the padded size to logits (B, channels, h', w')."""
        raise NotImplementedError

    def decode(self, logits: Tensor, training: bool = False) -> Tensor:
        """Turn logits (B, channels, h, w) into values; by default they are the values."""
        return logits

    def initialise(self, last: nn.Conv2d) -> None:
        """Initialise the layer that makes the logits, where its default would hinder learning."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the name of the output."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Masks(Output):
    """Masks with logits of `count` classes and of no object each, from a head of queries.

    kind: what the masks stand for: objects that may overlap (`instance`), objects and regions that divide the image
    (`panoptic`), or regions of one class each (`semantic`). things: for each class whether its objects are counted;
    None if all are.
    """

    count: int
    kind: MaskKind = "instance"
    things: tuple[bool, ...] | None = None
    align_corners: bool | None = None
    name: ClassVar[str] = "masks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.things is not None:
            object.__setattr__(self, "things", tuple(self.things))
            check_length("things", self.things, self.count, "class")

    @property
    def channels(self) -> int:
        return self.count

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        raise ValueError("the output 'masks' needs a head of queries; name the head 'eomt', or another output")

    def initialise(self, last: nn.Conv2d) -> None:
        self.branch(0, False)


class DepthBranch(nn.Module):
    """Depth layers of DPT: convolution, resize, convolution, ReLU, 1x1 convolution."""

    def __init__(self, width: int, hidden: int, channels: int, upsample: Upsample, align_corners: bool) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.upsample, self.align_corners = upsample, align_corners
        self.conv1 = nn.Conv2d(width, half, 3, padding=1)
        self.conv2 = nn.Conv2d(half, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor, padded_size: Size) -> Tensor:
        """(B, width, h, w) to (B, channels, h', w')."""
        x = self.conv1(x)
        if self.upsample == "image":
            x = resize(x, padded_size, self.align_corners)
        elif self.upsample == "double" and x.shape[-2] < padded_size[0]:
            x = resize(x, (2 * x.shape[-2], 2 * x.shape[-1]), self.align_corners)
        return self.conv3(F.relu(self.conv2(x), inplace=True))


class ClassBranch(nn.Module):
    """Segmentation layers of DPT. The 1x1 convolution comes before the resize, with which it commutes."""

    def __init__(self, width: int, count: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, count, 1)

    def forward(self, x: Tensor, padded_size: Size) -> Tensor:
        """(B, width, h, w) to logits (B, count, h, w)."""
        return self.classifier(self.dropout(F.relu(self.norm(self.conv(x)), inplace=True)))


@dataclass(frozen=True)
class Regression(Output):
    """One number per pixel, usually depth.

    activation: `relu`, `exp` and `softplus` are added to `min_depth`; `sigmoid` spans [min_depth, max_depth].
    max_depth: the largest value in evaluation. kind: what the number means; `log` is the logarithm of depth.
    upsample: the size at which the last two convolutions run: `double` the fused map, unless that has the image's size
    already (DPT, DINOv2), the padded `image` (Depth Anything), or the fused map itself (`none`).
    inverse: scale and shift of an inverse depth x; the value is 1 / (scale x + shift) (DPT on NYUv2 and KITTI).
    """

    activation: Activation = "relu"
    max_depth: Positive | None = None
    min_depth: NotNegative = 0.0
    kind: DepthKind = "metric"
    hidden: int = 32
    upsample: Upsample = "double"
    align_corners: bool | None = None
    inverse: tuple[Positive, NotNegative] | None = None
    name: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_depth is not None:
            check_number("max_depth", self.max_depth, Range(self.min_depth, above=True))
        elif self.activation == "sigmoid":
            raise ValueError(
                "activation='sigmoid' needs max_depth, the value it tends to; give it, such as max_depth=10.0"
            )
        if self.activation == "identity" and self.min_depth:
            raise ValueError(f"min_depth={self.min_depth}: activation='identity' has no lower bound; use 'softplus'")
        if self.inverse is not None:
            object.__setattr__(self, "inverse", tuple(self.inverse))
            if self.kind != "metric":
                raise ValueError(f"inverse={self.inverse} is for kind='metric', got {self.kind!r}; leave it out")
        if self.kind == "log" and (self.activation != "identity" or self.max_depth is not None):
            raise ValueError(
                "kind='log' is the logarithm of depth, which is negative below 1; expected activation='identity' and "
                f"no max_depth, got {self.activation!r} and {self.max_depth}; use them, or kind='metric'"
            )

    @property
    def channels(self) -> int:
        return 1

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        branch = DepthBranch(width, self.hidden, self.channels, self.upsample, align_corners)
        self.initialise(branch.conv3)
        return branch

    def initialise(self, last: nn.Conv2d) -> None:
        """Start a ReLU above zero: below zero everywhere it would have no gradient."""
        if self.activation == "relu" and last.bias is not None:
            nn.init.ones_(last.bias)

    def decode(self, logits: Tensor, training: bool = False) -> Tensor:
        """Turn logits (B, 1, h, w) into values, in fp32: half precision would be visible as steps."""
        x = logits.float()
        if self.activation == "sigmoid" and self.max_depth is not None:
            return self.min_depth + (self.max_depth - self.min_depth) * x.sigmoid()
        if self.activation != "identity":
            x = ACTIVATIONS[self.activation](x) + self.min_depth
        if self.inverse is not None:
            scale, shift = self.inverse
            x = 1 / (scale * x + shift).clamp(min=FARTHEST_INVERSE)
        return x if training or self.max_depth is None else x.clamp(max=self.max_depth)


@dataclass(frozen=True)
class Bins(Output):
    """Metric depth as the expectation over `count` fixed depths.

    spacing: `linear`, or `log` (equal steps of log depth). normalisation of the logits: `linear` is relu + 0.1 over its
    sum, `sigmoid` is the sigmoid over its sum. logits: return them too in training, for a loss on the bins.
    """

    count: int = 256
    min_depth: NotNegative = 0.001
    max_depth: Positive = 10.0
    spacing: Literal["linear", "log"] = "linear"
    normalisation: Literal["linear", "softmax", "sigmoid"] = "linear"
    hidden: int = 32
    upsample: Upsample = "double"
    logits: bool = False
    align_corners: bool | None = None
    name: ClassVar[str] = "bins"
    kind: ClassVar[DepthKind] = "metric"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2:
            raise ValueError(f"count={self.count}: expected at least 2 bins; use Regression for a single number")
        check_number("min_depth", self.min_depth, Range(0, above=self.spacing == "log"))
        check_number("max_depth", self.max_depth, Range(self.min_depth, above=True))

    @property
    def channels(self) -> int:
        return self.count

    def depths(self, device: torch.device | None = None) -> Tensor:
        """Return the depth of every bin, (count,), in fp32."""
        if self.spacing == "linear":
            return torch.linspace(self.min_depth, self.max_depth, self.count, device=device)
        return torch.linspace(math.log(self.min_depth), math.log(self.max_depth), self.count, device=device).exp()

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        return DepthBranch(width, self.hidden, self.count, self.upsample, align_corners)

    def decode(self, logits: Tensor, training: bool = False) -> Tensor:
        """Turn logits (B, count, h, w) into depth (B, 1, h, w), in fp32."""
        depths = self.depths(logits.device)
        x, offset = logits.float(), 0.0
        if self.normalisation == "softmax":
            x = x.softmax(1)
        elif self.normalisation == "sigmoid":
            x = x.sigmoid()
        else:
            x, offset = x.relu(), 0.1
        # sum of weight * depth and sum of weights in one pass over the largest tensor of the head
        rows = torch.stack([depths, torch.ones_like(depths)])
        with torch.autocast(logits.device.type, enabled=False):
            weighted, total = F.conv2d(x, rows[:, :, None, None], offset * rows.sum(1)).split(1, 1)
        return weighted / total


@dataclass(frozen=True)
class Classes(Output):
    """Logits of `count` classes per pixel.

    dropout: before the classifier on a decoder (a linear head has its own). auxiliary: in training, also logits from a
    shallower stage of the decoder.
    """

    count: int
    dropout: Fraction = 0.1
    auxiliary: bool = False
    names: tuple[str, ...] | None = None
    align_corners: bool | None = None
    name: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
            check_length("names", self.names, self.count, "class")

    @property
    def channels(self) -> int:
        return self.count

    def branch(self, width: int, align_corners: bool) -> nn.Module:
        return ClassBranch(width, self.count, self.dropout)
