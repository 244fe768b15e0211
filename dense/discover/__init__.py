"""Objects and regions without labels, from attention and features, for every backbone.

Each method is a small frozen dataclass that maps features (B, C, h, w) to a prediction on their grid; `discover` reads the
features of images, runs a method and brings its prediction to the images' size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.discover.attention import Attention
from dense.discover.coclusters import CoClusters
from dense.discover.graph import feature_at, similarity
from dense.discover.kmeans import KMeans
from dense.discover.lost import LOST
from dense.discover.maskcut import MaskCut
from dense.discover.pca import PCA
from dense.discover.propagate import Propagation, Tracker, propagate
from dense.discover.refine import Refinement, guided_filter, refine_objects, refine_regions
from dense.discover.results import Objects, Prediction, Regions, boxes
from dense.discover.source import Source, default_source
from dense.discover.spectral import Spectral
from dense.discover.stego import Distillation, Stego
from dense.discover.tokencut import TokenCut
from dense.discover.track import Tracking, track, tracking, tracking_source

__all__ = [
    "LOST",
    "PCA",
    "Attention",
    "CoClusters",
    "Distillation",
    "FittedClusters",
    "KMeans",
    "MaskCut",
    "Method",
    "Objects",
    "Prediction",
    "Propagation",
    "Refinement",
    "Regions",
    "Source",
    "Spectral",
    "Stego",
    "TokenCut",
    "Tracker",
    "Tracking",
    "attention",
    "boxes",
    "default_source",
    "discover",
    "feature_at",
    "guided_filter",
    "kmeans",
    "lost",
    "maskcut",
    "on_grid",
    "propagate",
    "refine",
    "similarity",
    "spectral",
    "tokencut",
    "track",
    "tracking",
    "tracking_source",
]

FittedClusters = CoClusters | Stego  # classes that hold for many images, learnt from them
Method = Attention | LOST | TokenCut | MaskCut | Spectral | KMeans | FittedClusters


@torch.inference_mode()
def on_grid(backbone: Backbone, images: Tensor, method: Method, source: Source | None = None) -> Prediction:
    """What `method` finds in normalised images (B, 3, H, W), on the grid of patches."""
    if isinstance(method, Attention):
        return method(method.rows(backbone, images))
    source = source or default_source(backbone.spec, across=isinstance(method, FittedClusters))
    return method(source(backbone, images))


def discover(backbone: Backbone, images: Tensor, method: Method, source: Source | None = None) -> Prediction:
    """What `method` finds in normalised images (B, 3, H, W), at their size.

    source: which features it looks at; those that suit the backbone's family, if left out.
    """
    return on_grid(backbone, images, method, source).resized((images.shape[-2], images.shape[-1]))


def attention(backbone: Backbone, images: Tensor, **options: Any) -> Objects:
    """Masks of attention; options are `Attention`'s: share, mode, layer."""
    return _objects(backbone, images, Attention(**options), None)


def lost(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """One object an image by LOST; options are `LOST`'s: k_patches."""
    return _objects(backbone, images, LOST(**options), source)


def tokencut(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """One object an image by TokenCut; options are `TokenCut`'s: tau, eps."""
    return _objects(backbone, images, TokenCut(**options), source)


def maskcut(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Objects:
    """Several objects an image by MaskCut; options are `MaskCut`'s: count, tau, eps, least."""
    return _objects(backbone, images, MaskCut(**options), source)


def spectral(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Regions:
    """K regions an image by spectral clustering; options are `Spectral`'s: count, tau, seed."""
    return _regions(backbone, images, Spectral(**options), source)


def kmeans(backbone: Backbone, images: Tensor, source: Source | None = None, **options: Any) -> Regions:
    """K regions an image by k-means; options are `KMeans`': count, iterations, tries, seed."""
    return _regions(backbone, images, KMeans(**options), source)


def refine(prediction: Prediction, images: Tensor, how: Refinement = "guided") -> Prediction:
    """A prediction on the grid, as `on_grid` gives it, along the edges of images (B, 3, H, W) uint8, at their size."""
    return (
        refine_objects(prediction, images, how)
        if isinstance(prediction, Objects)
        else refine_regions(prediction, images, how)
    )


def _objects(backbone: Backbone, images: Tensor, method: Method, source: Source | None) -> Objects:
    found = discover(backbone, images, method, source)
    assert isinstance(found, Objects)
    return found


def _regions(backbone: Backbone, images: Tensor, method: Method, source: Source | None) -> Regions:
    found = discover(backbone, images, method, source)
    assert isinstance(found, Regions)
    return found
