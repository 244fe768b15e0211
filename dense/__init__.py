"""dino-dense: DINO backbones and dense heads. Public names load on first use, so that importing this costs nothing."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dense._version import __version__

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

if TYPE_CHECKING:
    from dense import discover
    from dense.backbone import Backbone, BackboneSpec, WeightsError, load_backbone
    from dense.discover import track
    from dense.predict import Depth, Predictor, Segmentation, load
    from heads.features import Features

_ROOMS = {"discover"}  # packages that are public as a whole
_PUBLIC = {
    "load_backbone": "dense.backbone",
    "Backbone": "dense.backbone",
    "BackboneSpec": "dense.backbone",
    "WeightsError": "dense.backbone",
    "Features": "heads.features",
    "load": "dense.predict",
    "Predictor": "dense.predict",
    "Depth": "dense.predict",
    "Segmentation": "dense.predict",
    "track": "dense.discover",
}

__all__ = [
    "Backbone",
    "BackboneSpec",
    "Depth",
    "Features",
    "Predictor",
    "Segmentation",
    "WeightsError",
    "__version__",
    "discover",
    "load",
    "load_backbone",
    "track",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"dense.{name}")
    if not name.startswith("_"):
        from dense.suggest import did_you_mean

        raise AttributeError(f"module 'dense' has no attribute {name!r}.{did_you_mean(name, _PUBLIC)}")
    raise AttributeError(f"module 'dense' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
