"""Inputs of the golden values: a deterministic tensor that any language can make."""

import numpy as np
import torch
from torch import Tensor


def det(*shape: int, phase: float = 0.0) -> Tensor:
    """sin(0.7 i + phase) + 0.3 cos((1.9 i^2 mod 6.283) + phase) over the flat index i, in float64, rounded to fp32."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = np.sin(0.7 * i + phase) + 0.3 * np.cos(np.mod(1.9 * i * i, 6.283) + phase)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)
