"""Curate a pretraining set: deduplicate a large uncurated pool and retrieve images similar to a small curated set.

The method of DINOv2 (Oquab et al., 2023), section 3.
"""

import warnings
from typing import Any

from dense.curate.embeddings import Embedder
from dense.curate.filters import Preparation, read_boxes
from dense.curate.pool import Pool
from dense.curate.run import curate
from dense.curate.settings import Settings

__all__ = ["Embedder", "Pool", "Preparation", "Settings", "curate", "read_boxes"]


def __getattr__(name: str) -> Any:
    if name == "Pile":
        warnings.warn("dense.curate.Pile is now dense.curate.Pool", FutureWarning, stacklevel=2)
        return Pool
    raise AttributeError(f"module 'dense.curate' has no attribute {name!r}")
