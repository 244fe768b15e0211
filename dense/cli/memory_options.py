"""Options of memories of patches that several verbs share."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from dense.cli.parser import Parser, layers


def add_memory(parser: Parser, size: int = 448) -> None:
    """Add the options of a memory; size: shorter side of images."""
    parser.add_argument("--layers", type=layers, help="of the features; the block at 3/4 of the depth if left out")
    parser.add_argument("--norm", choices=["true", "false"], default="true", help="final norm")
    parser.add_argument("--resize", type=int, default=size, help="shorter side of images; 0 keeps their size")
    parser.add_argument("--patches", type=int, default=100_000, help="largest number of patches in memory")
    parser.add_argument(
        "--choice", choices=["balanced", "random", "coreset"], default="balanced", help="of patches, if there are more"
    )
    parser.add_argument("--neighbours", type=int, default=30, help="that vote")
    parser.add_argument("--temperature", type=float, default=0.02, help="of the votes, exp(cosine / T)")


def memory_options(options: Namespace) -> dict[str, Any]:
    """Return what `add_memory` reads, as `build_memory` takes it."""
    names = ("layers", "patches", "choice", "neighbours", "temperature", "seed")
    given = {name: getattr(options, name) for name in names}
    return given | {"norm": options.norm == "true", "resize": options.resize or None}


def add_good(parser: Parser, size: int = 448) -> None:
    """Add the options of a bank of good images; size: shorter side of images."""
    parser.add_argument("--layers", type=layers, default="last", help="of the features")
    parser.add_argument("--norm", choices=["true", "false"], default="true", help="final norm")
    parser.add_argument("--resize", type=int, default=size, help="shorter side of images; 0 keeps their size")
    parser.add_argument("--patches", type=int, default=100_000, help="largest number of patches in the bank")
    parser.add_argument(
        "--choice", choices=["random", "coreset"], default="random", help="of patches, if there are more"
    )
    words = "of each good image, evenly spaced, where orientation means nothing: 8 are published, 1 is none"
    parser.add_argument("--rotations", type=int, default=1, help=words)
    words = "count patches only above this first principal component; 10 is published for DINOv2-S; all if left out"
    parser.add_argument("--foreground", type=float, metavar="NUMBER", help=words)
    parser.add_argument("--quantile", type=float, default=0.95, help="of scores of good images that is the threshold")
    words = "so many consecutive good images are scored without one another; more than 1 for frames of a video"
    parser.add_argument("--holdout", type=int, default=1, help=words)


def good_options(options: Namespace) -> dict[str, Any]:
    """Return what `add_good` reads, as `build_anomaly` takes it."""
    names = ("layers", "patches", "choice", "rotations", "foreground", "quantile", "holdout")
    given = {name: getattr(options, name) for name in names}
    return given | {"norm": options.norm == "true", "resize": options.resize or None}
