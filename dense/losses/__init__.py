"""Losses of dense heads, one idea per file, and weighted sums of them from plain data."""

from dense.losses.base import KINDS, DepthKind, DepthLoss
from dense.losses.bins import BinCrossEntropy
from dense.losses.combine import DEPTH, SEGMENTATION, WeightedSum, build
from dense.losses.gradients import GradientLog, GradientMatching, MiDaSLoss
from dense.losses.masks import MaskLoss
from dense.losses.perception import PerceptionContrast
from dense.losses.regression import L1, BerHu
from dense.losses.segmentation import CrossEntropy, Dice, Focal, Lovasz
from dense.losses.silog import SiLog
from dense.losses.ssi import SSI, RobustSSI
from dense.losses.uncertainty import FixedWeights, UncertaintyWeights

__all__ = [
    "DEPTH",
    "KINDS",
    "L1",
    "SEGMENTATION",
    "SSI",
    "BerHu",
    "BinCrossEntropy",
    "CrossEntropy",
    "DepthKind",
    "DepthLoss",
    "Dice",
    "FixedWeights",
    "Focal",
    "GradientLog",
    "GradientMatching",
    "Lovasz",
    "MaskLoss",
    "MiDaSLoss",
    "PerceptionContrast",
    "RobustSSI",
    "SiLog",
    "UncertaintyWeights",
    "WeightedSum",
    "build",
]
