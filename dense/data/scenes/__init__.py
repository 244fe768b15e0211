"""Embedded data: procedural scenes with exact depth, semantic and instance maps, a pure function of (seed, index)."""

from dense.data.scenes.camera import Camera
from dense.data.scenes.catalogue import CLASSES
from dense.data.scenes.clip import clip
from dense.data.scenes.dataset import SPLITS, Scenes
from dense.data.scenes.scene import Scene, dominant_class, render, sample

__all__ = ["CLASSES", "SPLITS", "Camera", "Scene", "Scenes", "clip", "dominant_class", "render", "sample"]
