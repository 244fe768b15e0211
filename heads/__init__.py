"""Decoders: they eat `Features` and return dense maps."""

from heads.build import build
from heads.dpt import DPT
from heads.features import Features
from heads.head import DenseHead
from heads.linear import LinearHead
from heads.outputs import Bins, Classes, DepthKind, Regression
from heads.pyramid import PyramidHead
from heads.restoration import Picture, PixelSemanticFusion, RestorationHead, Restormer

__all__ = [
    "DPT",
    "Bins",
    "Classes",
    "DenseHead",
    "DepthKind",
    "Features",
    "LinearHead",
    "Picture",
    "PixelSemanticFusion",
    "PyramidHead",
    "Regression",
    "RestorationHead",
    "Restormer",
    "build",
]
