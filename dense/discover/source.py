"""Which features of a backbone a discovery looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.base import pad_to_multiple
from dense.backbone.spec import BackboneSpec

What = Literal["key", "query", "value", "token"]
SILENT = 1e-5  # features that differ from their mean by no more than this share of it are one and the same


@dataclass(frozen=True)
class Source:
    """Features of patches; the class token and registers are no patches and never take part.

    what: keys, queries or values of block `layer`, all heads side by side and before rotary positions, or the tokens
    that leave it. norm: the final norm over tokens. centre: subtract each image's mean, so that what all of its patches
    share, positions and loud channels, no longer makes all of them alike.
    """

    what: What = "key"
    layer: int = -1
    norm: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise ValueError(f"what={self.what!r}: expected one of {', '.join(get_args(What))}")
        if self.norm and self.what != "token":
            raise ValueError(f"norm=True is for tokens; there is no norm over what={self.what!r}")

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) of any size -> features (B, C, h, w) in fp32.

        Images are stretched to whole patches: a border of padding would be an object of its own.
        """
        images = whole(images, backbone.spec)
        if self.what == "token":
            features = backbone(images, layers=(self.layer,), norm=self.norm).maps[-1]
        else:
            features = backbone.qkv(images, self.layer, self.what)
        features = features.float()
        return centred(features) if self.centre else features


def whole(images: Tensor, spec: BackboneSpec) -> Tensor:
    """Images (B, 3, H, W) stretched to the nearest whole number of patches."""
    return pad_to_multiple(images, spec.patch, "resize", smallest=1)[0]


def centred(features: Tensor) -> Tensor:
    """Features (B, C, h, w) less each image's mean; constant features become exact zeros, not rounding noise."""
    mean = features.mean((-2, -1), keepdim=True)
    rest = features - mean
    loud = rest.norm(dim=1, keepdim=True) > SILENT * mean.norm(dim=1, keepdim=True)
    return torch.where(loud, rest, 0.0)


def default_source(spec: BackboneSpec, across: bool = False) -> Source:
    """Keys of the last block for DINO and iBOT, as LOST, TokenCut and MaskCut were published; centred tokens elsewhere.

    DINOv2 and DINOv3 keep loud channels and positions in their last keys, which all patches share: uncentred, every
    pair of patches is alike, and what is cut is the position, the same in every image. `across` images nothing of
    each image's own is subtracted: one that a single class fills would be left with nothing.
    """
    if spec.family in ("dino", "ibot"):
        return Source()
    return Source("token", norm=has_norm(spec), centre=not across)


def has_norm(spec: BackboneSpec) -> bool:
    """Whether there is a norm over the last tokens."""
    return spec.kind != "pyramid" or spec.norm is not False


def choose(spec: BackboneSpec, across: bool = False, **options: object) -> Source:
    """The default of a backbone with whatever is not None in `options` changed."""
    return changed(default_source(spec, across), **options)


def changed(source: Source, **options: object) -> Source:
    """A source with whatever is not None in `options` changed; only tokens keep their norm."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("what", source.what) != "token":
        source = replace(source, norm=False)
    return replace(source, **given)  # type: ignore[arg-type]


def check_features(features: Tensor) -> Tensor:
    """Features (B, C, h, w) that methods can work with, in fp32."""
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"expected features of shape (B, C, h, w), none of them 0, got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        bad = [i for i, f in enumerate(features) if not bool(torch.isfinite(f).all())]
        raise ValueError(f"features of images {bad[:10]} are not finite; compute them in fp32 or bf16, not in fp16")
    return features.float()


def check_channels(features: Tensor, channels: int) -> None:
    """Raise for features that classes of `channels` channels know nothing of."""
    if features.shape[1] != channels:
        raise ValueError(
            f"features have {features.shape[1]} channels, the classes {channels}; use the backbone they came from"
        )
