"""Labelled images: masks, depth or both, from folders, published data sets or embedded scenes."""

from dense.suggest import lazily

_PUBLIC = {
    "Batch": "dense.data.labelled.sample",
    "check_all": "dense.data.labelled.check",
    "DataError": "dense.data.labelled.sample",
    "DepthFormat": "dense.data.labelled.formats",
    "DepthKind": "dense.data.labelled.sample",
    "Identity": "dense.data.labelled.sample",
    "IGNORE": "dense.data.labelled.sample",
    "LabelFormat": "dense.data.labelled.formats",
    "Labelled": "dense.data.labelled.sample",
    "LabelledSource": "dense.data.labelled.sample",
    "Layout": "dense.data.labelled.layouts",
    "LAYOUTS": "dense.data.labelled.layouts",
    "masks_of": "dense.data.labelled.sample",
    "open_labelled": "dense.data.labelled.open",
    "Sample": "dense.data.labelled.sample",
    "SegmentFormat": "dense.data.labelled.segments",
    "Segments": "dense.data.labelled.sample",
}
__all__ = sorted(_PUBLIC)
__getattr__ = lazily(__name__, _PUBLIC)
