"""Time, memory, options and Markdown of the benchmarks."""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints the docstring of a benchmark as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: Sequence[Callable[[], object]], rounds: int, warm_up: int = 0) -> list[list[float]]:
    """Call the functions in turn, `warm_up` rounds without a clock; return the seconds of each per round."""
    times = [[seconds(function) for function in functions] for _ in range(warm_up + rounds)][warm_up:]
    return [list(column) for column in zip(*times, strict=True)]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of paired runs."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def last_number(script: str, *words: object) -> float:
    """Run a script in a process of its own and return the last number that it prints."""
    command = [sys.executable, script, *map(str, words)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def resident(field: str) -> float:
    """Return a field of /proc/self/status (VmRSS: now, VmHWM: at the peak) in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_memory(function: Callable[[], object], before: float | None = None) -> float:
    """Return the peak of resident memory during a call in MB, beyond `before` or what was resident (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is resident until then, and would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS") if before is None else before
    function()
    return resident("VmHWM") - before


def once(
    options: argparse.Namespace, name: str, make: Callable[[], dict[str, Any]], used: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what `make()` returned, now or in an earlier call with the same --output, and the minutes that it took.

    options: those with `minutes` gather there what each row took
    used: what the row depends on besides its name; a row that was made with something else ends the program. Rows that
    were kept without this are taken as they are.
    """
    from dense.files import write

    kept = options.output / "rows" / f"{slug(name)}.json"
    settings = None if used is None else json.loads(json.dumps(used, default=str))
    if not kept.is_file():
        start = time.monotonic()
        row = make()
        facts = {"minutes": (time.monotonic() - start) / 60} | ({} if settings is None else {"used": settings})
        write(kept, json.dumps(facts | row, indent=1, default=str) + "\n")
    row = read_row(kept)
    old = row.get("used")
    if settings is not None and old is not None and old != settings:
        changed = [key for key in old | settings if old.get(key) != settings.get(key)]
        words = ", ".join(f"{key} {old.get(key)}, now {settings.get(key)}" for key in changed)
        raise SystemExit(f"{kept} was made with other settings ({words}): choose another --output, or remove that file")
    getattr(options, "minutes", {})[kept.stem] = row["minutes"]
    return row


def read_row(kept: Path) -> dict[str, Any]:
    """Return a row that was kept."""
    try:
        row = json.loads(kept.read_text())
    except ValueError:
        row = None
    if not isinstance(row, dict) or "minutes" not in row:
        raise SystemExit(f"{kept} is no row of this script: remove it, or choose another --output")
    return row


def slug(name: str) -> str:
    """Return a name for files."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def write_section(page: Path, name: str, text: str, inside: str = "") -> None:
    """Replace the text between `<!-- NAME -->` and `<!-- end of NAME -->` in a Markdown page, or append it.

    inside: a section at whose end it is appended; the page's end without one.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text() if page.is_file() else ""
    before, found, rest = old.partition(start)
    after = rest.partition(end)[2] if found else ""
    if not found:
        before, closing, rest = old.partition(f"<!-- end of {inside} -->") if inside else (old, "", "")
        after = f"\n\n{closing}{rest}" if closing else ""
        before = before.rstrip("\n") + "\n\n" if before else ""
    page.write_text(f"{before}{start}\n\n{text.strip()}\n\n{end}" + (after or "\n"))


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def prose(text: str) -> str:
    """Wrap one paragraph of Markdown at 120 columns."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def spread(values: Sequence[float]) -> str:
    """Return mean, minimum and maximum as text: 0.123 (0.120 to 0.126); of one value only the mean."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{ends}"
