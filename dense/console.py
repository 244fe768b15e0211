"""Progress and notices on the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from dense.ranks import ranks

T = TypeVar("T")
Count = Callable[[int, int | None], None]
Show = Callable[[float, int | None, str, float | None], None]  # items done, of how many, part of the next, seconds left

COMMON = {"--quiet": "print results and errors only", "--debug": "show the traceback of an error"}  # of every verb
EVERY = 30.0  # seconds between lines of progress without a terminal

_verb: ContextVar[str | None] = ContextVar("verb", default=None)  # "loud" or "quiet" while a verb runs
_inner: ContextVar[bool] = ContextVar("inner", default=False)
_line: ContextVar[_Line | None] = ContextVar("line", default=None)  # of the items that are counted


@contextmanager
def voice(quiet: bool) -> Iterator[None]:
    """Show progress and notices inside this context, unless `quiet`."""
    token = _verb.set("quiet" if quiet else "loud")
    try:
        yield
    finally:
        _verb.reset(token)


def is_quiet() -> bool:
    """Return whether the running verb was given --quiet."""
    return _verb.get() == "quiet"


def on_terminal() -> bool:
    """Return whether a verb runs at a terminal, at which it may ask."""
    return _verb.get() == "loud" and sys.stdin.isatty() and sys.stderr.isatty()


def say(text: str) -> None:
    """Print a line unless --quiet was given."""
    if not is_quiet():
        print(text, flush=True)


def hint(command: str, words: str) -> None:
    """Name the next useful command, unless --quiet was given or another verb runs this one."""
    if not _inner.get():
        say(f"next: {command}    # {words}")


@contextmanager
def inner() -> Iterator[None]:
    """Run verbs inside another one."""
    token = _inner.set(True)
    try:
        yield
    finally:
        _inner.reset(token)


def warn(text: str) -> None:
    """Print a warning once for all processes of a run, unless --quiet was given."""
    if not is_quiet() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def counting(what: str) -> Iterator[Count]:
    """Yield a function that takes (done, total) and reports progress as `progress` does; `within` adds to it."""
    if _verb.get() != "loud" or ranks().rank:
        yield lambda done, total: None
        return
    with (_bar if sys.stderr.isatty() else _lines)(what) as show:
        line = _Line(show)
        token = _line.set(line)
        try:
            yield line
        finally:
            _line.reset(token)


class _Line:
    """The progress of the items that `counting` counts, and of the parts of the item at hand."""

    def __init__(self, show: Show) -> None:
        self.show, self.done = show, 0
        self.first: int | None = None  # items that were done when counting began
        self.total: int | None = None
        self.start = self.item_start = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self.first is None:  # a run that continues has done some before
            self.first, self.start = done, now
        self.done, self.total, self.item_start = done, total, now
        rate = (done - self.first) / max(now - self.start, 1e-6)
        left = (total - done) / rate if total is not None and rate else None
        self.show(done, total, f", {rate:.3g} per second" if rate else "", left)

    def within(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        item = (now - self.item_start) * total / done  # seconds that the item at hand will take
        mean = (self.item_start - self.start + item) / (self.done - (self.first or 0) + 1)
        others = 0 if self.total is None else self.total - self.done - 1
        left = item - (now - self.item_start) + others * mean
        self.show(self.done + min(done / total, 0.999), self.total, f", {what} {done} of {total}", left)


def within(done: int, total: int, what: str) -> None:
    """Report parts of the item at hand, such as the windows of an image, on the progress line of the items."""
    if (line := _line.get()) is not None and total > 1:
        line.within(done, total, what)


@contextmanager
def _bar(what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, count="")

        def show(done: float, total: int | None, part: str, left: float | None) -> None:
            bar.update(task, completed=done, total=total, count=f"{int(done)}/{'?' if total is None else total}{part}")

        yield show


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and report progress: a bar on a terminal, or a line every `EVERY` seconds.

    Only verbs report progress; nothing is shown if the library is called from Python.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    done = 0
    with counting(what) as count:
        for item in items:
            count(done, total)
            yield item
            done += 1
        count(done, total)


@contextmanager
def _lines(what: str) -> Iterator[Show]:
    reported = time.monotonic()

    def show(done: float, total: int | None, part: str, left: float | None) -> None:
        nonlocal reported
        if time.monotonic() - reported >= EVERY and done:
            reported = time.monotonic()
            count = f"{int(done)}{f' of {total}' if total else ''}"
            print(
                f"{what}: {count}{part}{'' if left is None else f', {clock(left)} left'}", file=sys.stderr, flush=True
            )

    yield show


def clock(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}"
