"""What the numbers of a depth map mean."""

from __future__ import annotations

from typing import Literal, get_args

DepthKind = Literal["metric", "inverse_relative", "log"]  # metres; 1 / depth up to scale and shift; log of metres
KINDS: tuple[str, ...] = get_args(DepthKind)
