"""Progress and notices on the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Count = Callable[[int, int | None], None]

COMMON = {"--quiet": "print results and errors only", "--debug": "show the traceback of an error"}  # of every verb
EVERY = 30.0  # seconds between lines of progress without a terminal

_verb: ContextVar[str | None] = ContextVar("verb", default=None)  # "loud" or "quiet" while a verb runs


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


def say(text: str) -> None:
    """Print a line unless --quiet was given."""
    if not is_quiet():
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning once for all processes of a run, unless --quiet was given."""
    if not is_quiet() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def counting(what: str) -> Iterator[Count]:
    """Yield a function that takes (done, total) and reports progress as `progress` does."""
    if _verb.get() != "loud":
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _lines(what)


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


def _lines(what: str) -> Count:
    begun: tuple[float, int] | None = None
    reported = time.monotonic()

    def count(done: int, total: int | None) -> None:
        nonlocal begun, reported
        now = time.monotonic()
        begun = begun or (now, done)  # a run that continues has done some before
        if now - reported >= EVERY and done > begun[1]:
            reported, rate = now, (done - begun[1]) / max(now - begun[0], 1e-6)
            left = f" of {total}, {rate:.3g} per second, {clock((total - done) / rate)} left" if total else ""
            print(f"{what}: {done}{left}", file=sys.stderr, flush=True)

    return count


def clock(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}"


def check_writable(folder: Path, needed: int = 0) -> None:
    """Raise unless `needed` bytes can be written to `folder`, which need not exist and is not created."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        probe = there / f".probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror or error}; choose another --output") from None
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e6:.0f} MB free, checkpoints need about {needed / 1e6:.0f} MB; free some room or "
            "choose another --output"
        )
