"""Every numerically important choice of a backbone as a named field, saved with the weights and compared by heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dense.suggest import did_you_mean
from heads.features import Norm

Positions = Literal["official", "official_registers", "timm", "size", "bilinear", "rope", "none"]
Periods = Literal["float32", "bfloat16", "checkpoint"]
Padding = Literal["pad", "resize", "crop", "floor"]
Layers = int | str | tuple[int, ...]

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
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rope_periods: Periods | None = None
    padding: Padding = "pad"
    layers: tuple[int, ...] = ()  # default layers, shallow to deep
    norm: Norm = True  # default use of the final norm
    channels: tuple[int, ...] = ()  # of every stage of a pyramid, of every layer of a hybrid
    strides: tuple[int, ...] = ()  # of the same
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
        if (self.rope_periods is not None) and self.kind != "eva":
            raise ValueError(f"{self.name} has no rotary positions; leave rope_periods out")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Return the spec that `to_dict` gave, also after a trip through JSON; unknown names raise."""
        known = {f.name for f in fields(cls)}
        for name in data:
            if name not in known:
                raise ValueError(f"unknown field {name!r} in the backbone's config.{did_you_mean(name, known)}")
        return cls(**as_tuples({**data, "arguments": as_tuples(data.get("arguments", {}))}))

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
