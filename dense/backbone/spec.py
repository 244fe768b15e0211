"""Everything numerically important about a backbone, named, saved with the weights and compared by heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from dense.suggest import did_you_mean
from heads.features import Norm

Positions = Literal["official", "official_registers", "timm", "size", "bilinear", "rope", "none"]
Periods = Literal["float32", "bfloat16", "checkpoint"]
Padding = Literal["pad", "resize", "crop"]
Layers = int | str | tuple[int, ...]

FAMILIES = ("dino", "ibot", "dinov2", "dinov2_registers", "dinov3", "resnet", "convnext", "timm")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of one backbone. Two backbones with equal specs and weights give equal features.

    positions: `official` (bicubic, scale (n + 0.1) / M, no antialias: DINO, iBOT, DINOv2), `official_registers` (exact
    size, antialiased: DINOv2 with registers), `size` (exact size, no antialias), `bilinear` (exact size: DPT), `timm`
    (timm's own rule), `rope`, `none`.
    rope_periods: fp32 as computed, rounded through bfloat16 as the published DINOv3 files hold them, or whatever else
    the checkpoint held.
    """

    name: str  # timm's name, without tag
    family: str  # dino, ibot, dinov2, dinov2_registers, dinov3, timm, resnet, convnext
    kind: Literal["vit", "eva", "hybrid", "pyramid"]
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
    layers: tuple[int, ...] = ()  # the default choice of layers, shallow to deep
    norm: Norm = True  # the default use of the final norm
    channels: tuple[int, ...] = ()  # channels of every stage of a pyramid, of every layer of a hybrid
    strides: tuple[int, ...] = ()  # and their strides
    arguments: Mapping[str, Any] = field(default_factory=dict)  # timm.create_model's, beyond the name

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
        """Plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """The inverse of `to_dict`, also after a trip through JSON; unknown names raise."""
        known = {f.name for f in fields(cls)}
        for name in data:
            if name not in known:
                raise ValueError(f"unknown field {name!r} in the backbone's config.{did_you_mean(name, known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        plain["arguments"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in dict(plain.get("arguments", {})).items()
        }
        return cls(**plain)

    def difference(self, other: BackboneSpec) -> list[str]:
        """'norm_eps: 1e-06 here, 1e-05 there' for each field in which two specs differ."""
        return [
            f"{f.name}: {getattr(self, f.name)} here, {getattr(other, f.name)} there"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


def check_norm(norm: object) -> None:
    """A norm is True, False or "last", and nothing that merely equals one of these."""
    if not (isinstance(norm, bool) or norm == "last"):
        raise ValueError(f"norm must be True, False or 'last', got {norm!r}")


def resolve_layers(layers: Layers | list[int] | None, spec: BackboneSpec) -> tuple[int, ...]:
    """Indices of blocks (or stages), ascending, from a name or from indices; negative ones count from the end."""
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
        raise ValueError(f"layers {indices} must be named once each, shallow to deep")
    return resolved


Borders = tuple[int, int, int, int]  # top, bottom, left, right


def fit(images: Tensor, multiple: int, policy: Padding, smallest: int | None = None) -> tuple[Tensor, Borders, bool]:
    """Bring (B, 3, H, W) to a multiple of `multiple`; returns the images, the borders added, and whether they were resized.

    `pad` adds zeros (the mean colour) around the centre, `crop` cuts around the centre, `resize` stretches to the nearest
    multiple. A side below `smallest` (one patch, if not said) is refused.
    """
    height, width = images.shape[-2:]
    smallest = multiple if smallest is None or policy == "crop" else smallest
    if min(height, width) < smallest:
        raise ValueError(
            f"an image of {height}x{width} is smaller than one patch of {smallest}x{smallest}; enlarge it first"
        )
    if policy == "resize":
        size = tuple(max(multiple, round(n / multiple) * multiple) for n in (height, width))
        if size == (height, width):
            return images, (0, 0, 0, 0), False
        return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False), (0, 0, 0, 0), True
    if policy not in ("pad", "crop"):
        raise ValueError(f"unknown padding policy {policy!r}; use pad, resize or crop")
    sign = 1 if policy == "pad" else -1
    rest = [(-n) % multiple if policy == "pad" else n % multiple for n in (height, width)]
    (top, left), (bottom, right) = [n // 2 for n in rest], [n - n // 2 for n in rest]
    if not any(rest):
        return images, (0, 0, 0, 0), False
    borders = (sign * top, sign * bottom, sign * left, sign * right)
    return F.pad(images, (borders[2], borders[3], borders[0], borders[1])), borders, False
