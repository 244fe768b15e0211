"""Memories of labelled patches: segmentation from annotated images, without training."""

from dense.suggest import lazily

__all__ = ["build_insid3", "build_memory", "open_references", "remember"]
__getattr__ = lazily(
    __name__,
    dict.fromkeys(("build_insid3", "build_memory", "remember"), "dense.memory.build")
    | {"open_references": "dense.memory.references"},
)
