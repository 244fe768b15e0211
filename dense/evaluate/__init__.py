"""Measure a frozen or fine-tuned backbone by protocols that are named, saved and comparable."""

from dense.evaluate.classification.data import Examples, open_examples
from dense.evaluate.classification.features import Pooled, Readout, evaluating, extract, statistics
from dense.evaluate.classification.finetune import FineTuneRecipe, fine_tune
from dense.evaluate.classification.knn import Votes, accuracy, knn_accuracy, knn_classify
from dense.evaluate.classification.linear import LinearRecipe, dino_recipe, dinov2_recipe, linear_evaluation
from dense.evaluate.probe import SceneProbe, probe_scenes
from dense.evaluate.protocol import Protocol, write_results

__all__ = [
    "Examples",
    "FineTuneRecipe",
    "LinearRecipe",
    "Pooled",
    "Protocol",
    "Readout",
    "SceneProbe",
    "Votes",
    "accuracy",
    "dino_recipe",
    "dinov2_recipe",
    "evaluating",
    "extract",
    "fine_tune",
    "knn_accuracy",
    "knn_classify",
    "linear_evaluation",
    "open_examples",
    "probe_scenes",
    "statistics",
    "write_results",
]
