"""Options of discovery and tracking that several verbs share.

The choices are literals, because parsers import nothing heavy; a test compares them with the classes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dense.cli.parser import Parser, point

if TYPE_CHECKING:
    from dense.backbone import BackboneSpec
    from dense.discover import Source

METHODS = ("attention", "lost", "tokencut", "maskcut", "spectral", "kmeans", "cocluster", "stego")
ATTENTION_MODES = ("heads", "mean", "best")
FOREGROUNDS = ("attention", "published")
FEATURES = ("key", "query", "value", "token")
PROTOCOLS = ("auto", "v1", "v3")
SHAPES = ("square", "circle")
DECISIONS = ("shown", "own")
REFINEMENTS = ("none", "guided", "grabcut")
SETTINGS = ("tau", "foreground", "count", "share", "mode", "k_patches", "passes", "steps", "classes", "point")
SETTINGS_OF_TRACKING = (
    "context", "neighbourhood", "shape", "topk", "temperature", "size", "across", "multiple", "decide", "normalise",
)  # fmt: skip


def add_method(parser: Parser) -> None:
    """Add --method and the settings of every method."""
    parser.add_argument("--method", default="tokencut", choices=[*METHODS, "similarity"], help="how objects are found")
    add_settings(parser)
    parser.add_argument(
        "--classes", help="cocluster, stego: classes.safetensors of an earlier run, instead of learning"
    )
    parser.add_argument("--point", type=point, metavar="X,Y", help="similarity: pixels of the first image")


def add_settings(parser: Parser) -> None:
    """Add settings of methods and features; what is left out has the method's own default, or the family's."""
    parser.add_argument("--tau", type=float, help="tokencut, maskcut, spectral: cosine above which patches are joined")
    parser.add_argument(
        "--foreground", choices=FOREGROUNDS,
        help="tokencut, maskcut, lost: the side on which the class token attends more densely, or the published rule",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="maskcut: objects; spectral, kmeans, cocluster, stego: regions")
    parser.add_argument("--share", type=float, help="attention: share of its sum that a mask contains")
    parser.add_argument(
        "--mode",
        choices=ATTENTION_MODES,
        help="attention: one mask per head, of the mean over heads, or of the best head",
    )
    parser.add_argument("--k-patches", type=int, help="lost: patches of lowest degree that may expand the seed")
    parser.add_argument("--passes", type=int, help="cocluster, stego: passes over all images")
    parser.add_argument("--steps", type=int, help="stego: training steps")
    add_features(parser)


def add_features(parser: Parser) -> None:
    """Add the choice of features; what is left out has the default of the verb."""
    parser.add_argument("--what", choices=FEATURES, help="features; by the backbone's family if left out")
    parser.add_argument("--layer", type=int, help="block of features or attention; the last if left out")
    parser.add_argument("--centre", action="store_true", default=None, help="subtract each image's mean feature")
    parser.add_argument(
        "--no-centre", action="store_false", default=None, dest="centre", help="keep each image's mean feature"
    )


def add_tracking(parser: Parser, protocol: str) -> None:
    """Add the settings of tracking; what is left out is the protocol's."""
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=protocol,
        help="settings of DINO (v1) or DINOv3 (v3); auto is v1 with a larger input for small objects",
    )  # fmt: skip
    parser.add_argument("--size", type=int, help="shorter side of the backbone's input; 0: as it is")
    parser.add_argument(
        "--across", type=int, help="patches that the smallest object should be across, by a larger input; 0: any"
    )
    parser.add_argument(
        "--multiple", type=int, help="crop the longer side to a multiple of this many pixels; 0: no crop"
    )
    parser.add_argument("--context", type=int, help="number of preceding frames, besides the first")
    parser.add_argument("--neighbourhood", type=int, help="radius of the neighbourhood in patches; 0: whole frame")
    parser.add_argument("--shape", choices=SHAPES, help="shape of the neighbourhood")
    parser.add_argument("--topk", type=int, help="number of most similar patches")
    parser.add_argument("--temperature", type=float, help="temperature T of their weights, exp(cosine / T)")
    parser.add_argument(
        "--decide", choices=DECISIONS, help="resolution of the argmax: backbone input (shown) or video (own)"
    )
    parser.add_argument(
        "--normalise", action="store_true", default=None, help="scale each object's labels to 0..1 before the argmax"
    )
    parser.add_argument(
        "--no-normalise", action="store_false", default=None, dest="normalise", help="use the labels without scaling"
    )


def given_features(options: Namespace) -> dict[str, Any]:
    """Return the fields of `Source` that the options give; None for those left out."""
    return {"what": options.what, "layer": options.layer, "centre": options.centre}


def given_settings(
    parser: Parser, options: Namespace, methods: Sequence[str], settings: Sequence[str] = SETTINGS
) -> dict[str, dict[str, Any]]:
    """Return the settings of each method; one that none of the methods takes ends the program."""
    from dense.discover.methods import settings_by_method

    if list(methods) == ["attention"] and (options.what is not None or options.centre is not None):
        parser.error("--what and --centre choose features; attention has none")
    try:
        return settings_by_method(methods, {name: getattr(options, name) for name in (*settings, "layer")})
    except ValueError as error:
        parser.error(str(error))


def tracking_source_of(spec: BackboneSpec, options: Namespace) -> Source:
    """Return the features that the options give, or those of the protocols."""
    from dense.discover.track import tracking_source

    return tracking_source(spec).changed(**given_features(options))
