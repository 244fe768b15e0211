"""What the benchmarks share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path


def resident(field: str) -> float:
    """A field of /proc/self/status (VmRSS: now, VmHWM: at the peak) in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_memory(function: Callable[[], object]) -> float:
    """MB of resident memory that a call takes at its peak, beyond what was resident before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def spread(values: Sequence[float]) -> str:
    """Mean, least and most: 0.123 (0.120 to 0.126); one value as it is."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{ends}"
