"""dino-dense: DINO backbones and dense heads. Public names load on first use, so that importing this costs nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dense._moved import install
from dense._version import __version__
from dense.suggest import lazily

install()
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

if TYPE_CHECKING:
    from dense import discover, explore
    from dense.backbone import Backbone, BackboneSpec, WeightsError, load_backbone
    from dense.cli.pretrain import pretrain
    from dense.cli.segment import segment
    from dense.cli.train import train
    from dense.discover import track  # type: ignore[no-redef]
    from dense.evaluate.model import evaluate
    from dense.explore.look import look
    from dense.predict import Depth, Predictor, Segmentation, load
    from dense.suggest import UsageError
    from heads.features import Features

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
    "look": "dense.explore.look",
    "explore": "dense.explore",  # a package that can be called
    "UsageError": "dense.suggest",
    "discover": "dense.discover",  # as a whole
    "pretrain": "dense.cli.pretrain",
    "train": "dense.cli.train",
    "segment": "dense.cli.segment",
    "evaluate": "dense.evaluate",  # a package that can be called
}

__all__ = [
    "Backbone",
    "BackboneSpec",
    "Depth",
    "Features",
    "Predictor",
    "Segmentation",
    "UsageError",
    "WeightsError",
    "__version__",
    "discover",
    "evaluate",
    "explore",
    "load",
    "load_backbone",
    "look",
    "pretrain",
    "segment",
    "track",
    "train",
]


__getattr__ = lazily(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)
