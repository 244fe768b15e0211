"""Restoration of degraded images, guided by DINO features."""

from heads.restoration.fusion import AddFusion, ChannelFusion, WindowFusion
from heads.restoration.head import Picture, RestorationHead
from heads.restoration.psf import PixelSemanticFusion
from heads.restoration.restormer import BODIES, Restormer

__all__ = [
    "BODIES",
    "AddFusion",
    "ChannelFusion",
    "Picture",
    "PixelSemanticFusion",
    "RestorationHead",
    "Restormer",
    "WindowFusion",
]
