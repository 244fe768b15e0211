"""Import paths of the former layout, kept for one release: they warn and lead to where a module is now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, dict[str, str]]] = {  # former module -> module, former name -> name
    "dense.data.images": ("dense.data.image", {}),
    "dense.data.pictures": ("dense.data.unlabelled", {"open_pictures": "open_images"}),
    "dense.data.videos": ("dense.data.video", {}),
    "dense.evaluate.views": ("dense.evaluate.classification.data", {}),
    "dense.predict.answers": ("dense.predict.predictions", {"Answer": "Prediction"}),
    "dense.predict.video": (
        "dense.media.video",
        {"Film": "Video", "FilmWriter": "VideoWriter", "FilmError": "VideoError"},
    ),
    "dense.tracking": ("dense.discover", {}),
    "dense.visual": ("dense.media.draw", {}),
    "dense.tasks.model": ("dense.model.network", {}),
    "dense.tasks.recipe": ("dense.tasks.options", {}),
    "dense.tasks.inference": ("dense.model.inference", {}),
    "pretrain.cli": ("pretrain.run", {}),
}


MOVED |= {  # modules whose names stayed
    "dense.backbone.checkpoint": ("dense.backbone.weights.checkpoint", {}),
    "dense.backbone.huggingface": ("dense.backbone.weights.huggingface", {}),
    "dense.backbone.names": ("dense.backbone.weights.names", {}),
    "dense.backbone.official": ("dense.backbone.weights.official", {}),
    "dense.backbone.report": ("dense.backbone.weights.report", {}),
    "dense.data.check": ("dense.data.labelled.check", {}),
    "dense.data.clean": ("dense.data.labelled.open", {}),
    "dense.data.depths": ("dense.data.labelled.reading", {}),
    "dense.data.files": ("dense.data.labelled.files", {}),
    "dense.data.folder": ("dense.data.labelled.open", {}),
    "dense.data.layouts": ("dense.data.labelled.layouts", {}),
    "dense.data.masks": ("dense.data.labelled.reading", {}),
    "dense.data.pairing": ("dense.data.labelled.pairing", {}),
    "dense.discover.answers": ("dense.discover.results", {}),
    "dense.discovering": ("dense.discover", {}),
    "dense.evaluate.examples": ("dense.evaluate.classification.data", {}),
    "dense.evaluate.features": ("dense.evaluate.classification.features", {}),
    "dense.evaluate.finetune": ("dense.evaluate.classification.finetune", {}),
    "dense.evaluate.knn": ("dense.evaluate.classification.knn", {}),
    "dense.evaluate.linear": ("dense.evaluate.classification.linear", {}),
}


class Finder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        home, names = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {home}; the former path goes with the next release", FutureWarning, 2)

        def load(name: str) -> Any:
            return getattr(importlib.import_module(home), names.get(name, name))

        module.__getattr__ = load  # type: ignore[method-assign]


def install() -> None:
    """Let the former paths be imported."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
