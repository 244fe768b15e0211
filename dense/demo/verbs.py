"""Verbs of the command line, run as a user would and remembered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from dense.cli import VERBS
from dense.console import say
from dense.demo.report import Part, shell


def run(part: Part, argv: Sequence[str]) -> None:
    """`dense ARGV` in this process, noted in the part.

    Raises:
        KeyboardInterrupt: it was stopped by a signal, having saved what there is.
    """
    part.ran.append(shell(argv))
    say(f"\n$ {part.ran[-1]}")
    status = import_module(VERBS[argv[0]][0]).main(argv[1:])
    if status in (130, 143):
        raise KeyboardInterrupt("the same command continues")
    if status:
        raise RuntimeError(f"{part.ran[-1]} ended with status {status}")


@contextmanager
def timed(name: str) -> Iterator[Part]:
    """A part, which knows at the end how long it took."""
    say(f"\n== {name}")
    part, start = Part(name), time.perf_counter()
    yield part
    part.seconds = time.perf_counter() - start
    say(f"{name}: {part.seconds:.0f} s")
