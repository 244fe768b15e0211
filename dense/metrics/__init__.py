"""Metrics of dense predictions: sums over a set stay on the device, and values are computed once at the end."""

from dense.metrics.boundary import BoundaryIoU, DepthEdges
from dense.metrics.crops import CROPS, crop_mask, kitti_benchmark_window
from dense.metrics.depth import DepthMetrics, RelativeDepthMetrics
from dense.metrics.masks import MaskAP, PanopticQuality, shared_pixels
from dense.metrics.restoration import InStrips, RestorationMetrics, psnr, ssim
from dense.metrics.segmentation import SegmentationMetrics

__all__ = [
    "CROPS",
    "BoundaryIoU",
    "DepthEdges",
    "DepthMetrics",
    "InStrips",
    "MaskAP",
    "PanopticQuality",
    "RelativeDepthMetrics",
    "RestorationMetrics",
    "SegmentationMetrics",
    "crop_mask",
    "kitti_benchmark_window",
    "psnr",
    "shared_pixels",
    "ssim",
]
