"""`dense track`: objects of a first frame followed through a video."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.discover_options import SETTINGS_OF_TRACKING, add_features, add_tracking, tracking_source_of
from dense.cli.parser import (
    Former,
    Parser,
    add_backbone,
    add_overwrite,
    again,
    check_sources,
    open_backbone,
    reading_of,
    run_folder,
    warn_if_random,
)
from dense.console import hint

EXAMPLES = (
    ("dense track VIDEO.mp4 --mask FIRST.png --backbone dino_vits16 --weights FILE --output tracked", "a video"),
)


def parser(**options: bool) -> Parser:
    parser = Parser("dense track", "Follow the objects of a first frame through a video.", EXAMPLES, **options)
    parser.add_argument("video", type=Path, help="a video, or a folder of frames")
    parser.add_argument(
        "--mask", type=Path, required=True, help="PNG of the first frame with numbers of objects, 0: none"
    )
    add_backbone(parser)
    parser.add_argument("--out", "--output", type=Path, default=Path("tracked"), help="folder for the predictions")
    add_tracking(parser, "auto")
    add_features(parser)
    parser.add_argument("--overlays", action="store_true", help="also write every frame with its objects as an image")
    parser.add_argument("--no-video", action="store_true", help="write no video of frames with their objects")
    parser.add_argument("--no-film", action=Former, present="--no-video")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    check_sources(options)
    with run_folder("track", options.out, options):
        return track(options)


def track(options: Namespace) -> int:
    """Write the objects of all frames; return the exit status."""
    from dense.data.video import objects_of, read_objects
    from dense.discover import tracking
    from dense.discover.run_tracking import track_to_files
    from dense.media.inputs import Frames

    frames, mask = Frames(options.video, reading_of(options)), read_objects(options.mask)
    objects_of(mask)  # raises for a mask without objects before the backbone is loaded
    backbone = open_backbone(options, frozen=True)
    changes = {name: getattr(options, name) for name in SETTINGS_OF_TRACKING}
    settings = tracking(options.protocol, backbone.spec.patch, **changes)
    line = track_to_files(
        backbone, frames, mask, settings, tracking_source_of(backbone.spec, options), options.out,
        {"weights": options.weights, "protocol": options.protocol}, options.overlays, not options.no_video,
    )  # fmt: skip
    warn_if_random(options)
    print(line)
    hint(again(options, "evaluate", "video", "--data", "DAVIS"), "tracking as numbers")
    return 0
