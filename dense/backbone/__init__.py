"""Adapters over timm: tokens, positions, attention and weights of every DINO release."""

import dense.backbone.quick  # noqa: F401  it imports timm before the modules below do

# isort: split
from dense.backbone.base import Backbone
from dense.backbone.build import describe
from dense.backbone.convolutional import Hybrid, Pyramid
from dense.backbone.load import load_backbone
from dense.backbone.spec import BackboneSpec
from dense.backbone.vit import Eva, ViT
from dense.backbone.weights.names import ALIASES
from dense.backbone.weights.report import LoadReport, WeightsError

__all__ = [
    "ALIASES",
    "Backbone",
    "BackboneSpec",
    "Eva",
    "Hybrid",
    "LoadReport",
    "Pyramid",
    "ViT",
    "WeightsError",
    "describe",
    "load_backbone",
]
