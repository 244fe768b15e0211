"""Decoders from `Features` to dense maps."""

import warnings

from heads.anomaly import AnomalyHead
from heads.build import build
from heads.dpt import DPT
from heads.eomt import EoMT
from heads.features import Features
from heads.head import DenseHead
from heads.insid3 import Insid3Head
from heads.linear import LinearHead
from heads.memory import MemoryHead
from heads.outputs import Bins, Classes, DepthKind, Masks, Regression
from heads.pyramid import PyramidHead
from heads.restoration import PixelSemanticFusion, RestorationHead, RestoredImage, Restormer

__all__ = [
    "DPT",
    "AnomalyHead",
    "Bins",
    "Classes",
    "DenseHead",
    "DepthKind",
    "EoMT",
    "Features",
    "Insid3Head",
    "LinearHead",
    "Masks",
    "MemoryHead",
    "PixelSemanticFusion",
    "PyramidHead",
    "Regression",
    "RestorationHead",
    "RestoredImage",
    "Restormer",
    "build",
]


def __getattr__(name: str) -> type:
    if name == "Picture":
        warnings.warn("heads.Picture is now heads.RestoredImage", FutureWarning, stacklevel=2)
        return RestoredImage
    raise AttributeError(f"module 'heads' has no attribute {name!r}")
