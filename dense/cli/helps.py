"""Help as the parsers of verbs print it, and, by `python -m dense.cli.helps`, the texts in dense/help that are shown instead.

A parser needs what it parses for, which takes seconds to import.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os

from dense.cli import VERBS
from dense.cli.trainings import HELP, TRAININGS

WIDTH = "110"


def help_of(verb: str) -> str:
    """What the parser of `dense VERB`, or of `dense evaluate NAME`, prints."""
    name, *rest = verb.split()
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        importlib.import_module(VERBS[name][0]).main([*rest, "--help"])
    return text.getvalue()


def kept() -> list[str]:
    """Verbs whose help is kept: all but the trainings, whose short help is made of recipes."""
    from dense.cli.evaluate import VERBS as MEASURES

    return [verb for verb in VERBS if verb not in TRAININGS] + [f"evaluate {name}" for name in MEASURES]


def write() -> None:
    """Anew, and nothing else in their folder."""
    os.environ["COLUMNS"] = WIDTH
    HELP.mkdir(exist_ok=True)
    for path in HELP.glob("*.txt"):
        path.unlink()
    for verb in kept():
        (HELP / f"{verb}.txt").write_text(help_of(verb), encoding="utf-8")


if __name__ == "__main__":
    write()
