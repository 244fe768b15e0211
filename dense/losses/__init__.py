"""What a dense head learns from: one loss a file, and sums of them from plain data."""

from dense.losses.base import DepthLoss
from dense.losses.berhu import BerHu
from dense.losses.bins import BinCrossEntropy
from dense.losses.combine import DEPTH, SEGMENTATION, WeightedSum, build
from dense.losses.gradient_log import GradientLog
from dense.losses.gradient_matching import GradientMatching, MiDaSLoss
from dense.losses.kinds import KINDS, DepthKind
from dense.losses.l1 import L1
from dense.losses.perception import PerceptionContrast
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
    "MiDaSLoss",
    "PerceptionContrast",
    "RobustSSI",
    "SiLog",
    "UncertaintyWeights",
    "WeightedSum",
    "build",
]
