"""A report as one HTML file that needs no network: pictures first, then curves, tables and the commands that made them."""

from __future__ import annotations

import base64
import html
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from dense.media.draw import Picture, contain, sheet

STYLE = Path(__file__).with_name("style.css")


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows; those of a row are what their captions say of one thing."""

    title: str
    words: str
    rows: Sequence[Mapping[str, Picture]]  # caption -> picture


@dataclass(frozen=True)
class Table:
    """Numbers, and under what protocol they were measured."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: str = ""


@dataclass(frozen=True)
class Command:
    """What to type, and for what."""

    words: str
    line: str


@dataclass
class Part:
    """What one part of the demo shows."""

    name: str
    galleries: list[Gallery] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)  # SVG
    about_charts: str = ""
    tables: list[Table] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)  # commands that made it
    own: list[Command] = field(default_factory=list)  # the same on one's own pictures
    seconds: float = 0.0


def page(title: str, words: str, parts: Sequence[Part], facts: Mapping[str, str]) -> str:
    """The report as HTML."""
    charts = "".join(
        f"<h3>{html.escape(part.name)}</h3><p>{html.escape(part.about_charts)}</p><div class='charts'>{''.join(part.charts)}</div>"
        for part in parts
        if part.charts
    )
    tables = [table(one) for part in parts for one in part.tables]
    times = [[part.name, f"{part.seconds:.0f} s"] for part in parts]
    times.append(["together", f"{sum(part.seconds for part in parts):.0f} s"])
    tables += [
        table(Table("Timings", ("part", "took"), times)),
        table(Table("Made with", ("what", "which"), [list(item) for item in facts.items()])),
    ]
    sections = [
        ("Pictures", "".join(gallery(one) for part in parts for one in part.galleries)),
        ("Curves", charts),
        ("Numbers", f"<div class='tables'>{''.join(tables)}</div>"),
        ("On your own pictures", "".join(command(one) for part in parts for one in part.own)),
        ("Commands that made this", "".join(f"<pre>{html.escape(line)}</pre>" for part in parts for line in part.ran)),
    ]
    kept = [(name, body) for name, body in sections if body]
    links = "".join(f"<a href='#{anchor(name)}'>{name}</a>" for name, _ in kept)
    body = "".join(f"<section id='{anchor(name)}'><h2>{name}</h2>{text}</section>" for name, text in kept)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE.read_text()}</style></head><body><main>"
        f"<header><h1>{html.escape(title)}</h1><p class='lead'>{html.escape(words)}</p><nav>{links}</nav></header>"
        f"{body}</main></body></html>\n"
    )


def anchor(name: str) -> str:
    """'on-your-own-pictures'."""
    return name.lower().replace(" ", "-")


def gallery(one: Gallery) -> str:
    """A row of figures each, with its captions."""
    rows = []
    for row in one.rows:
        cells = "".join(
            f"<figure><img src='{inline(picture)}' alt='{html.escape(name, quote=True)}' width='{picture.shape[1]}' "
            f"height='{picture.shape[0]}'><figcaption>{html.escape(name)}</figcaption></figure>"
            for name, picture in row.items()
        )
        rows.append(f"<div class='row' style='--columns:{len(row)}'>{cells}</div>")
    return f"<h3>{html.escape(one.title)}</h3><p>{html.escape(one.words)}</p>{''.join(rows)}"


def gallery_sheet(one: Gallery, side: int = 192) -> Picture:
    """Its rows as one picture, for a page that is no HTML."""
    return sheet([[contain(cell, side) for cell in row.values()] for row in one.rows], headings=list(one.rows[0]))


def inline(picture: Picture) -> str:
    """A picture as a data address."""
    done, data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 90])
    if not done:
        raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels is too large for the report")
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def table(one: Table) -> str:
    """With its words above it."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in one.header)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in one.rows)
    words = f"<p>{html.escape(one.words)}</p>" if one.words else ""
    return (
        f"<div class='table'><h3>{html.escape(one.title)}</h3>{words}<div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def command(one: Command) -> str:
    """What for, and what to type."""
    return f"<p>{html.escape(one.words)}</p><pre>{html.escape(one.line)}</pre>"


def shell(argv: Sequence[str]) -> str:
    """'dense VERB ...', quoted for a shell."""
    return f"dense {shlex.join(argv)}"


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
