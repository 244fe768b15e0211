"""Self-supervised pretraining of backbones. Public names load on first use."""

from __future__ import annotations

from dense.suggest import lazily

_PUBLIC = {
    "DINO": "pretrain.module",
    "PretrainData": "pretrain.data",
    "MultiCrop": "pretrain.views",
    "MixedCrops": "pretrain.mixed",
    "MultiCropNetwork": "pretrain.network",
    "ProjectionHead": "pretrain.head",
    "DINOLoss": "pretrain.losses",
    "IBOTLoss": "pretrain.losses",
    "KoLeoLoss": "pretrain.losses",
    "GramLoss": "pretrain.losses",
    "FeatureLoss": "pretrain.losses",
    "RelationLoss": "pretrain.losses",
    "BlockMasks": "pretrain.masking",
    "Center": "pretrain.centering",
    "SinkhornKnopp": "pretrain.centering",
    "Teacher": "pretrain.teacher",
    "HealthMonitor": "pretrain.health",
    "Recipe": "pretrain.recipe",
}

__all__ = list(_PUBLIC)

__getattr__ = lazily(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)
