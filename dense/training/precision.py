"""The default precision: bf16 where the hardware computes in it, fp32 elsewhere."""

from __future__ import annotations

import torch


def has_bf16() -> bool:
    """Whether the accelerator, or without one the processor, multiplies in bf16 by itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_precision(precision: str | int | None) -> str | int:
    """A Lightning precision; None or "auto" becomes "bf16-mixed" where `has_bf16`, else "32-true"."""
    if precision in (None, "auto"):
        return "bf16-mixed" if has_bf16() else "32-true"
    return precision
