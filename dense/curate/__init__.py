"""From a large pile of pictures and a small curated set to pictures worth pretraining on, as DINOv2 made its own."""

from dense.curate.embeddings import Embedder
from dense.curate.filters import Preparation, read_boxes
from dense.curate.pile import Pile
from dense.curate.run import curate
from dense.curate.settings import Settings

__all__ = ["Embedder", "Pile", "Preparation", "Settings", "curate", "read_boxes"]
