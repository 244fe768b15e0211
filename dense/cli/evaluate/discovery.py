"""Measures of objects and tracks that are found without labels."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from dense.cli.discover_options import (
    METHODS,
    SETTINGS_OF_TRACKING,
    add_features,
    add_settings,
    add_tracking,
    given_features,
    given_settings,
    tracking_source_of,
)
from dense.cli.evaluate.shared import add_common
from dense.cli.parser import Parser, open_backbone, reading_of
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result

DISCOVERY = ("tau", "foreground", "count", "share", "mode", "k_patches", "passes", "steps")  # settings of methods


def add_discovery(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, ade20k, cityscapes")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--learn", help="split on which cocluster and stego are fitted; --split if left out")
    parser.add_argument(
        "--method", nargs="+", default=["attention", "lost", "tokencut"], choices=[*METHODS, "all"],
        help="methods to measure; attention makes one mask per head unless --mode is given",
    )  # fmt: skip
    add_settings(parser)
    parser.add_argument("--refine", default="none", choices=["none", "guided", "grabcut"], help="edges of masks")
    parser.add_argument("--size", type=int, default=0, help="shorter side for the backbone; 0: as it is")
    parser.add_argument(
        "--background", nargs="+", help="classes that are no objects; background, sky and ground if left out"
    )
    parser.add_argument("--least", type=float, default=0.002, help="smallest share of the image that is an object")
    parser.add_argument("--baselines", action="store_true", help="also the same backbone, randomly initialised")
    parser.add_argument("--scenes", type=int, default=200, help="number of embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes in pixels")


def add_video(parser: Parser) -> None:
    add_common(parser)
    where = "folder of DAVIS-2017, or scenes for a camera that moves past them"
    parser.add_argument("--data", required=True, help=where)
    parser.add_argument("--split", default="val", help="train, val, or another list in ImageSets/2017")
    add_tracking(parser, "v1")
    add_features(parser)
    parser.add_argument(
        "--baselines", action="store_true", help="also random initialisation, and the first mask left in place"
    )
    parser.add_argument("--clips", type=int, default=20, help="number of embedded clips")
    parser.add_argument("--frames", type=int, default=24, help="frames per clip")
    parser.add_argument("--side", type=int, default=128, help="side of the frames in pixels")


def discovery(options: Namespace) -> Result:
    names = list(METHODS) if "all" in options.method else list(dict.fromkeys(options.method))
    of_verb = Parser("dense evaluate discovery", "", ())
    settings = given_settings(of_verb, options, names, DISCOVERY)
    if options.size < 0 or not 0 <= options.least < 1:
        of_verb.error(f"--size {options.size} --least {options.least}: expected 0 or more pixels and a share below 1")
    from dense.data.labelled.open import open_labelled
    from dense.discover.methods import source_of
    from dense.evaluate.discovery import measure_discovery
    from dense.evaluate.objects import ObjectTargets

    def targets_of(split: str) -> ObjectTargets:
        data = open_labelled(
            options.data, split, layout=options.layout, targets=("labels",),
            length=options.scenes, size=options.side, seed=options.seed, reading=reading_of(options),
        )  # fmt: skip
        return ObjectTargets(data, options.background, options.least)

    targets = targets_of(options.split)
    fit_to = targets_of(options.learn) if options.learn else None
    backbone = open_backbone(options, frozen=True)
    sources = {name: source_of(backbone.spec, name, **given_features(options)) for name in names}
    described = {name: getattr(options, name) for name in ("data", "split", "learn")}
    return measure_discovery(
        backbone, targets, settings, sources, fit_to=fit_to, refinement=options.refine, shorter=options.size,
        baselines=options.baselines, seed=options.seed, names=described,
    )  # fmt: skip


def video(options: Namespace) -> Result:
    from dense.data.video import davis, scene_clips
    from dense.discover import tracking
    from dense.evaluate.video import measure_video

    scenes = options.data == "scenes"
    if options.levels is not None or options.channels is not None:
        raise UsageError(
            "--levels and --channels: DAVIS and the rendered scenes hold RGB frames of 8 bits, whose levels are known; "
            "leave them out. dense track follows objects in a video of your own"
        )
    if scenes:
        clips: Any = scene_clips(options.split, options.clips, options.frames, options.side, options.seed)
        options.size = 0 if options.size is None else options.size
    else:
        clips = davis(options.data, options.split)
    backbone = open_backbone(options, frozen=True)
    changes = {name: getattr(options, name) for name in SETTINGS_OF_TRACKING}
    settings = tracking(options.protocol, backbone.spec.patch, **changes)
    names = {name: getattr(options, name) for name in ("data", "split", "protocol")}
    return measure_video(
        backbone, clips, settings, tracking_source_of(backbone.spec, options), baselines=options.baselines,
        seed=options.seed, names=names | {"side": options.side if scenes else 0},
    )  # fmt: skip
