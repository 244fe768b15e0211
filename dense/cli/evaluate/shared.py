"""Options that several measures share."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from dense.cli.parser import Parser, add_backbone, layers, open_backbone, writable
from dense.suggest import UsageError


def add_common(parser: Parser) -> None:
    """Add the backbone, the seed and the folder of results."""
    add_backbone(parser, seed="of scenes, of random initialisation and of all training here")
    add_output(parser)


def add_output(parser: Parser) -> None:
    parser.add_argument("--output", type=writable, help="folder for results.json; nothing is written if left out")


def several(text: str) -> list[str | int]:
    """Layers of which each is measured by itself: a name, an index, or several separated by commas."""
    found = layers(text)
    return [found] if isinstance(found, str) else list(found)


def norms_of(options: Namespace) -> Any:
    """The values of --norm, "all" or None."""
    given = options.norm
    return given if given is None else "all" if "all" in given else [value == "true" for value in given]


def measured_backbone(options: Namespace, verb: str, **overrides: Any) -> Any:
    """Return the backbone; refuse layers and a norm that --set gives, and this measure would ignore."""
    given = dict(options.set)
    for name in ("layers", "norm"):
        if name in given and not (name == "layers" and "default" in (getattr(options, "layers", None) or ())):
            value = str(given[name]).strip("[]").replace(" ", "").lower()
            remedy = f"write --{name} {value}" if name in options else "leave it out: it reads the last layer"
            raise UsageError(f"--set {name}={value}: {verb} would ignore it; {remedy}")
    return open_backbone(options, **overrides)
