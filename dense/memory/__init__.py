"""Memories of labelled patches: segmentation from annotated images, without training."""

from dense.suggest import lazily

__all__ = ["build_memory", "open_references"]
__getattr__ = lazily(__name__, {"build_memory": "dense.memory.build", "open_references": "dense.memory.references"})
