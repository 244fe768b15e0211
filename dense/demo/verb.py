"""The parser of `dense demo`, and the order of its sections."""

from __future__ import annotations

import json
import platform
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dense.cli.parser import (
    Parser,
    add_backbone,
    again,
    check_sources,
    open_backbone,
    reading_of,
    warn_if_random,
    weights_in_words,
)
from dense.console import hint, say
from dense.files import RunFolder, check_writable, write
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.backbone import Backbone
    from dense.demo.report import Section

EXAMPLES = (
    ("dense demo", "photographs, and heads on embedded scenes: a report, without downloads"),
    ("dense demo --images FOLDER", "your own images or video, without labels"),
)
SAVED = "demo.json"  # in the folder of a demo of embedded scenes: these options
SETTINGS = (
    "backbone", "weights", "steps", "object_steps", "restoration_steps", "pretraining_steps", "scenes", "measured",
    "shown", "seed",
)  # fmt: skip
LEAST = {"shown": 1, "size": 0, "steps": 0, "object_steps": 0, "restoration_steps": 0, "measured": 1}
WITHOUT = (
    "no photographs: they are in the package scikit-image, which is not installed (pip install -c constraints.txt "
    "'.[demo]' in a clone); embedded scenes alone"
)


def parser(**options: bool) -> Parser:
    words = (
        "Write an HTML report, of photographs and embedded scenes in two to six minutes, depending on the processor, "
        "without downloads; or of your own images."
    )
    parser = Parser("dense demo", words, EXAMPLES, **options)
    add = parser.add_argument
    add("--output", type=Path, help="folder to write to; runs/demo, or runs/own with --images, if left out")
    add("--images", type=Path, help="a folder of images, an image or a video of yours")
    add("--shown", type=int, default=5, help="number of scenes or images in the report")
    add("--size", type=int, default=320, help="of photographs: shorter side of the backbone's input; 0: as it is")
    add("--steps", type=int, default=150, help="training steps per head; 0: no heads")
    add("--object-steps", type=int, default=0, help="training steps of instances, some minutes for 600; 0: none")
    add("--restoration-steps", type=int, default=60, help="training steps of restoration; 0: none")
    add("--pretraining-steps", type=int, help="steps of pretraining, the recipe's if left out; 0: none")
    add("--scenes", type=int, nargs=2, default=(600, 60), help="training and validation scenes of the heads")
    add("--measured", type=int, default=20, help="scenes on which discovery is measured")
    add_backbone(parser, seed="of scenes, heads and random initialisation")
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            of_verb.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    if min(options.scenes) < 2 or (options.pretraining_steps or 0) < 0:
        of_verb.error("--scenes needs 2 or more of both, --pretraining-steps 0 or more")
    check_sources(options)
    start = time.perf_counter()
    import torch

    from dense.data.levels import Reading
    from dense.demo.photographs import evenly
    from dense.demo.report import page, shell
    from dense.model.card import versions

    own = options.images is not None
    reading = reading_of(options)
    if not own and reading != Reading():
        raise UsageError(
            f"the demo shows photographs and rendered scenes, and the options or the backbone name {reading}; add "
            "--images FOLDER to show images of yours"
        )
    options.output = options.output or Path("runs/own" if own else "runs/demo")
    if own:
        evenly(options.images, options.shown, options.output, reading)  # raises before anything is written
        if (options.output / SAVED).is_file():
            raise ValueError(f"{options.output} holds the demo of embedded scenes; choose another --output")
    check_writable(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    if not own:
        check_same_settings(options)
    backbone = open_backbone(options, frozen=True)
    with RunFolder(options.output, "demo", again="continues"):
        sections = of_images(options, backbone) if own else of_scenes(options, backbone)
    facts = {
        "command": shell(["demo", *argv]),
        "backbone": ", ".join(dict.fromkeys((str(backbone.title), backbone.spec.name, weights_in_words(options)))),
        "seed": str(options.seed),
        "threads": str(torch.get_num_threads()),
        "processor": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **versions(),
    }
    target = options.output / "report.html"
    write(target, page(*titles(options, backbone), sections, facts))
    print(f"the demo took {time.perf_counter() - start:.0f} s; open {target} in a browser")
    warn_if_random(options)
    hint(again(options, "look", options.images if own else "PHOTO"), "a sheet of each" if own else "the same of yours")
    return 0


def titles(options: Namespace, backbone: Backbone) -> tuple[str, str]:
    """Return the title of the report and a summary."""
    if options.images is not None:
        return f"Features of {backbone.title}", f"{options.images}, without labels."
    return (
        "A backbone, its features, and heads on it",
        "Everything below was computed on this machine, without downloads. First what the backbone sees in photographs "
        "without labels. Then, on procedural scenes with exact ground truth: a head for depth and classes on the "
        "frozen backbone, compared with random initialisation; denoising; and a short pretraining.",
    )


def named(options: Namespace) -> list[str]:
    """Return the options of a command that name the backbone."""
    changes = [word for key, value in options.set for word in ("--set", f"{key}={value}")]
    weights = ["--weights", str(options.weights)] if options.weights else []
    read = [f"--{name}" for name in ("levels", "channels") if getattr(options, name) is not None]
    declared = [word for name in read for word in (name, *getattr(options, name[2:]))]
    return ["--backbone", options.backbone, *weights, *declared, *changes]


SIDE = 448  # shorter side of photographs where --size 0 keeps theirs


def of_scenes(options: Namespace, backbone: Backbone) -> list[Section]:
    """Return photographs, then heads, discovery, restoration and pretraining on embedded scenes."""
    from dense.backbone.weights.names import directory
    from dense.demo.discovery import discovery
    from dense.demo.disparity import IMAGE, TRUTH, disparity
    from dense.demo.heads import GRID, Plan, heads
    from dense.demo.objects import BLOCKS, objects
    from dense.demo.one_shot import OTHER, one_shot
    from dense.demo.photographs import ABOUT, CREDITS, installed, photographs, scenes
    from dense.demo.pretraining import pretraining
    from dense.demo.restoration import restoration

    folder, source, side = options.output, options.backbone, GRID * backbone.spec.patch
    if options.weights is not None or options.set or directory(options.backbone) is None:
        source = str(folder / "backbone")  # one directory that every command opens
        backbone.save_pretrained(source)
    paths, title = installed()[: options.shown], "Photographs"
    credits = f" From scikit-image: {'; '.join(f'{path.name}: {CREDITS[path.name]}' for path in paths)}."
    if not paths:
        say(WITHOUT)
        paths, title, credits = scenes(folder / "images", options.shown, options.seed), "Embedded scenes", ""
    sections = [
        photographs(
            paths, title, ABOUT + credits, backbone, options.shown, options.size, ["--backbone", source], folder
        )
    ]
    for path in paths:
        if path.name == IMAGE and path.with_name(TRUTH).is_file():
            sections.append(disparity(path, backbone, options.size, options.seed))
            if path.with_name(OTHER).is_file():
                sections.append(one_shot(path, ["--backbone", source], folder, options.size or SIDE))
    if options.steps:
        plan = Plan(folder, options.steps, tuple(options.scenes), side, options.shown, options.seed)
        sections.append(heads(plan, backbone, source))
    if options.object_steps and backbone.spec.kind != "pyramid" and backbone.spec.depth > BLOCKS:
        plan = Plan(folder, options.object_steps, tuple(options.scenes), side, options.shown, options.seed)
        sections.append(objects(plan, source))
    sections.append(discovery(folder, backbone, source, options.measured, options.seed))
    if options.restoration_steps:
        plan = Plan(folder, options.restoration_steps, (options.scenes[0], 1), side, options.shown, options.seed)
        sections.append(restoration(plan, source))
    if options.pretraining_steps != 0:
        sections.append(pretraining(folder, options.pretraining_steps, options.seed))
    return sections


def of_images(options: Namespace, backbone: Backbone) -> list[Section]:
    """Return what needs no labels, on a user's images."""
    from dense.demo.photographs import ABOUT, evenly, photographs, tracked
    from dense.media.video import is_video

    images, shown, size, folder = options.images, options.shown, options.size, options.output
    on = [*named(options), *(["--device", options.device] if options.device != "cpu" else [])]
    reading = reading_of(options)
    paths = evenly(images, shown, folder, reading)
    found = [photographs(paths, images.resolve().name, ABOUT, backbone, shown, size, on, folder, str(images), reading)]
    return [*found, tracked(images, backbone, size, on, folder)] if is_video(images) else found


def check_same_settings(options: Namespace) -> None:
    """Save the settings of this demo; raise if the folder holds the runs of another one."""
    settings = {name: getattr(options, name) for name in SETTINGS} | {"scenes": list(options.scenes)}
    path = options.output / SAVED
    saved = json.loads(path.read_text()) if path.is_file() else None
    changed = ", ".join(name for name in settings if saved and name in saved and saved[name] != settings[name])
    if changed:
        raise ValueError(f"{options.output} holds a demo with another {changed}; delete it or choose another --output")
    if saved is None and any(options.output.iterdir()):
        raise ValueError(f"{options.output} is not empty and holds no demo; choose another --output")
    write(path, json.dumps(settings) + "\n")
