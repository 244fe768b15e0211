"""The report: one HTML file that needs no network, with pictures, curves, tables and the commands that made them."""

from __future__ import annotations

import html
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from dense.cli import VERBS
from dense.console import inner, say
from dense.media.draw import Picture, fit
from dense.media.html import document, figures, table
from dense.training.curves import round_ticks

STYLE = Path(__file__).with_name("style.css")
CELL = 320  # pixels of a picture's longer side


@dataclass(frozen=True)
class Gallery:
    """Rows of captioned pictures; one row per scene, image or video."""

    title: str
    words: str
    rows: Sequence[Mapping[str, Picture]]  # caption -> picture
    page: str = ""  # of `dense explore`, beside the report, of the same images


@dataclass(frozen=True)
class Table:
    """Numbers, and the protocol by which they were measured."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: str = ""


@dataclass(frozen=True)
class Command:
    """A command and its purpose."""

    words: str
    line: str


@dataclass
class Section:
    """One part of the demo: its pictures, curves, numbers and commands."""

    name: str
    galleries: list[Gallery] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)  # SVG
    about_charts: str = ""
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)  # that made this section
    own: list[Command] = field(default_factory=list)  # the same on the user's own images
    seconds: float = 0.0

    def run(self, argv: Sequence[str]) -> None:
        """Run `dense ARGV` in this process and add it to the commands.

        Raises:
            KeyboardInterrupt: the verb was stopped by a signal, and has saved its state.
        """
        self.commands.append(shell(argv))
        say(f"\n$ {self.commands[-1]}")
        with inner():
            status = import_module(VERBS[argv[0]][0]).main(argv[1:])
        if status in (130, 143):
            raise KeyboardInterrupt("the same command continues")
        if status:
            raise RuntimeError(f"{self.commands[-1]} ended with status {status}")


@contextmanager
def section(name: str) -> Iterator[Section]:
    """Yield a new section and measure its time."""
    say(f"\n== {name}")
    new, start = Section(name), time.perf_counter()
    yield new
    new.seconds = time.perf_counter() - start
    say(f"{name}: {new.seconds:.0f} s")


def shell(argv: Sequence[str]) -> str:
    """Return `dense ARGV`, quoted for a shell."""
    return f"dense {shlex.join(argv)}"


def thumbnail(image: Picture) -> Picture:
    """Resize an image to a longer side of `CELL` pixels."""
    return fit(image, CELL)


def page(title: str, words: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """Return the report as HTML; facts: of the run, for its last table."""
    times = [[one.name, f"{one.seconds:.0f} s"] for one in sections]
    times.append(["total", f"{sum(one.seconds for one in sections):.0f} s"])
    tables = [one for part in sections for one in part.tables]
    tables += [
        Table("Timings", ("section", "time"), times),
        Table("Settings and versions", ("name", "value"), list(facts.items())),
    ]
    chapters = {
        "Pictures": "".join(_gallery(one) for part in sections for one in part.galleries),
        "Curves": "".join(_charts(part) for part in sections if part.charts),
        "Numbers": f"<div class='tables'>{''.join(map(_table, tables))}</div>",
        "On your own images": "".join(_command(one) for part in sections for one in part.own),
        "Commands that made this report": "".join(
            f"<pre>{html.escape(line)}</pre>" for part in sections for line in part.commands
        ),
    }
    anchors = {name: name.lower().replace(" ", "-") for name, text in chapters.items() if text}
    links = "".join(f"<a href='#{anchor}'>{name}</a>" for name, anchor in anchors.items())
    body = "".join(
        f"<section id='{anchor}'><h2>{name}</h2>{chapters[name]}</section>" for name, anchor in anchors.items()
    )
    head = f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(words)}</p><nav>{links}</nav>"
    return document(title, STYLE.read_text(), f"<main><header>{head}</header>{body}</main>")


def _titled(title: str, words: str) -> str:
    return f"<h3>{html.escape(title)}</h3>" + (f"<p>{html.escape(words)}</p>" if words else "")


def _gallery(gallery: Gallery) -> str:
    rows = [f"<div class='row' style='--columns:{len(row)}'>{figures(row.items())}</div>" for row in gallery.rows]
    words = "Touch these features: click a patch, and see what resembles it"
    link = f"<p class='lead'><a href='{html.escape(gallery.page, quote=True)}'>{words}</a></p>" if gallery.page else ""
    return _titled(gallery.title, gallery.words) + link + "".join(rows)


def _charts(part: Section) -> str:
    return _titled(part.name, part.about_charts) + f"<div class='charts'>{''.join(part.charts)}</div>"


def _table(one: Table) -> str:
    scroll = f"<div class='scroll'>{table(one.rows, one.header)}</div>"
    return f"<div class='table'>{_titled(one.title, one.words)}{scroll}</div>"


def _command(one: Command) -> str:
    return f"<p>{html.escape(one.words)}</p><pre>{html.escape(one.line)}</pre>"


Curve = tuple[Sequence[float], Sequence[float]]  # steps, values

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 42, 24


def chart(title: str, curves: Mapping[str, Curve], marks: Mapping[str, float] | None = None) -> str:
    """Return an SVG of curves over steps, with a legend if there are several; marks: named horizontal lines."""
    marks = marks or {}
    drawn = {name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()}
    points = [point for line in drawn.values() for point in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [*(y for _, y in points), *marks.values()]
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    ticks = round_ticks(min(ys), max(ys))
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
    label = html.escape(title, quote=True)
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(parts)}</svg>"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)
