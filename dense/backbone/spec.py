"""Every numerically important choice of a backbone as a named field, saved with the weights and compared by heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dense.data import levels
from dense.data.levels import RGB
from dense.suggest import did_you_mean
from heads.features import Norm

Positions = Literal["official", "official_registers", "timm", "size", "bilinear", "rope", "none"]
Periods = Literal["float32", "bfloat16", "checkpoint"]
Padding = Literal["pad", "resize", "crop", "floor"]
Layers = int | str | tuple[int, ...]
Channels = int | Sequence[str]  # of images: their number, or their names
ChannelsFrom = Literal["mean", "copy", "random", "each"]

FAMILIES = ("dino", "ibot", "dinov2", "dinov2_registers", "dinov3", "resnet", "convnext", "timm")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HYBRID_STAGES = 2  # of a hybrid, the stages of its ResNet that are layers


@dataclass(frozen=True)
class BackboneSpec:
    """The numerical choices of one backbone. Two backbones with equal specs and weights give equal features.

    positions: how the position table is interpolated, see `interpolate_positions`: `official` (DINO, iBOT, DINOv2),
    `official_registers` (DINOv2 with registers), `size`, `bilinear` (DPT) or `timm`; `rope` and `none` have no table.
    padding: how images reach whole patches, see `pad_to_multiple`.
    rope_periods: computed in fp32 (`float32`), rounded through bfloat16 as published DINOv3 files hold them
    (`bfloat16`), or taken from the file (`checkpoint`).
    each_channel: the network sees one channel at a time, and the tokens or maps of a layer are the mean over channels,
    before the final norm; attention and projections are means over channels too.
    reading: how stored numbers become the bytes of an image, as plain data; empty for RGB photographs.
    """

    name: str  # timm's name, without tag
    family: str  # the release whose rules it follows, one of FAMILIES
    kind: Literal["vit", "eva", "hybrid", "pyramid"]  # the adapter
    patch: int  # pixels per token; of a pyramid, its deepest stride
    dim: int  # channels of the deepest map
    depth: int  # blocks, or stages of a pyramid
    heads: int  # attention heads; 0 for a pyramid
    prefix: int  # class token and registers
    class_token: bool
    registers: int
    positions: Positions
    image_size: tuple[int, int]  # of the position table, or timm's training size
    norm_eps: float | None
    channels: tuple[str, ...] = RGB  # names of the channels of an image, in order
    each_channel: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN  # one per channel
    std: tuple[float, ...] = IMAGENET_STD
    rope_periods: Periods | None = None
    padding: Padding = "pad"
    layers: tuple[int, ...] = ()  # default layers, shallow to deep
    norm: Norm = True  # default use of the final norm
    widths: tuple[int, ...] = ()  # channels of every stage of a pyramid, of every layer of a hybrid
    strides: tuple[int, ...] = ()  # of the same
    reading: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model, beyond the name

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
            ("positions", self.positions, get_args(Positions)),
            ("padding", self.padding, get_args(Padding)),
            ("rope_periods", self.rope_periods, (None, *get_args(Periods))),
            ("family", self.family, FAMILIES),
        )
        for name, value, valid in choices:
            if value not in valid:
                words = [str(v) for v in valid]
                raise ValueError(
                    f"{name}={value!r}: expected one of {', '.join(words)}.{did_you_mean(str(value), words)}"
                )
        check_norm(self.norm)
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"{name}={values}: expected {len(self.channels)} values, one per channel "
                    f"({', '.join(self.channels)})"
                )
        if (self.rope_periods is not None) and self.kind != "eva":
            raise ValueError(f"{self.name} has no rotary positions; leave rope_periods out")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Return the spec that `to_dict` gave, also after a trip through JSON; unknown names raise."""
        known = {f.name for f in fields(cls)}
        if all(isinstance(width, int) for width in data.get("channels", ("",))):  # the former name of widths
            data = {"widths" if k == "channels" else k: v for k, v in data.items()}
        for name in data:
            if name not in known:
                raise ValueError(f"unknown field {name!r} in the backbone's config.{did_you_mean(name, known)}")
        return cls(**as_tuples({**data, "arguments": as_tuples(data.get("arguments", {}))}))

    def width_of(self, layer: int) -> int:
        """Return the number of channels of a layer's map."""
        return self.widths[layer] if self.widths else self.dim

    def difference(self, other: BackboneSpec) -> list[str]:
        """Return 'norm_eps: 1e-06 here, 1e-05 there' for each field in which two specs differ."""
        return [
            f"{f.name}: {getattr(self, f.name)} here, {getattr(other, f.name)} there"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


def as_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists, as JSON stores tuples, into tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def check_channels(count: int, names: tuple[str, ...], where: str = "") -> None:
    """Raise unless an image of `count` channels has those of these names."""
    if count == len(names):
        return
    advice = "drop the alpha channel or convert with .convert('RGB') first, or " if names == RGB else ""
    raise ValueError(
        f"expected {len(names)} channel{'s' * (len(names) > 1)} ({', '.join(names)}), got {count}{where}; {advice}"
        f"load the backbone with channels={count}"
    )


def channel_names(channels: Channels) -> tuple[str, ...]:
    """Return the names of channels: of a number red, green and blue for three, else ch1, ch2, ..."""
    if isinstance(channels, int) and not isinstance(channels, bool):
        return RGB if channels == 3 else levels.channel_names(channels)
    names = tuple(channels) if isinstance(channels, Sequence) and not isinstance(channels, str) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"channels={channels!r}: expected their number, or a list of different names")
    return names


def by_name(values: Sequence[float], names: tuple[str, ...], source: tuple[str, ...] = RGB) -> tuple[float, ...]:
    """Return the values of named channels, given those of `source`; a name that is not there has their mean."""
    known, mean = dict(zip(source, values, strict=True)), sum(values) / len(values)
    return tuple(known.get(name, mean) for name in names)


def check_norm(norm: object) -> None:
    """Raise unless norm is True, False or "last"; 1 and 0 are refused."""
    if not (isinstance(norm, bool) or norm == "last"):
        raise ValueError(f"norm must be True, False or 'last', got {norm!r}")


def resolve_layers(layers: Layers | list[int] | None, spec: BackboneSpec) -> tuple[int, ...]:
    """Return ascending indices of blocks (or stages) for a name or for indices; negative ones count from the end."""
    depth = spec.depth
    if layers is None:
        return spec.layers
    if isinstance(layers, str):
        names = {
            "last": (depth - 1,),
            "last4": tuple(range(max(depth - 4, 0), depth)),
            "even4": tuple(sorted({(i + 1) * depth // 4 - 1 for i in range(4)} - {-1})),
            "default": spec.layers,
        }
        if layers not in names:
            raise ValueError(
                f"unknown layers {layers!r}; use indices or one of {', '.join(names)}.{did_you_mean(layers, names)}"
            )
        return names[layers]
    indices = (layers,) if isinstance(layers, int) else tuple(layers)
    if not indices:
        raise ValueError("layers is empty; name at least one block, for example layers='last'")
    for index in indices:
        if not -depth <= index < depth:
            raise ValueError(
                f"layer {index} does not exist: {spec.name} has {depth}, 0 to {depth - 1} (or -{depth} to -1)"
            )
    resolved = tuple(index % depth for index in indices)
    if list(resolved) != sorted(set(resolved)):
        raise ValueError(f"layers {indices}: expected each once, shallow to deep")
    return resolved
