"""Objectives of self-supervised pretraining, one a file."""

from pretrain.losses.dino import DINOLoss

__all__ = ["DINOLoss"]
