"""The features of patches that discovery works on, and their cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.base import pad_to_multiple
from dense.backbone.spec import BackboneSpec

FeatureKind = Literal["key", "query", "value", "token"]
ROUNDING = 1e-5  # relative difference below which features count as equal


@dataclass(frozen=True)
class Source:
    """The features of patches; the class token and registers are left out.

    what: keys, queries or values of block `layer`, all heads concatenated and before rotary positions, or the output
    tokens of the block. norm: apply the final norm to tokens. centre: subtract each image's mean, which removes what
    all of its patches share, such as channels of large magnitude.
    """

    what: FeatureKind = "key"
    layer: int = -1
    norm: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        if self.what not in get_args(FeatureKind):
            raise ValueError(f"what={self.what!r}: expected one of {', '.join(get_args(FeatureKind))}")
        if self.norm and self.what != "token":
            raise ValueError(f"norm=True is for tokens; there is no norm over what={self.what!r}")

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return features (B, C, h, w) in fp32 of normalised images (B, 3, H, W) of any size.

        Images are resized to whole patches; padding would appear as an object of its own.
        """
        images = resize_to_patches(images, backbone.spec)
        if self.what == "token":
            features = backbone(images, layers=(self.layer,), norm=self.norm).maps[-1]
        else:
            features = backbone.qkv(images, self.layer, self.what)
        features = features.float()
        return centred(features) if self.centre else features

    def with_attention(self, backbone: Backbone, images: Tensor, patches: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return features as the call does, and the last block's attention (B, heads, Q, h*w), None without one.

        Q and patches are those of `tokens_and_attention`. Tokens of the last block and attention come from one pass.
        """
        images = resize_to_patches(images, backbone.spec)
        try:
            tokens, attention = backbone.tokens_and_attention(images, self.norm, patches)
        except ValueError:  # blocks without rows of attention
            return self(backbone, images), None
        if self.what != "token" or self.layer not in (-1, backbone.spec.depth - 1):
            return self(backbone, images), attention
        return centred(tokens.float()) if self.centre else tokens.float(), attention

    def changed(self, **changes: object) -> Source:
        """Return a source with the fields in `changes` that are not None; the norm is dropped for other than tokens."""
        given = {name: value for name, value in changes.items() if value is not None}
        source = self if given.get("what", self.what) == "token" else replace(self, norm=False)
        return replace(source, **given)  # type: ignore[arg-type]


def default_source(spec: BackboneSpec, across: bool = False, cuts: bool = False) -> Source:
    """Return keys of the last block for DINO and iBOT, as LOST, TokenCut and MaskCut use; tokens elsewhere, centred.

    In DINOv2 and DINOv3 all patches share channels of large magnitude and position components in the last keys: without
    centring, all pairs of patches are similar, and the cut follows the position, the same in every image. `across`
    images nothing is centred per image: an image that a single class fills would be left without features. `cuts` and
    LOST agree better with objects in photographs if DINOv2's tokens, which differ more than its keys, keep the mean.
    """
    if spec.family in ("dino", "ibot"):
        return Source()
    return Source("token", norm=has_norm(spec), centre=not across and not (cuts and spec.family == "dinov2"))


def has_norm(spec: BackboneSpec) -> bool:
    """Return whether the backbone has a norm over its last tokens."""
    return spec.kind != "pyramid" or spec.norm is not False


def resize_to_patches(images: Tensor, spec: BackboneSpec) -> Tensor:
    """Resize images (B, 3, H, W) to the nearest whole number of patches."""
    return pad_to_multiple(images, spec.patch, "resize", smallest=1)[0]


def centred(features: Tensor) -> Tensor:
    """Subtract each image's mean from features (B, C, h, w); constant features become exact zeros, not noise."""
    mean = features.mean((-2, -1), keepdim=True)
    rest = features - mean
    differs = rest.norm(dim=1, keepdim=True) > ROUNDING * mean.norm(dim=1, keepdim=True)
    return torch.where(differs, rest, 0.0)


def check_features(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) in fp32; raise for other shapes and for values that are not finite."""
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"expected features of shape (B, C, h, w), none of them 0, got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        bad = [i for i, f in enumerate(features) if not bool(torch.isfinite(f).all())]
        raise ValueError(f"features of images {bad[:10]} are not finite; compute them in fp32 or bf16, not in fp16")
    return features.float()


def check_channels(features: Tensor, channels: int) -> None:
    """Raise for features whose number of channels differs from that of fitted classes."""
    if features.shape[1] != channels:
        raise ValueError(
            f"features have {features.shape[1]} channels, the classes {channels}; use the backbone they came from"
        )


def unit_tokens(features: Tensor) -> Tensor:
    """Return unit vectors (B, h*w, C) of features (B, C, h, w); zero vectors stay zero."""
    return F.normalize(features.flatten(2).mT, dim=-1)


def feature_at(features: Tensor, point: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return the feature (C,) of the patch of (C, h, w) at the pixel `point` (x, y) of an image of `size` (H, W)."""
    (x, y), (height, width), (rows, columns) = point, size, features.shape[-2:]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"point {x:g},{y:g} lies outside the image, which is {width} wide and {height} high")
    return features[:, int(y * rows / height), int(x * columns / width)]


def similarity(features: Tensor, query: Tensor) -> Tensor:
    """Return the cosine of each patch of (B, C, h, w) with queries (C,) or (Q, C): (B, h, w) or (B, Q, h, w)."""
    cosines = F.normalize(torch.atleast_2d(query), dim=-1) @ unit_tokens(features).mT  # B, Q, N
    cosines = cosines.unflatten(-1, features.shape[-2:])
    return cosines[:, 0] if query.ndim == 1 else cosines
