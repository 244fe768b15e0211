"""What the benchmarks share."""

from __future__ import annotations

import statistics
import textwrap
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


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a Markdown page, or append it."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text() if page.is_file() else ""
    before, found, rest = old.partition(start)
    after = rest.partition(end)[2] if found else ""
    if not found and before:
        before = before.rstrip("\n") + "\n\n"
    page.write_text(f"{before}{start}\n\n{text.strip()}\n\n{end}" + (after or "\n"))


def prose(text: str) -> str:
    """One paragraph of Markdown, wrapped at 120 columns."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def spread(values: Sequence[float]) -> str:
    """Mean, least and most: 0.123 (0.120 to 0.126); one value as it is."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{ends}"
