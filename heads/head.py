"""One decoder with one or several named outputs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from heads.features import Features, Size
from heads.layers import to_image_size
from heads.outputs import Bins, Classes, Output


class DenseHead(nn.Module, abc.ABC):
    """`head(features)` returns a map at the image's size for each name in `outputs`.

    In training there may be more: `NAME.auxiliary` (logits of a `Classes(auxiliary=True)`) and `NAME.bins` (logits of a
    `Bins(logits=True)`).
    """

    align_corners: bool = False  # of the resize to the image, unless an output sets its own
    reads_pixels: bool = False  # whether it needs the images themselves, of 0 to 1
    reads_features: bool = True  # whether it needs features at all
    exports: bool = True  # whether it can be written as one graph of operators
    blocks: int = 0  # last blocks of the backbone that it runs itself, with tokens of its own among the backbone's

    def __init__(self, outputs: Mapping[str, Output]) -> None:
        super().__init__()
        if not outputs:
            raise ValueError("a head needs at least one output; give one by name, such as depth=Regression()")
        for name, output in outputs.items():
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"output name {name!r}: expected a plain word such as 'depth'; choose another name")
            if not isinstance(output, Output):
                raise TypeError(
                    f"output {name!r}: expected an output such as Regression(), got {type(output).__name__}"
                )
        self.outputs = dict(outputs)

    def forward(self, features: Features, images: Tensor | None = None, size: Size | None = None) -> dict[str, Tensor]:
        """Return name -> (B, K, H, W), over the whole image at its own size, or at another (height, width).

        images: the images (B, N, H, W) of the features, for heads that read them too.
        """
        result = {}
        for name, logits in self.logits(features, images).items():
            output = self.outputs[name.partition(".")[0]]
            align = self.align_corners if output.align_corners is None else output.align_corners
            values = output.decode(logits, self.training) if name in self.outputs else logits
            result[name] = to_image_size(values, features, size, align)
            if self.training and isinstance(output, Bins) and output.logits:
                result[f"{name}.bins"] = to_image_size(logits, features, size, align)
        return result

    def backbone_input(self, images: Tensor, patch: int) -> Tensor:
        """Return the backbone's input for normalised images and this patch size."""
        return images

    @abc.abstractmethod
    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Return name -> logits over the padded image, at the head's own resolution."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the name and options that `heads.build` needs, without the outputs."""

    def spec(self) -> dict[str, Any]:
        """Return plain data from which `heads.build` builds this head again."""
        return {**self.options(), "outputs": {name: output.to_dict() for name, output in self.outputs.items()}}


class Neck(nn.Module, abc.ABC):
    """A decoder from features to one fused map, on which any number of outputs can stand."""

    width: int  # channels of the fused map
    auxiliary_width: int | None = None  # channels of the map for an auxiliary head, where there is one
    align_corners: bool = False
    reads_pixels: bool = False  # see `DenseHead`

    def forward(self, features: Features, images: Tensor | None = None) -> Tensor:
        """Return the fused map, (B, width, h, w)."""
        return self.paths(features, images)[0]

    @abc.abstractmethod
    def paths(self, features: Features, images: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the fused map and a shallower one for auxiliary heads."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the name and arguments of the decoder as plain data."""

    def with_outputs(self, **outputs: Output) -> NeckHead:
        """Return a head that owns this decoder."""
        return NeckHead(self, outputs)


class NeckHead(DenseHead):
    """Outputs that share the fused map of one decoder."""

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
        fused, shallower = self.neck.paths(features, images)
        result = {name: branch(fused, features.padded_size) for name, branch in self.branches.items()}
        if self.training:
            for name, branch in self.auxiliary.items():
                result[f"{name}.auxiliary"] = branch(shallower, features.padded_size)
        return result

    def options(self) -> dict[str, Any]:
        return self.neck.options()
