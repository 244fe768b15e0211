"""Measure backbones and trained models by protocols that are named, saved and comparable.

The package itself can be called: ``dense.evaluate(model, data, protocol=...)`` is `dense.evaluate.model.evaluate`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dense.suggest import lazily

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result

_PUBLIC = {
    "Examples": "dense.evaluate.classification.data",
    "FineTuneRecipe": "dense.evaluate.classification.finetune",
    "LinearRecipe": "dense.evaluate.classification.linear",
    "Pair": "dense.evaluate.classification.data",
    "Pooled": "dense.evaluate.classification.features",
    "Protocol": "dense.evaluate.protocol",
    "Readout": "dense.evaluate.classification.features",
    "Result": "dense.evaluate.protocol",
    "SceneProbe": "dense.evaluate.probe",
    "Votes": "dense.evaluate.classification.knn",
    "accuracy": "dense.evaluate.classification.knn",
    "dino_recipe": "dense.evaluate.classification.linear",
    "dinov2_recipe": "dense.evaluate.classification.linear",
    "evaluate": "dense.evaluate.model",
    "evaluating": "dense.evaluate.classification.features",
    "extract": "dense.evaluate.classification.features",
    "fine_tune": "dense.evaluate.classification.finetune",
    "knn_accuracy": "dense.evaluate.classification.knn",
    "knn_classify": "dense.evaluate.classification.knn",
    "linear_evaluation": "dense.evaluate.classification.linear",
    "measure_finetune": "dense.evaluate.classification.measure",
    "measure_knn": "dense.evaluate.classification.measure",
    "measure_layers": "dense.evaluate.layers",
    "measure_linear": "dense.evaluate.classification.measure",
    "measure_probe": "dense.evaluate.probe",
    "measure_retrieval": "dense.evaluate.retrieval",
    "open_examples": "dense.evaluate.classification.data",
    "statistics": "dense.evaluate.classification.features",
}
__all__ = sorted(_PUBLIC)
__getattr__ = lazily(__name__, _PUBLIC)


class _Callable(ModuleType):
    def __call__(self, model: Any, data: Any, protocol: str = "plain", **options: Any) -> "Result":
        """Measure a trained model or a backbone; see `dense.evaluate.model.evaluate`."""
        return self.evaluate(model, data, protocol, **options)


sys.modules[__name__].__class__ = _Callable
