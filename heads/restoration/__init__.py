"""Restoration of degraded images, guided by DINO features."""

from heads.restoration.guidance import AddFusion, ChannelFusion, PixelSemanticFusion, WindowFusion
from heads.restoration.head import RestorationHead, RestoredImage
from heads.restoration.restormer import BODIES, Restormer

__all__ = [
    "BODIES",
    "AddFusion",
    "ChannelFusion",
    "PixelSemanticFusion",
    "RestorationHead",
    "RestoredImage",
    "Restormer",
    "WindowFusion",
]
