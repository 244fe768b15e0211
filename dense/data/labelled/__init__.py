"""Labelled images: masks, depth or both, from folders, published data sets or embedded scenes."""

from dense.data.labelled.check import check_all
from dense.data.labelled.formats import DepthFormat, LabelFormat
from dense.data.labelled.layouts import LAYOUTS, Layout
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import (
    IGNORE,
    Batch,
    DataError,
    DepthKind,
    Identity,
    Labelled,
    LabelledSource,
    Sample,
    Segments,
    masks_of,
)
from dense.data.labelled.segments import SegmentFormat

__all__ = [
    "IGNORE",
    "LAYOUTS",
    "Batch",
    "DataError",
    "DepthFormat",
    "DepthKind",
    "Identity",
    "LabelFormat",
    "Labelled",
    "LabelledSource",
    "Layout",
    "Sample",
    "SegmentFormat",
    "Segments",
    "check_all",
    "masks_of",
    "open_labelled",
]
