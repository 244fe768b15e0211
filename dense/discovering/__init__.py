"""`dense discover`: objects and regions of files, folders and films, as masks, pictures and COCO-style annotations."""

from dense.discovering.cli import main

__all__ = ["main"]
