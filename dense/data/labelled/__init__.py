"""Labelled images: layouts, masks, depth maps, and the checks before training."""
