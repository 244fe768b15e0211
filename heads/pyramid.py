"""Decoders of segmentation_models_pytorch on the features of any backbone.

They read maps whose strides double from one to the next. Convolutional backbones have them; for a ViT a simple feature
pyramid makes them (Li, Mao, Girshick and He, Exploring Plain Vision Transformer Backbones for Object Detection, 2022).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from heads.features import Features, check_channels
from heads.head import Neck, NeckHead
from heads.layers import ChannelNorm, resize, to_padded_size
from heads.options import as_tuple, check_choice, check_length, check_names, checked
from heads.outputs import Output

Stride2 = Literal["drop", "stem"]


@dataclass(frozen=True)
class Decoder:
    """A decoder's module and class, and the levels it reads: all, four, a fine and the deepest, or the deepest."""

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


class Level(nn.Sequential):
    """One level of the simple feature pyramid: resample by 4, 2, 1 or 1/2, then 1x1 and 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, factor: float) -> None:
        half, quarter = max(in_channels // 2, 1), max(in_channels // 4, 1)
        layers: list[nn.Module] = []
        if factor == 4:
            layers = [nn.ConvTranspose2d(in_channels, half, 2, stride=2), ChannelNorm(half), nn.GELU()]
            layers += [nn.ConvTranspose2d(half, quarter, 2, stride=2)]
        elif factor == 2:
            layers = [nn.ConvTranspose2d(in_channels, half, 2, stride=2)]
        elif factor == 0.5:
            layers = [nn.MaxPool2d(2, ceil_mode=True)]
        last = {4: quarter, 2: half}.get(int(factor), in_channels)
        layers += [nn.Conv2d(last, width, 1, bias=False), ChannelNorm(width)]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width)]
        super().__init__(*layers)


class Stem(nn.Sequential):
    """The image at half its size, for decoders that end at the image's own."""

    def __init__(self, width: int, channels: int) -> None:
        layers: list[nn.Module] = []
        for i in range(2):
            layers += [nn.Conv2d(width if i else channels, width, 3, stride=1 if i else 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Pyramid(Neck):
    """A decoder of segmentation_models_pytorch as a neck.

    in_channels: of each map. decoder: a name in `DECODERS`. strides: of the maps of a convolutional backbone, each
    twice the one before; None for a ViT, whose one map, or four, become four levels of `width` channels. stride2: the
    level above them of a decoder that reads all levels: a `stem` of `stem_width` channels that reads the image
    (`head(features, images)`), or none (`drop`), so that it ends at half the resolution. decoder_options: the decoder's
    own arguments. image_channels: of the images that the stem reads.

    Features may have any size: levels are resized so that each is exactly twice the next.
    """

    @checked
    def __init__(
        self,
        in_channels: int | Sequence[int],
        decoder: str = "unet",
        strides: Sequence[int] | None = None,
        stride2: Stride2 = "drop",
        width: int = 256,
        stem_width: int = 32,
        decoder_options: Mapping[str, Any] | None = None,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        check_choice("decoder", decoder, DECODERS)
        self.in_channels, self.strides = as_tuple(in_channels), None if strides is None else tuple(strides)
        self.name, self.stride2, self.level_width, self.stem_width = decoder, stride2, width, stem_width
        self.image_channels = image_channels
        self.decoder_options = dict(decoder_options or {})
        self.reads = DECODERS[decoder].reads
        self._check_levels()

        factors = {"two": (4.0, 1.0), "deepest": ()}.get(self.reads, (4.0, 2.0, 1.0, 0.5))
        self.levels: nn.ModuleList | None = None
        if self.strides is None and factors:
            sources = self._sources(self.in_channels, len(factors))
            self.levels = nn.ModuleList(Level(c, width, f) for c, f in zip(sources, factors, strict=True))
            counts = [width] * len(factors)
        else:
            counts = list(self._chosen(self.in_channels))
        self.stem = Stem(stem_width, image_channels) if stride2 == "stem" else None
        self.reads_pixels = self.stem is not None
        counts = [stem_width, *counts] if self.stem is not None else counts
        self.auxiliary_width = counts[-2] if len(counts) > 1 else None
        self.decoder, self.width = self._make(counts)

    def paths(self, features: Features, images: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the decoder's map, and its second deepest input for an auxiliary head."""
        self._check(features, images)
        if self.levels is None:
            maps = list(self._chosen(features.maps))
        else:
            sources = self._sources(features.maps, len(self.levels))
            maps = [level(source) for level, source in zip(self.levels, sources, strict=True)]
        if self.stem is not None and images is not None:
            maps.insert(0, self.stem(to_padded_size(images, features)))
        maps = self._regular(maps)
        return self.decoder(self._placeholders(maps) + maps), maps[-2] if len(maps) > 1 else None

    def options(self) -> dict[str, Any]:
        options = {
            "name": "pyramid",
            "in_channels": list(self.in_channels),
            "decoder": self.name,
            "strides": None if self.strides is None else list(self.strides),
            "stride2": self.stride2,
            "width": self.level_width,
            "stem_width": self.stem_width,
            "decoder_options": {k: list(v) if isinstance(v, tuple) else v for k, v in self.decoder_options.items()},
        }
        return options if self.image_channels == 3 else options | {"image_channels": self.image_channels}

    # ---- levels

    def _sources(self, maps: Sequence[Any], count: int) -> list[Any]:
        """Return the map of a ViT, or its channels, from which each of `count` levels is made."""
        return [maps[i if len(maps) > 1 else 0] for i in ((0, 3) if count == 2 else (0, 1, 2, 3))]

    def _chosen(self, maps: Sequence[Any]) -> Sequence[Any]:
        """Return the maps, or their channels, that the decoder reads."""
        if self.reads == "two":
            return (maps[-4], maps[-1])
        return maps[{"all": 0, "four": -4, "deepest": -1}[self.reads] :]

    def _regular(self, maps: list[Tensor]) -> list[Tensor]:
        """Resize maps so that each has exactly twice the size of the next; of two maps, four times."""
        height, width = maps[-1].shape[-2:]
        if self.reads == "two":
            height, width = (-(-n // 4) for n in maps[0].shape[-2:])
        step = 4 if self.reads == "two" else 2
        scales = [step**i for i in reversed(range(len(maps)))]
        return [resize(m, (height * s, width * s), align_corners=False) for m, s in zip(maps, scales, strict=True)]

    def _placeholders(self, maps: list[Tensor]) -> list[Tensor]:
        """Return empty maps of the finer strides that the decoders expect but do not read."""
        height, width = maps[0].shape[-2:]
        scales = {"all": (2,), "deepest": ()}.get(self.reads, (4, 2))
        return [maps[0].new_empty(maps[0].shape[0], 0, height * s, width * s) for s in scales]

    # ---- construction and checks

    def _make(self, counts: list[int]) -> tuple[nn.Module, int]:
        """Build the decoder for maps of these channels; return it and the channels of its result."""
        known = DECODERS[self.name]
        smp: Any = importlib.import_module(f"segmentation_models_pytorch.decoders.{known.module}.decoder")
        cls = getattr(smp, known.type)
        parameters = inspect.signature(cls).parameters
        options = {**known.defaults, **self.decoder_options}
        if "n_blocks" in parameters and "decoder_channels" in parameters:
            options.setdefault("decoder_channels", UNET_CHANNELS[: len(counts)])
        check_names(f"decoder_options of {self.name}", options, cls, but=FIXED)
        fixed = {
            "encoder_channels": [0] * {"all": 1, "deepest": 0}.get(self.reads, 2) + counts,
            "in_channels": counts[-1],
            "n_blocks": len(counts),
            "encoder_depth": 4 if self.reads == "two" else 5,
            "output_stride": 16,
        }
        decoder = cls(**{n: v for n, v in fixed.items() if n in parameters}, **options)
        if self.name == "fpn":
            return decoder, int(decoder.out_channels)
        names = ("decoder_channels", "segmentation_channels", "prefinal_channels", "out_channels")
        width = next(options[name] for name in names if name in options)
        return decoder, width if isinstance(width, int) else int(width[-1])

    def _check_levels(self) -> None:
        count = len(self.in_channels)
        if self.strides is None:
            if count not in (1, 4):
                raise ValueError(f"in_channels={self.in_channels}: expected one map or four; choose such layers")
        else:
            check_length("strides", self.strides, count)
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
        check_channels(features.maps, self.in_channels)
        features.check_strides(self.strides)
        if self.stem is not None and images is None:
            raise ValueError("stride2='stem' reads the images; call head(features, images)")
        if self.name == "pan":
            height, width = features.maps[-1].shape[-2:]
            least = 15 if self.strides is None else 8  # of a ViT, the deepest level has half the grid
            if min(height, width) < least:
                raise ValueError(
                    f"pan halves its deepest map three times and needs a grid of {least}x{least}, got {height}x{width}"
                    "; use larger images or another decoder"
                )


class PyramidHead(NeckHead):
    """Outputs on a decoder of segmentation_models_pytorch; the options are those of `Pyramid`."""

    def __init__(self, in_channels: int | Sequence[int], outputs: Mapping[str, Output], **options: Any) -> None:
        super().__init__(Pyramid(in_channels, **options), outputs)
