"""`dense discover`: objects and regions of images and videos without labels."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.discover_options import REFINEMENTS, add_method, given_features, given_settings
from dense.cli.parser import (
    Parser,
    add_backbone,
    add_overwrite,
    again,
    check_sources,
    choose_levels,
    open_backbone,
    reading_of,
    run_folder,
    warn_if_random,
)
from dense.console import hint
from dense.files import RunFolder

SIZE = 320  # shorter side of the backbone's input
EXAMPLES = (
    ("dense discover IMAGES --backbone photos_tiny --method tokencut --output found", "one object per image"),
    (
        "dense discover IMAGES --backbone dino_vits16 --weights FILE --method cocluster --count 8",
        "classes that all images share",
    ),
)


def parser(**options: bool) -> Parser:
    words = "Find objects and regions in images and videos, without labels."
    parser = Parser("dense discover", words, EXAMPLES, **options)
    parser.add_argument("images", nargs="+", help="images, folders of images, videos")
    add_backbone(parser)
    parser.add_argument("--out", "--output", type=Path, default=Path("discovered"), help="folder for the predictions")
    add_method(parser)
    parser.add_argument("--refine", default="guided", choices=REFINEMENTS, help="edges of masks")
    parser.add_argument("--size", type=int, default=SIZE, help="shorter side for the backbone; 0: as it is")
    parser.add_argument("--batch", type=int, default=4, help="images of one size per batch")
    parser.add_argument("--maps", action="store_true", help="also write the soft maps of the masks, as NAME_maps.png")
    parser.add_argument("--no-overlay", action="store_true", help="write masks only, no overlays")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb; return 1 if no image could be read."""
    of_verb = parser()
    options = of_verb.parse_args(argv)
    check_sources(options)
    choose_levels(options, options.images, options.out)
    with run_folder("discover", options.out, options, shared=True) as run:
        return discover(of_verb, options, run)


def discover(of_verb: Parser, options: Namespace, run: RunFolder) -> int:
    """Write what is found in all images and videos; return the exit status."""
    from dense.discover.methods import METHODS, source_of, suited
    from dense.discover.run import DiscoveryRun
    from dense.media.inputs import sort_inputs

    settings = given_settings(of_verb, options, [options.method])[options.method]
    method = METHODS[options.method](**settings) if options.method in METHODS else None
    if options.method == "similarity" and options.point is None:
        of_verb.error("similarity needs --point X,Y, in pixels of the first image")
    if options.size < 0 or options.batch < 1:
        of_verb.error(f"--size {options.size} --batch {options.batch}: expected 0 or more pixels and 1 or more images")
    images, videos = sort_inputs(options.images, without=options.out, reading=reading_of(options))
    if not images and not videos:
        of_verb.error(f"all images lie in {options.out}, the folder for predictions; choose another --out")
    if options.method == "similarity" and videos:
        of_verb.error(f"similarity is for images, not for videos: leave {videos[0]} out")
    backbone = open_backbone(options, frozen=True)
    source = source_of(backbone.spec, options.method, **given_features(options))
    job = DiscoveryRun(
        backbone, options.method, source, images, videos, options.out, options.size, options.batch, options.refine,
        overlays=not options.no_overlay, maps=options.maps, weights=options.weights, run=run,
    )  # fmt: skip
    if options.method == "similarity":
        last = job.similarities(options.point)
    else:
        last = job.discover(suited(method, backbone.spec, source) or job.fit(settings))
    if not last:
        return 0
    warn_if_random(options)
    hint(again(options, "explore", *options.images, "--output", "page.html"), "the features behind it, interactively")
    failed = job.unreadable
    if failed:
        some = "\n  ".join(failed[:20])
        print(f"could not be read: {len(failed)}\n  {some}", file=sys.stderr)
    return 1 if failed and not videos and len(failed) == len(images) else 0
