"""One decoder with one or several named outputs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from heads.features import Features, Size
from heads.outputs import Bins, Classes, Output
from heads.resize import to_picture


class DenseHead(nn.Module, abc.ABC):
    """`head(features)` gives a map at the image's size for each name in `outputs`.

    In training there may be more: `NAME.auxiliary` (logits of a `Classes(auxiliary=True)`) and `NAME.bins` (logits of a
    `Bins(logits=True)`).
    """

    align_corners: bool = False  # of the resize to the image, where an output leaves it open
    reads_pixels: bool = False  # whether it needs the images themselves, of 0 to 1
    reads_features: bool = True  # whether it needs features at all

    def __init__(self, outputs: Mapping[str, Output]) -> None:
        super().__init__()
        if not outputs:
            raise ValueError("a head needs at least one output; give one by name, such as depth=Regression()")
        for name, output in outputs.items():
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"output name {name!r}: expected a plain word such as 'depth'; choose another name")
            if not isinstance(output, Output):
                raise TypeError(f"output {name!r}: expected Regression, Bins or Classes, got {type(output).__name__}")
        self.outputs = dict(outputs)

    def forward(self, features: Features, images: Tensor | None = None, size: Size | None = None) -> dict[str, Tensor]:
        """Name -> (B, K, H, W), over the whole image at its own size, or at another (height, width).

        images: the images (B, 3, H, W) that gave the features, for heads that read them too.
        """
        result = {}
        for name, logits in self.logits(features, images).items():
            output = self.outputs[name.partition(".")[0]]
            align = self.align_corners if output.align_corners is None else output.align_corners
            values = output.decode(logits, self.training) if name in self.outputs else logits
            result[name] = to_picture(values, features, size, align)
            if self.training and isinstance(output, Bins) and output.logits:
                result[f"{name}.bins"] = to_picture(logits, features, size, align)
        return result

    def seen(self, images: Tensor, patch: int) -> Tensor:
        """What a backbone of this patch shall see of normalised images; by default all of them."""
        return images

    @abc.abstractmethod
    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Name -> logits over the padded frame, at the head's own resolution."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Plain data that `heads.build` needs, but for the outputs."""

    def spec(self) -> dict[str, Any]:
        """Plain data from which `heads.build` makes this head again."""
        return {**self.options(), "outputs": {name: output.to_dict() for name, output in self.outputs.items()}}


class Neck(nn.Module, abc.ABC):
    """A decoder: features to one fused map, on which any number of outputs can stand."""

    width: int  # channels of the fused map
    auxiliary_width: int | None = None  # channels of the map for an auxiliary head, where there is one
    align_corners: bool = False
    reads_pixels: bool = False  # see `DenseHead`

    def forward(self, features: Features, images: Tensor | None = None) -> Tensor:
        """The fused map, (B, width, h, w)."""
        return self.paths(features, images)[0]

    @abc.abstractmethod
    def paths(self, features: Features, images: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The fused map and a shallower one for auxiliary heads."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments as plain data, and the decoder's name."""

    def with_outputs(self, **outputs: Output) -> NeckHead:
        """A head that owns this decoder."""
        return NeckHead(self, outputs)


class NeckHead(DenseHead):
    """Outputs on the fused map of a decoder that they share."""

    def __init__(self, neck: Neck, outputs: Mapping[str, Output]) -> None:
        super().__init__(outputs)
        self.neck, self.align_corners, self.reads_pixels = neck, neck.align_corners, neck.reads_pixels
        self.branches = nn.ModuleDict({n: o.branch(neck.width, neck.align_corners) for n, o in outputs.items()})
        self.auxiliary = nn.ModuleDict()
        for name, output in outputs.items():
            if isinstance(output, Classes) and output.auxiliary:
                if neck.auxiliary_width is None:
                    raise ValueError(
                        f"output {name!r}: {type(neck).__name__} has no map for an auxiliary head; use auxiliary=False"
                    )
                self.auxiliary[name] = output.branch(neck.auxiliary_width, neck.align_corners)

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """See `DenseHead.logits`."""
        fused, shallower = self.neck.paths(features, images)
        result = {name: branch(fused, features.padded_size) for name, branch in self.branches.items()}
        if self.training:
            for name, branch in self.auxiliary.items():
                result[f"{name}.auxiliary"] = branch(shallower, features.padded_size)
        return result

    def options(self) -> dict[str, Any]:
        """The decoder's."""
        return self.neck.options()
