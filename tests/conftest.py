"""Tests name their backbone, or take the one in the package, whatever weights this machine has in its caches."""

from __future__ import annotations

import os

os.environ["DENSE_BACKBONE"] = "scenes_tiny"
os.environ.pop("DENSE_WEIGHTS", None)
