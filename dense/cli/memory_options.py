"""Options of memories of patches that several verbs share."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any

from dense.cli.parser import Parser, layers
from dense.suggest import UsageError

OF_METHOD = {  # options that one method alone has, None where they were not given
    "knn": ("patches", "choice", "augment", "unknown", "neighbours", "temperature", "lists", "probes"),
    "insid3": ("rank", "cluster", "least"),
}
SIDE = {"knn": 448, "insid3": 1024}


def add_memory(parser: Parser, new: bool = False) -> None:
    """Add the options of a memory; new: whether `--unknown new` adds a class."""
    parser.add_argument(
        "--method", choices=list(OF_METHOD), default="knn",
        help="knn: each patch takes the labels of its nearest neighbours; insid3: clusters that resemble the objects",
    )  # fmt: skip
    parser.add_argument("--layers", type=layers, help="of the features; block at 3/4 of the depth; insid3: the last")
    parser.add_argument("--norm", choices=["true", "false"], default="true", help="final norm")
    parser.add_argument("--resize", type=int, help="shorter side of images, 0 keeps their size (448; insid3: 1024)")
    parser.add_argument(
        "--square", action=argparse.BooleanOptionalAction, help="squash images to squares (insid3: unless --no-square)"
    )
    parser.add_argument(
        "--refine", choices=("none", "guided"), default="none", help="move edges of classes to those of the image"
    )
    group = parser.add_argument_group("knn")
    group.add_argument("--patches", type=int, help="largest number of patches in memory (100000)")
    group.add_argument("--choice", choices=["balanced", "random", "coreset"], help="of patches, if there are more "
                       "(balanced)")  # fmt: skip
    group.add_argument("--augment", type=int, metavar="N", help="remember N augmented views of each image (0)")
    group.add_argument(
        "--unknown", type=class_or_new if new else int, metavar="CLASS",
        help=f"class of unknown pixels in memory{', or new for one of their own' if new else ''} (none)",
    )  # fmt: skip
    group.add_argument("--neighbours", type=int, help="that vote (30)")
    group.add_argument("--temperature", type=float, help="of the votes, exp(cosine / T) (0.02)")
    group.add_argument(
        "--lists", type=int, nargs="?", const=-1, metavar="N",
        help="search lists of the memory by faiss instead of all of it; without N, four times the root of its size",
    )  # fmt: skip
    group.add_argument("--probes", type=int, help="lists that are searched for each patch (32)")
    group = parser.add_argument_group("insid3")
    group.add_argument("--rank", type=int, help="directions of position that are removed (a share of the width)")
    group.add_argument("--cluster", type=float, help="least mean cosine within a cluster (0.6)")
    group.add_argument("--least", type=float, help="least score of a cluster that joins the seed (0.2)")


def class_or_new(word: str) -> int | str:
    """A number, or new."""
    try:
        return word if word == "new" else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word}: expected the number of a class, or new") from None


def memory_options(options: Namespace) -> dict[str, Any]:
    """Return what `add_memory` reads, as `build_memory` or `build_insid3` takes it."""
    for method, names in OF_METHOD.items():
        given = [name for name in names if getattr(options, name) is not None]
        if given and method != options.method:
            raise UsageError(f"--{given[0]} belongs to --method {method}; leave it out, or choose that method")
    side = SIDE[options.method] if options.resize is None else options.resize
    square = options.method == "insid3" if options.square is None else options.square
    if side < 0 or (square and not side):
        raise UsageError(f"--resize {side}: expected {'1 or more pixels for squares' if square else '0 or more'}")
    names = ("layers", *OF_METHOD[options.method])
    found = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if found.get("lists") == -1:
        found["lists"] = None
    found |= {"norm": options.norm == "true", "resize": (side, side) if square else side or None}
    return found | {"refine": options.refine} | ({"seed": options.seed} if options.method == "knn" else {})


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
