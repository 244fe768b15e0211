"""Decoders of segmentation_models_pytorch on the features of any backbone.

They want maps whose strides double from one to the next. Convolutional backbones have them; from a ViT they are made by
a simple feature pyramid.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from heads.checks import channels, one_of, positive_integer
from heads.features import Features
from heads.head import Neck, NeckHead
from heads.levels import Level, Stem
from heads.outputs import Output
from heads.resize import resize, to_frame

Stride2 = Literal["drop", "stem"]


@dataclass(frozen=True)
class Decoder:
    """Where a decoder is, and what it reads: all levels, the four deepest, a fine one and the deepest, or that alone."""

    module: str
    type: str
    reads: Literal["all", "four", "two", "deepest"]
    defaults: Mapping[str, Any] = field(default_factory=dict)


ASPP = {"out_channels": 256, "atrous_rates": (12, 24, 36), "aspp_dropout": 0.5}
DECODERS = {
    "unet": Decoder("unet", "UnetDecoder", "all"),
    "unetplusplus": Decoder("unetplusplus", "UnetPlusPlusDecoder", "all"),
    "linknet": Decoder("linknet", "LinknetDecoder", "all", {"prefinal_channels": 32}),
    "manet": Decoder("manet", "MAnetDecoder", "all"),
    "fpn": Decoder("fpn", "FPNDecoder", "four"),
    "pan": Decoder("pan", "PANDecoder", "four", {"decoder_channels": 32}),
    "upernet": Decoder("upernet", "UPerNetDecoder", "four", {"decoder_channels": 256}),
    "segformer": Decoder("segformer", "SegformerDecoder", "four", {"segmentation_channels": 256}),
    "deeplabv3plus": Decoder("deeplabv3", "DeepLabV3PlusDecoder", "two", ASPP | {"aspp_separable": True}),
    "deeplabv3": Decoder("deeplabv3", "DeepLabV3Decoder", "deepest", ASPP | {"aspp_separable": False}),
    "pspnet": Decoder("pspnet", "PSPDecoder", "deepest", {"out_channels": 512}),
}
UNET_CHANNELS = (256, 128, 64, 32, 16)
FIXED = ("encoder_channels", "in_channels", "n_blocks", "encoder_depth", "output_stride")  # follow from the features


class Pyramid(Neck):
    """A decoder of segmentation_models_pytorch as a neck.

    in_channels: of each map. decoder: a name in `DECODERS`. strides: of the maps of a convolutional backbone, each twice
    the one before; None for a ViT, whose one map, or four, become four levels of `width` channels. stride2: what a
    decoder that reads all levels gets above them: a `stem` of `stem_width` channels that reads the image
    (`head(features, images)`), or nothing (`drop`); it then ends at half the resolution. decoder_options: the decoder's
    own arguments.

    Sizes are no concern: levels are resized so that each is exactly twice the next.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        decoder: str = "unet",
        strides: Sequence[int] | None = None,
        stride2: Stride2 = "drop",
        width: int = 256,
        stem_width: int = 32,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        one_of("decoder", decoder, DECODERS)
        one_of("stride2", stride2, ("drop", "stem"))
        positive_integer("width", width)
        positive_integer("stem_width", stem_width)
        self.in_channels = channels("in_channels", in_channels)
        self.strides = None if strides is None else channels("strides", strides)
        self.name, self.stride2, self.level_width, self.stem_width = decoder, stride2, width, stem_width
        self.decoder_options = dict(decoder_options or {})
        self.reads = DECODERS[decoder].reads
        self._check_levels()

        factors = {"two": (4.0, 1.0), "deepest": ()}.get(self.reads, (4.0, 2.0, 1.0, 0.5))
        self.levels: nn.ModuleList | None = None
        if self.strides is None and factors:
            sources = [self.in_channels[i if len(self.in_channels) > 1 else 0] for i in self._sources(len(factors))]
            self.levels = nn.ModuleList(Level(c, width, f) for c, f in zip(sources, factors, strict=True))
            counts = [width] * len(factors)
        else:
            counts = list(self._chosen(self.in_channels))
        self.stem = Stem(stem_width) if stride2 == "stem" else None
        self.reads_pixels = self.stem is not None
        counts = [stem_width, *counts] if self.stem is not None else counts
        self.auxiliary_width = counts[-2] if len(counts) > 1 else None
        self.decoder, self.width = self._make(counts)

    def paths(self, features: Features, images: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The decoder's map, and its second deepest input for an auxiliary head."""
        self._check(features, images)
        if self.levels is None:
            maps = list(self._chosen(features.maps))
        else:
            sources = self._sources(len(self.levels))
            maps = [
                level(features.maps[min(i, len(features.maps) - 1)])
                for level, i in zip(self.levels, sources, strict=True)
            ]
        if self.stem is not None and images is not None:
            maps.insert(0, self.stem(to_frame(images, features)))
        maps = self._regular(maps)
        return self.decoder(self._placeholders(maps) + maps), maps[-2] if len(maps) > 1 else None

    def options(self) -> dict[str, Any]:
        """The arguments as plain data, and the head's name."""
        return {
            "name": "pyramid",
            "in_channels": list(self.in_channels),
            "decoder": self.name,
            "strides": None if self.strides is None else list(self.strides),
            "stride2": self.stride2,
            "width": self.level_width,
            "stem_width": self.stem_width,
            "decoder_options": {k: list(v) if isinstance(v, tuple) else v for k, v in self.decoder_options.items()},
        }

    # ---- levels

    def _sources(self, count: int) -> tuple[int, ...]:
        """Which map each level is made from, where there are four."""
        return (0, 3) if count == 2 else (0, 1, 2, 3)

    def _chosen(self, maps: Sequence[Any]) -> Sequence[Any]:
        """The maps, or their channels, that the decoder reads."""
        if self.reads == "two":
            return (maps[-4], maps[-1])
        return maps[{"all": 0, "four": -4, "deepest": -1}[self.reads] :]

    def _regular(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of which each is exactly twice, and of two four times, the size of the next."""
        height, width = maps[-1].shape[-2:]
        if self.reads == "two":
            height, width = (-(-n // 4) for n in maps[0].shape[-2:])
        step = 4 if self.reads == "two" else 2
        scales = [step**i for i in reversed(range(len(maps)))]
        return [resize(m, (height * s, width * s), align_corners=False) for m, s in zip(maps, scales, strict=True)]

    def _placeholders(self, maps: list[Tensor]) -> list[Tensor]:
        """Empty maps of the finer strides that the decoders expect but do not read."""
        height, width = maps[0].shape[-2:]
        scales = {"all": (2,), "deepest": ()}.get(self.reads, (4, 2))
        return [maps[0].new_empty(maps[0].shape[0], 0, height * s, width * s) for s in scales]

    # ---- construction and checks

    def _make(self, counts: list[int]) -> tuple[nn.Module, int]:
        """The decoder for maps of these channels, and the channels of its result."""
        known = DECODERS[self.name]
        smp: Any = importlib.import_module(f"segmentation_models_pytorch.decoders.{known.module}.decoder")
        made = getattr(smp, known.type)
        parameters = inspect.signature(made).parameters
        allowed = [n for n in parameters if n not in FIXED]
        if wrong := [n for n in self.decoder_options if n not in allowed]:
            raise ValueError(
                f"decoder_options: {self.name} has no option {wrong[0]!r}; expected some of {', '.join(allowed)}"
            )
        options = {**known.defaults, **self.decoder_options}
        if "n_blocks" in parameters and "decoder_channels" in parameters:
            options.setdefault("decoder_channels", UNET_CHANNELS[: len(counts)])
        fixed = {
            "encoder_channels": [0] * {"all": 1, "deepest": 0}.get(self.reads, 2) + counts,
            "in_channels": counts[-1],
            "n_blocks": len(counts),
            "encoder_depth": 4 if self.reads == "two" else 5,
            "output_stride": 16,
        }
        decoder = made(**{n: v for n, v in fixed.items() if n in parameters}, **options)
        if hasattr(decoder, "out_channels"):
            return decoder, int(decoder.out_channels) if self.name == "fpn" else int(options["decoder_channels"][-1])
        for name in ("decoder_channels", "segmentation_channels", "prefinal_channels", "out_channels"):
            if name in options:
                value = options[name]
                return decoder, value if isinstance(value, int) else int(value[-1])
        raise AssertionError(f"the width of {self.name} is not known")

    def _check_levels(self) -> None:
        count = len(self.in_channels)
        if self.strides is None:
            if count not in (1, 4):
                raise ValueError(f"in_channels={self.in_channels}: expected one map or four; choose such layers")
        else:
            if len(self.strides) != count:
                raise ValueError(f"strides={self.strides}: expected {count} numbers, one a map")
            if any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
                raise ValueError(
                    f"strides={self.strides}: expected each to be twice the one before; choose such layers"
                )
            least = {"all": 2, "deepest": 1}.get(self.reads, 4)
            if count < least or count > 5:
                raise ValueError(
                    f"in_channels={self.in_channels}: {self.name} reads {least} to 5 maps; choose such layers"
                )
        if self.stride2 == "stem":
            if self.reads != "all":
                raise ValueError(f"stride2='stem': {self.name} reads no map of stride 2; use stride2='drop'")
            if count == 5 or (self.strides is not None and self.strides[0] <= 2):
                raise ValueError(f"stride2='stem': the maps have stride 2 already ({self.strides}); use stride2='drop'")

    def _check(self, features: Features, images: Tensor | None) -> None:
        found = tuple(m.shape[1] for m in features.maps)
        if found != self.in_channels:
            raise ValueError(
                f"expected maps of {self.in_channels} channels, got {found} of layers {features.layers}; build the head "
                "with in_channels of the chosen layers, or choose other layers"
            )
        if self.strides is None and len(set(features.strides)) > 1:
            raise ValueError(
                f"the maps have strides {features.strides}; build the head with strides={features.strides}"
            )
        if self.strides is not None and self.strides != tuple(features.strides):
            raise ValueError(f"expected maps of strides {self.strides}, got {features.strides}; choose those layers")
        if self.stem is not None and images is None:
            raise ValueError("stride2='stem' reads the images; call head(features, images)")
        if self.name == "pan":
            height, width = features.maps[-1].shape[-2:]
            least = 15 if self.strides is None else 8  # of a ViT, the deepest level has half the grid
            if min(height, width) < least:
                raise ValueError(
                    f"pan halves its deepest map three times and needs a grid of {least}x{least}, got {height}x{width}; "
                    "use larger images or another decoder"
                )


class PyramidHead(NeckHead):
    """Outputs on a decoder of segmentation_models_pytorch; the options are those of `Pyramid`."""

    def __init__(self, in_channels: int | Sequence[int], outputs: Mapping[str, Output], **options: Any) -> None:
        super().__init__(Pyramid(in_channels, **options), outputs)
