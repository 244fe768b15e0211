"""What the numbers of a depth map mean: metres; 1 / depth up to scale and shift; or the logarithm of metres."""

from __future__ import annotations

from typing import get_args

from heads.outputs import DepthKind

KINDS: tuple[str, ...] = get_args(DepthKind)

__all__ = ["KINDS", "DepthKind"]
