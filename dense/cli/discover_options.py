"""Methods and feature sources from options of the command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_args

from dense.backbone import BackboneSpec
from dense.cli.parser import Parser
from dense.discover.attention import Attention, Mode
from dense.discover.coclusters import CoClusters
from dense.discover.kmeans import KMeans
from dense.discover.lost import LOST
from dense.discover.maskcut import MaskCut
from dense.discover.propagate import Shape
from dense.discover.source import Source, What, changed, choose
from dense.discover.spectral import Spectral
from dense.discover.stego import Stego
from dense.discover.tokencut import TokenCut
from dense.discover.track import PROTOCOLS, Decide, Tracking, tracking_source

METHODS: dict[str, Any] = {
    "attention": Attention,
    "lost": LOST,
    "tokencut": TokenCut,
    "maskcut": MaskCut,
    "spectral": Spectral,
    "kmeans": KMeans,
}
LEARNT: dict[str, type[CoClusters] | type[Stego]] = {"cocluster": CoClusters, "stego": Stego}  # from all images
OTHERS = {
    "cocluster": ("count", "passes", "classes"),
    "stego": ("count", "passes", "steps", "classes"),
    "similarity": ("point",),
}
SETTINGS_OF_TRACKING = tuple(field.name for field in fields(Tracking))
SETTINGS = ("tau", "count", "share", "mode", "k_patches", "passes", "steps", "classes", "point")


def add_method(parser: Parser) -> None:
    """Which method, and its settings."""
    parser.add_argument("--method", default="tokencut", choices=[*METHODS, *OTHERS], help="how objects are found")
    add_settings(parser)
    parser.add_argument(
        "--classes", help="cocluster, stego: classes.safetensors of an earlier run, instead of learning"
    )
    parser.add_argument("--point", help="similarity: X,Y in pixels of the first image")


def add_settings(parser: Parser) -> None:
    """Settings of methods and features; what is left out has the method's own default, or the family's."""
    parser.add_argument("--tau", type=float, help="tokencut, maskcut, spectral: cosine above which patches are joined")
    parser.add_argument("--count", type=int, help="maskcut: objects; spectral, kmeans, cocluster, stego: regions")
    parser.add_argument("--share", type=float, help="attention: share of it that a mask holds")
    parser.add_argument(
        "--mode", choices=get_args(Mode), help="attention: a mask a head, of their mean, of the best head"
    )
    parser.add_argument("--k-patches", type=int, help="lost: patches of lowest degree that may expand the seed")
    parser.add_argument(
        "--passes", type=int, help="cocluster, stego: times that all images are looked at to cluster them"
    )
    parser.add_argument("--steps", type=int, help="stego: of training")
    add_features(parser)


def add_features(parser: Parser) -> None:
    """Which features; what is left out has the default of the verb."""
    parser.add_argument("--what", choices=get_args(What), help="features; by the backbone's family if left out")
    parser.add_argument("--layer", type=int, help="block of features or attention; the last if left out")
    parser.add_argument("--centre", action="store_true", default=None, help="subtract each image's mean feature")
    parser.add_argument("--no-centre", action="store_false", default=None, dest="centre", help="do not")


def add_tracking(parser: Parser) -> None:
    """How objects are followed; what is left out is the protocol's."""
    parser.add_argument("--protocol", choices=PROTOCOLS, default="v1", help="settings of DINO (v1) or DINOv3 (v3)")
    parser.add_argument("--size", type=int, help="shorter side that the backbone sees; 0: as it is")
    parser.add_argument(
        "--multiple", type=int, help="cut the longer side down to a multiple of so many pixels; 0: do not"
    )
    parser.add_argument("--context", type=int, help="frames before that are looked at, besides the first")
    parser.add_argument("--neighbourhood", type=int, help="patches in each direction that are looked at; 0: all")
    parser.add_argument("--shape", choices=get_args(Shape), help="of the neighbourhood")
    parser.add_argument("--topk", type=int, help="patches that count")
    parser.add_argument("--temperature", type=float, help="of their weights, exp(cosine / T)")
    parser.add_argument(
        "--decide", choices=get_args(Decide), help="size at which pixels choose: as shown, or the video's"
    )
    parser.add_argument(
        "--normalise", action="store_true", default=None, help="bring each object's labels to 0..1 first"
    )
    parser.add_argument("--no-normalise", action="store_false", default=None, dest="normalise", help="do not")


def tracking_source_of(spec: BackboneSpec, options: Namespace) -> Source:
    """The features that were asked for, or those of the protocols."""
    return changed(tracking_source(spec), what=options.what, layer=options.layer, centre=options.centre)


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


def source_of(spec: BackboneSpec, method: str, options: Namespace) -> Source:
    """The features that were asked for, or that suit the backbone and the method."""
    return choose(spec, method in OTHERS, what=options.what, layer=options.layer, centre=options.centre)


def describe(options: Namespace, method: Any, source: Source, spec: BackboneSpec) -> dict[str, Any]:
    """Everything that decides the predictions, as plain data."""
    facts: dict[str, Any] = {"method": options.method, "refine": options.refine, "shorter_side": options.size}
    facts["settings"] = {"regions": method.count} if isinstance(method, CoClusters | Stego) else asdict(method)
    if options.method != "attention":
        facts["features"] = asdict(source)
    return facts | {"backbone": spec.to_dict(), "weights": options.weights}
