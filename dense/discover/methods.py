"""The methods applied to images, and the methods by name with their settings and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from dense.backbone import Backbone, BackboneSpec
from dense.discover.attention import Attention, salience
from dense.discover.kmeans import CoClusters, KMeans
from dense.discover.lost import LOST
from dense.discover.results import Objects, Prediction, Regions
from dense.discover.source import Source, default_source
from dense.discover.spectral import Spectral
from dense.discover.stego import Stego
from dense.discover.tokencut import MaskCut, TokenCut

TAU_WITH_MEAN = 0.6  # DINOv2's tokens share a mean, so that the cosines of most pairs exceed the published thresholds
FittedClusters = CoClusters | Stego  # classes fitted to a set of images
Cuts = LOST | TokenCut | MaskCut  # objects that salience tells from the background
Method = Attention | Cuts | Spectral | KMeans | FittedClusters

METHODS: dict[str, Any] = {  # each image by itself
    "attention": Attention,
    "lost": LOST,
    "tokencut": TokenCut,
    "maskcut": MaskCut,
    "spectral": Spectral,
    "kmeans": KMeans,
}
FITTED_METHODS: dict[str, type[CoClusters] | type[Stego]] = {"cocluster": CoClusters, "stego": Stego}
SETTINGS = {name: tuple(field.name for field in fields(cls)) for name, cls in METHODS.items()} | {
    "cocluster": ("count", "passes", "classes"),
    "stego": ("count", "passes", "steps", "classes"),
    "similarity": ("point",),
}


@torch.inference_mode()
def on_grid(backbone: Backbone, images: Tensor, method: Method, source: Source | None = None) -> Prediction:
    """Apply a method to normalised images (B, 3, H, W); return its prediction on the grid of patches."""
    if isinstance(method, Attention):
        return method(method.rows(backbone, images))
    cuts = isinstance(method, Cuts)
    source = source or default_source(backbone.spec, across=isinstance(method, FittedClusters), cuts=cuts)
    method = suited(method, backbone.spec, source)
    features = source(backbone, images)
    if isinstance(method, Cuts) and method.foreground == "attention":
        return method(features, salience(backbone, images, (features.shape[-2], features.shape[-1])))
    return method(features)


def suited(method: Any, spec: BackboneSpec, source: Source) -> Any:
    """Return a method in which a `tau` that was left out is the one that suits the features."""
    if not isinstance(method, TokenCut | MaskCut) or method.tau is not None:
        return method
    published = 0.2 if isinstance(method, TokenCut) else 0.15
    with_mean = spec.family == "dinov2" and source.what == "token" and not source.centre
    return replace(method, tau=TAU_WITH_MEAN if with_mean else published)


def discover(backbone: Backbone, images: Tensor, method: Method, source: Source | None = None) -> Prediction:
    """Apply a method to normalised images (B, 3, H, W); return its prediction at their size.

    source: the features to use; those that suit the backbone's family if left out.
    """
    return on_grid(backbone, images, method, source).resized((images.shape[-2], images.shape[-1]))


def attention(backbone: Backbone, images: Tensor, **options: Any) -> Objects:
    """Return masks of attention; options are the fields of `Attention`: share, mode, layer."""
    return cast(Objects, discover(backbone, images, Attention(**options)))


def lost(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """Return one object per image by LOST; options are the fields of `LOST`: k_patches, foreground."""
    return cast(Objects, discover(backbone, images, LOST(**options), source))


def tokencut(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """Return one object per image by TokenCut; options are the fields of `TokenCut`: tau, eps, foreground."""
    return cast(Objects, discover(backbone, images, TokenCut(**options), source))


def maskcut(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """Return several objects per image by MaskCut; options are its fields: count, tau, eps, least, foreground."""
    return cast(Objects, discover(backbone, images, MaskCut(**options), source))


def spectral(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Regions:
    """Return K regions per image by spectral clustering; options are the fields of `Spectral`: count, tau, seed."""
    return cast(Regions, discover(backbone, images, Spectral(**options), source))


def kmeans(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Regions:
    """Return K regions per image by k-means; options are the fields of `KMeans`: count, iterations, tries, seed."""
    return cast(Regions, discover(backbone, images, KMeans(**options), source))


def settings_by_method(methods: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that each of `methods` takes among those `given`, where None stands for one left out.

    A setting that none of the methods takes raises, except `layer`, which is also a setting of the features.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name != "layer" and not any(name in SETTINGS[method] for method in methods):
            takers = ", ".join(method for method, names in SETTINGS.items() if name in names)
            raise ValueError(f"--{name.replace('_', '-')} is for {takers}, not for {', '.join(methods)}")
    return {method: {k: v for k, v in given.items() if k in SETTINGS[method]} for method in methods}


def source_of(spec: BackboneSpec, method: str, **changes: Any) -> Source:
    """Return the features that suit a backbone and a method; fields that are not None in `changes` replace its own."""
    cuts = method in ("lost", "tokencut", "maskcut")
    return default_source(spec, across=method not in METHODS, cuts=cuts).changed(**changes)


def describe_run(
    name: str, method: Any, source: Source, spec: BackboneSpec, weights: str | None, refinement: str, shorter: int
) -> dict[str, Any]:
    """Return everything that determines the predictions of a run, as plain data."""
    facts: dict[str, Any] = {"method": name, "refine": refinement, "shorter_side": shorter}
    facts["settings"] = {"regions": method.count} if name in FITTED_METHODS else asdict(method)
    if name != "attention":
        facts["features"] = asdict(source)
    return facts | {"backbone": spec.to_dict(), "weights": weights}
