"""Small line charts as SVG, in the colours of the page that shows them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 42, 24


def chart(title: str, curves: Mapping[str, Curve], marks: Mapping[str, float] | None = None) -> str:
    """Curves over steps with a legend if there are several; marks: horizontal lines with names."""
    marks = marks or {}
    drawn = {name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()}
    points = [point for line in drawn.values() for point in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [*(y for _, y in points), *marks.values()]
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    ticks = nice(min(ys), max(ys))
    down = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [f"<text class='title' x='0' y='13'>{html.escape(title)}</text>"]
    for tick in ticks:
        y = down(tick)
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    for x in dict.fromkeys((min(xs), max(xs))):
        parts.append(f"<text x='{across(x):.1f}' y='{HEIGHT - 6}' text-anchor='middle'>{x:g}</text>")
    parts.append(f"<text x='{(LEFT + WIDTH) / 2:.0f}' y='{HEIGHT - 6}' text-anchor='middle'>step</text>")
    for name, value in marks.items():
        y = down(value)
        parts.append(f"<line class='mark' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{WIDTH - RIGHT}' y='{y - 4:.1f}' text-anchor='end'>{html.escape(name)}</text>")
    legend = LEFT
    for number, (name, line) in enumerate(drawn.items()):
        path = " L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in line)
        parts.append(f"<path class='s{number % 3}' d='M{path}'/>")
        if line:
            parts.append(
                f"<circle class='k{number % 3}' cx='{across(line[-1][0]):.1f}' cy='{down(line[-1][1]):.1f}' r='3'/>"
            )
        if len(drawn) > 1:
            parts.append(f"<circle class='k{number % 3}' cx='{legend + 4}' cy='26' r='4'/>")
            parts.append(f"<text x='{legend + 12}' y='30'>{html.escape(name)}</text>")
            legend += 26 + 6 * len(name)
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(title, quote=True)}'>{''.join(parts)}</svg>"


def nice(low: float, high: float) -> list[float]:
    """Three to seven round numbers that hold all values between them."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)
