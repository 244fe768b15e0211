"""Methods and feature sources from options of the command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_args

from dense.arguments import Parser
from dense.backbone import BackboneSpec
from dense.discover.attention import Attention, Mode
from dense.discover.coclusters import CoClusters
from dense.discover.kmeans import KMeans
from dense.discover.lost import LOST
from dense.discover.maskcut import MaskCut
from dense.discover.source import Source, What, choose
from dense.discover.spectral import Spectral
from dense.discover.tokencut import TokenCut

METHODS: dict[str, Any] = {
    "attention": Attention,
    "lost": LOST,
    "tokencut": TokenCut,
    "maskcut": MaskCut,
    "spectral": Spectral,
    "kmeans": KMeans,
}
OTHERS = {"cocluster": ("count", "passes", "classes"), "similarity": ("point",)}  # these see several pictures at once
SETTINGS = ("tau", "count", "share", "mode", "k_patches", "passes", "classes", "point")


def add_method(parser: Parser) -> None:
    """Which method, and its settings."""
    parser.add_argument("--method", default="tokencut", choices=[*METHODS, *OTHERS], help="how objects are found")
    add_settings(parser)
    parser.add_argument("--classes", help="cocluster: classes.safetensors of an earlier run, instead of learning")
    parser.add_argument("--point", help="similarity: X,Y in pixels of the first picture")


def add_settings(parser: Parser) -> None:
    """Settings of methods and features; what is left out has the method's own default, or the family's."""
    parser.add_argument("--tau", type=float, help="tokencut, maskcut, spectral: cosine above which patches are joined")
    parser.add_argument("--count", type=int, help="maskcut: objects; spectral, kmeans, cocluster: regions")
    parser.add_argument("--share", type=float, help="attention: share of it that a mask holds")
    parser.add_argument(
        "--mode", choices=get_args(Mode), help="attention: a mask a head, of their mean, of the best head"
    )
    parser.add_argument("--k-patches", type=int, help="lost: patches of lowest degree that may expand the seed")
    parser.add_argument("--passes", type=int, help="cocluster: times that all pictures are looked at to learn classes")
    parser.add_argument("--what", choices=get_args(What), help="features; by the backbone's family if left out")
    parser.add_argument("--layer", type=int, help="block of features or attention; the last if left out")
    parser.add_argument("--centre", action="store_true", default=None, help="subtract each picture's mean feature")
    parser.add_argument("--no-centre", action="store_false", default=None, dest="centre", help="do not")


def given_settings(
    parser: Parser, options: Namespace, methods: Sequence[str], settings: Sequence[str] = SETTINGS
) -> dict[str, dict[str, Any]]:
    """Method -> the settings of the command line that it takes; one that none of the methods takes is an error."""
    takers = {name: tuple(f.name for f in fields(cls)) for name, cls in METHODS.items()} | OTHERS
    given = {name: getattr(options, name) for name in settings if getattr(options, name) is not None}
    for name in given:
        if not any(name in takers[method] for method in methods):
            fitting = ", ".join(m for m, names in takers.items() if name in names)
            parser.error(f"--{name.replace('_', '-')} is for {fitting}, not for {', '.join(methods)}")
    if options.layer is not None:
        given["layer"] = options.layer
    if list(methods) == ["attention"] and (options.what is not None or options.centre is not None):
        parser.error("--what and --centre choose features; attention has none")
    return {method: {k: v for k, v in given.items() if k in takers[method]} for method in methods}


def source_of(spec: BackboneSpec, options: Namespace) -> Source:
    """The features that were asked for, or that suit the backbone."""
    return choose(spec, what=options.what, layer=options.layer, centre=options.centre)


def describe(options: Namespace, method: Any, source: Source, spec: BackboneSpec) -> dict[str, Any]:
    """Everything that decides the answers, as plain data."""
    facts: dict[str, Any] = {"method": options.method, "refine": options.refine, "shorter_side": options.size}
    facts["settings"] = {"regions": method.count} if isinstance(method, CoClusters) else asdict(method)
    if options.method != "attention":
        facts["features"] = asdict(source)
    return facts | {"backbone": spec.to_dict(), "weights": options.weights}
