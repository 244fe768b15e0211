"""From pictures to typed answers."""

from pathlib import Path
from typing import Any

from dense.predict.answers import Answer, Depth, Joint, Segmentation
from dense.predict.predictor import Predictor


def load(source: str | Path, **options: Any) -> Predictor:
    """Open a directory that `dense train` wrote; options are `Predictor.open`'s: device, flip, scales, precision, ..."""
    return Predictor.open(source, **options)


__all__ = ["Answer", "Depth", "Joint", "Predictor", "Segmentation", "load"]
