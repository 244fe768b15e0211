"""Embedded data: procedural scenes with exact depth, semantic and instance maps, a pure function of (seed, index)."""

from dense.data.scenes.scene import SPLITS, Scene, Scenes, clip, dominant_class, render, sample
from dense.data.scenes.world import CLASSES, Camera

__all__ = ["CLASSES", "SPLITS", "Camera", "Scene", "Scenes", "clip", "dominant_class", "render", "sample"]
