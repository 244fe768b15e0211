"""Measure a frozen or fine-tuned backbone by protocols that are named, saved and comparable."""

from dense.evaluate.features import Pooled, Readout, evaluating, extract, statistics
from dense.evaluate.knn import Votes, accuracy, knn_accuracy, knn_classify
from dense.evaluate.probe import SceneProbe, probe_scenes

__all__ = [
    "Pooled",
    "Readout",
    "SceneProbe",
    "Votes",
    "accuracy",
    "evaluating",
    "extract",
    "knn_accuracy",
    "knn_classify",
    "probe_scenes",
    "statistics",
]
