"""Heads in training: segmentation, depth, both at once, and restoration."""

from typing import TYPE_CHECKING

from dense.suggest import lazily

if TYPE_CHECKING:
    from dense.model.network import DenseModel
    from dense.tasks.data import DenseData
    from dense.tasks.depth import DepthTask
    from dense.tasks.joint import JointTask
    from dense.tasks.masks import MasksTask
    from dense.tasks.restoration import RestorationTask
    from dense.tasks.segmentation import SegmentationTask

__all__ = ["DenseData", "DenseModel", "DepthTask", "JointTask", "MasksTask", "RestorationTask", "SegmentationTask"]

__getattr__ = lazily(  # a model that predicts needs no Lightning, which takes seconds to import
    __name__,
    {
        "DenseData": "dense.tasks.data",
        "DenseModel": "dense.model.network",
        "DepthTask": "dense.tasks.depth",
        "JointTask": "dense.tasks.joint",
        "MasksTask": "dense.tasks.masks",
        "RestorationTask": "dense.tasks.restoration",
        "SegmentationTask": "dense.tasks.segmentation",
    },
)
