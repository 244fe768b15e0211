"""Learning a backbone without labels. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

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
    "BlockMasks": "pretrain.masking",
    "Center": "pretrain.centering",
    "SinkhornKnopp": "pretrain.centering",
    "Teacher": "pretrain.teacher",
    "HealthMonitor": "pretrain.health",
    "Recipe": "pretrain.recipe",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
