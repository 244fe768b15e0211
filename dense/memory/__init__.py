"""Memories of patches: segmentation from annotated images, and anomalies from good ones, without training."""

from dense.suggest import lazily

__all__ = ["build_anomaly", "build_insid3", "build_memory", "open_references", "remember"]
__getattr__ = lazily(
    __name__,
    dict.fromkeys(("build_insid3", "build_memory", "remember"), "dense.memory.build")
    | {"build_anomaly": "dense.memory.anomaly", "open_references": "dense.memory.references"},
)
