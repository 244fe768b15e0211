"""Methods and feature sources from options of the command line."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, fields
from typing import Any

from dense.arguments import Parser
from dense.backbone import BackboneSpec
from dense.discover import LOST, Attention, KMeans, MaskCut, Source, Spectral, TokenCut
from dense.discover.source import choose

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
    """Which method and its settings; what is left out has the method's own default."""
    parser.add_argument("--method", default="tokencut", choices=[*METHODS, *OTHERS], help="how objects are found")
    parser.add_argument("--tau", type=float, help="tokencut, maskcut, spectral: cosine above which patches are joined")
    parser.add_argument("--count", type=int, help="maskcut: objects; spectral, kmeans, cocluster: regions")
    parser.add_argument("--share", type=float, help="attention: share of it that a mask holds")
    parser.add_argument(
        "--mode", choices=["heads", "mean", "best"], help="attention: a mask a head, of their mean, of the best"
    )
    parser.add_argument("--k-patches", type=int, help="lost: patches of lowest degree that may expand the seed")
    parser.add_argument("--passes", type=int, help="cocluster: times that all pictures are looked at to learn classes")
    parser.add_argument("--classes", help="cocluster: classes.safetensors of an earlier run, instead of learning")
    parser.add_argument("--point", help="similarity: X,Y in pixels of the first picture")
    parser.add_argument("--what", choices=["key", "query", "value", "token"], help="features; by the backbone's family")
    parser.add_argument("--layer", type=int, help="block of features or attention; the last if left out")
    parser.add_argument("--centre", action="store_true", default=None, help="subtract each picture's mean feature")
    parser.add_argument("--no-centre", action="store_false", dest="centre", help="do not")


def method_of(parser: Parser, options: Namespace) -> tuple[Any, dict[str, Any]]:
    """The method, None for those of OTHERS, and the settings that were given; one that does not fit it is an error."""
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    takers = {name: tuple(f.name for f in fields(cls)) for name, cls in METHODS.items()} | OTHERS
    for name in given:
        if name not in takers[options.method]:
            fitting = ", ".join(m for m, names in takers.items() if name in names)
            parser.error(f"--{name.replace('_', '-')} is for {fitting}, not for {options.method}")
    if options.method == "attention":
        if options.what is not None or options.centre is not None:
            parser.error("--what and --centre choose features; attention has none")
        given |= {} if options.layer is None else {"layer": options.layer}
    return (METHODS[options.method](**given) if options.method in METHODS else None), given


def source_of(spec: BackboneSpec, options: Namespace) -> Source:
    """The features that were asked for, or that suit the backbone."""
    return choose(spec, what=options.what, layer=options.layer, centre=options.centre)


def describe(options: Namespace, method: Any, source: Source, spec: BackboneSpec) -> dict[str, Any]:
    """Everything that decides the answers, as plain data."""
    facts: dict[str, Any] = {"method": options.method, "refine": options.refine, "shorter_side": options.size}
    facts["settings"] = asdict(method) if method is not None and options.method in METHODS else {}
    if options.method != "attention":
        facts["features"] = asdict(source)
    return facts | {"backbone": spec.to_dict(), "weights": options.weights}
