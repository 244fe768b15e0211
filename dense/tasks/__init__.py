"""Heads in training: segmentation, depth, and both at once."""

from dense.tasks.data import DenseData
from dense.tasks.depth import DepthTask
from dense.tasks.joint import JointTask
from dense.tasks.model import DenseModel
from dense.tasks.segmentation import SegmentationTask

__all__ = ["DenseData", "DenseModel", "DepthTask", "JointTask", "SegmentationTask"]
