"""Heads in training: segmentation, depth, both at once, and restoration."""

from dense.tasks.data import DenseData
from dense.tasks.depth import DepthTask
from dense.tasks.joint import JointTask
from dense.tasks.model import DenseModel
from dense.tasks.restoration import RestorationTask
from dense.tasks.segmentation import SegmentationTask

__all__ = ["DenseData", "DenseModel", "DepthTask", "JointTask", "RestorationTask", "SegmentationTask"]
