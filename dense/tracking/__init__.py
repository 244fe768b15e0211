"""`dense track`: objects of a first frame followed through a film or a folder of frames."""

from dense.tracking.cli import main
from dense.tracking.drawing import drawn, overlays

__all__ = ["drawn", "main", "overlays"]
