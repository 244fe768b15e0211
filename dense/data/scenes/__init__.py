"""Embedded data: procedural scenes with exact depth, semantic and instance maps, a pure function of (seed, index)."""

from dense.data.scenes.catalogue import CLASSES
from dense.data.scenes.dataset import SPLITS, Scenes, clip
from dense.data.scenes.scene import Scene, dominant_class, render, sample
from dense.data.scenes.world import Camera

__all__ = ["CLASSES", "SPLITS", "Camera", "Scene", "Scenes", "clip", "dominant_class", "render", "sample"]
