"""Objects and regions without labels, from attention and features, for every backbone.

Each method is a small frozen dataclass that maps features (B, C, h, w) to a prediction on their grid; `discover`
computes the features of images, applies a method and resizes its prediction to the images' size.
"""

from dense.discover.attention import Attention
from dense.discover.kmeans import CoClusters, KMeans
from dense.discover.lost import LOST
from dense.discover.methods import (
    FittedClusters,
    Method,
    attention,
    discover,
    kmeans,
    lost,
    maskcut,
    on_grid,
    spectral,
    tokencut,
)
from dense.discover.pca import PCA
from dense.discover.refine import Refinement, guided_filter, refine
from dense.discover.results import Objects, Prediction, Regions, boxes
from dense.discover.run_tracking import overlays
from dense.discover.source import Source, default_source, feature_at, similarity
from dense.discover.spectral import Spectral
from dense.discover.stego import Distillation, Stego
from dense.discover.tokencut import MaskCut, TokenCut
from dense.discover.track import Propagation, Tracker, Tracking, propagate, track, tracking, tracking_source
from dense.suggest import former

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
    "overlays",
    "propagate",
    "refine",
    "similarity",
    "spectral",
    "tokencut",
    "track",
    "tracking",
    "tracking_source",
]

__getattr__ = former(__name__, {"Answer": "Prediction", "Learnt": "FittedClusters"})
