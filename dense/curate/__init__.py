"""Curate a pretraining set: deduplicate a large uncurated pool and retrieve images similar to a small curated set.

The method of DINOv2 (Oquab et al., 2023), section 3.
"""

from dense.curate.embeddings import Embedder
from dense.curate.filters import Preparation, read_boxes
from dense.curate.pool import Pool
from dense.curate.run import curate, embed_share
from dense.curate.settings import Settings
from dense.suggest import former

__all__ = ["Embedder", "Pool", "Preparation", "Settings", "curate", "embed_share", "read_boxes"]

__getattr__ = former(__name__, {"Pile": "Pool"})
