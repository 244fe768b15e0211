"""Losses of self-supervised pretraining, one per file."""

from pretrain.losses.dino import DINOLoss
from pretrain.losses.features import FeatureLoss, RelationLoss
from pretrain.losses.gram import GramLoss
from pretrain.losses.ibot import IBOTLoss, token_weights
from pretrain.losses.koleo import KoLeoLoss

__all__ = ["DINOLoss", "FeatureLoss", "GramLoss", "IBOTLoss", "KoLeoLoss", "RelationLoss", "token_weights"]
