"""Options for what a published file does not contain, such as the unit of its depth."""

from __future__ import annotations

import argparse
from typing import Any

from dense.cli.parser import key_value

NAMES = ("family", "kind", "max_depth", "backbone", "weights")


def add_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Add --family, --kind, --max-depth, --backbone, --weights and --set KEY=VALUE."""
    group = parser.add_argument_group("of a published file or directory, what it cannot say itself (docs/published.md)")
    group.add_argument("--family", help="such as depth_anything_v2, where the keys fit several")
    group.add_argument("--kind", help="of its depth: relative, metric, nyu, kitti")
    group.add_argument("--max-depth", type=float, help="metres, of metric heads")
    if "backbone" not in without:
        group.add_argument("--backbone", help="that a head without one stands on: a name or a saved directory")
    group.add_argument("--weights", help="of that backbone")
    if "set" not in without:
        group.add_argument(
            "--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="anything else"
        )


def published_facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as keyword arguments of `load_published`."""
    given = {name: getattr(options, name) for name in NAMES if getattr(options, name, None) is not None}
    return given | dict(options.set)
