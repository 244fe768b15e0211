"""`dense look`: what a backbone sees in a photo, on one sheet."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import (
    Parser,
    add_backbone,
    again,
    backbone_in_words,
    check_sources,
    choose_levels,
    is_random,
    open_backbone,
    point,
    reading_of,
    warn_if_random,
)
from dense.console import hint, progress, say
from dense.files import RunFolder

EXAMPLES = (
    ("dense look photo.jpg", "photo_look.png: the image, PCA colours, attention, objects and regions"),
    ("dense look photo.jpg other.jpg --point 320,240", "also the similarity of every patch with the one at a pixel"),
    ("dense look FOLDER --output looked --most 100", "a sheet for each image and video of a folder"),
)


def parser(**options: bool) -> Parser:
    words = "Write a sheet of each image beside what a backbone sees in it, without training: NAME_look.png."
    parser = Parser("dense look", words, EXAMPLES, **options)
    parser.add_argument("images", nargs="+", help="images, folders of images, videos")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the sheets")
    parser.add_argument("--point", type=point, metavar="X,Y", help="show similarity to this pixel of the first image")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the backbone's input; 0: as it is")
    parser.add_argument("--most", type=int, default=24, help="images, evenly spaced among those that there are")
    add_backbone(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.size < 0 or options.most < 1:
        of_verb.error(f"--size {options.size} --most {options.most}: expected 0 or more pixels and 1 or more images")
    check_sources(options)
    choose_levels(options, options.images, options.output)
    with RunFolder(options.output, "look"):
        return look(options)


def look(options: Namespace) -> int:
    """Write the sheets; return the exit status."""
    from dense.data.image import ImageError
    from dense.explore.look import Looking, pictures_of, sample
    from dense.media.draw import write_picture
    from dense.media.inputs import sort_inputs
    from dense.media.video import VideoError

    reading = reading_of(options)
    images, videos = sort_inputs(options.images, reading=reading)
    images = [(path, stem) for path, stem in images if not path.stem.endswith("_look") or str(path) in options.images]
    looking = Looking(open_backbone(options, frozen=True), options.point, options.size)
    failed, written = [], []
    taken = {str(stem) for _, stem in images}
    named = [*images, *((path, path.name if path.stem in taken else path.stem) for path in videos)]
    for path, stem in progress(sample(named, options.most), "images"):
        try:
            pictures, names = pictures_of(path, reading=reading)
            names = [f"{name}, random weights" for name in names] if is_random(options) else names
            sheet = looking.sheet(pictures, names)
        except (ImageError, VideoError) as error:
            failed.append(str(error))
            continue
        except ValueError as error:  # too large, or a point outside
            failed.append(f"{path}: {error}")
            continue
        written.append(options.output / f"{stem}_look.png")
        write_picture(written[-1], sheet)
    if not written and len(failed) == 1:
        raise ValueError(failed[0])
    if failed:
        print(f"left out: {len(failed)}\n  " + "\n  ".join(failed[:20]), file=sys.stderr)
    if not written:
        raise ValueError(f"nothing was written, of {len(failed)} images")
    for path in written:
        print(path)
    say(f"backbone: {backbone_in_words(options)}")
    warn_if_random(options)
    if images:
        given = [name for name in options.images if Path(name) not in videos]
        hint(again(options, "explore", *given, "--output", "page.html"), "click a patch, and see what resembles it")
    else:
        hint(again(options, "discover", *options.images, "--output", "found"), "the objects of all frames")
    return 0
