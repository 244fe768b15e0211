"""Memories of patches: segmentation from annotated images, and anomalies from good ones, without training."""

from dense.suggest import lazily

_PUBLIC = {
    "build_anomaly": "dense.memory.anomaly",
    "build_insid3": "dense.memory.build",
    "build_memory": "dense.memory.build",
    "open_references": "dense.memory.references",
    "remember": "dense.memory.build",
}
__all__ = sorted(_PUBLIC)
__getattr__ = lazily(__name__, _PUBLIC)
