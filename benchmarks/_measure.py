"""What the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
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
