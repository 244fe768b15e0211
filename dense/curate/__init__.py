"""From a large pool of images and a small curated set to images worth pretraining on, as DINOv2 made its own."""

from dense.curate.embeddings import Embedder
from dense.curate.filters import Preparation, read_boxes
from dense.curate.pool import Pool
from dense.curate.run import curate
from dense.curate.settings import Settings

__all__ = ["Embedder", "Pool", "Preparation", "Settings", "curate", "read_boxes"]
