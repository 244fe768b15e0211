"""The parser of `dense demo`, and the order of its sections."""

from __future__ import annotations

import json
import platform
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dense.cli.parser import Parser, usable_device, warn_if_random, weights_in_words
from dense.console import hint
from dense.files import RunFolder, check_writable, write

if TYPE_CHECKING:
    from dense.backbone import Backbone
    from dense.demo.report import Section

EXAMPLES = (
    ("dense demo", "embedded scenes: pretraining, heads, discovery, and a report of all of it"),
    ("dense demo --images FOLDER --backbone dino_vits16 --weights FILE", "your own images, without labels"),
)
SAVED = "demo.json"  # in the folder of a demo of embedded scenes: these options
SETTINGS = (
    "backbone", "weights", "steps", "restoration_steps", "pretraining_steps", "scenes", "measured", "shown", "seed",
)  # fmt: skip
LEAST = {"shown": 1, "size": 0, "steps": 0, "restoration_steps": 0, "measured": 1}


def parser(**options: bool) -> Parser:
    words = "Write an HTML report: of embedded scenes in about five minutes, without downloads, or of your own images."
    parser = Parser("dense demo", words, EXAMPLES, **options)
    add = parser.add_argument
    add("--output", type=Path, help="folder to write to; runs/demo, or runs/own with --images, if left out")
    add("--images", type=Path, help="a folder of images, an image or a video of yours")
    add("--backbone", default="scenes_tiny", help="a name, or a saved directory")
    add("--weights", help="'timm', a weight file or a directory; random initialisation if left out")
    add("--shown", type=int, default=5, help="number of scenes or images in the report")
    add("--size", type=int, default=320, help="of --images: shorter side of the backbone's input; 0: as it is")
    add("--device", default="cpu", help="of --images: cpu, cuda, mps, ...")
    add("--steps", type=int, default=60, help="training steps per head; 0: no heads")
    add("--restoration-steps", type=int, default=60, help="training steps of restoration; 0: none")
    add("--pretraining-steps", type=int, help="steps of pretraining, the recipe's if left out; 0: none")
    add("--scenes", type=int, nargs=2, default=(200, 40), help="training and validation scenes of the heads")
    add("--measured", type=int, default=40, help="scenes on which discovery is measured")
    add("--seed", type=int, default=0, help="of scenes, heads and random initialisation")
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            of_verb.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    if min(options.scenes) < 2 or (options.pretraining_steps or 0) < 0:
        of_verb.error("--scenes needs 2 or more of both, --pretraining-steps 0 or more")
    start = time.perf_counter()
    import torch

    from dense.backbone import load_backbone
    from dense.demo.own_images import check_images
    from dense.demo.report import gallery_sheet, page, shell
    from dense.media.draw import write_picture
    from dense.model.card import versions

    own = options.images is not None
    options.output = options.output or Path("runs/own" if own else "runs/demo")
    device = usable_device(options.device)
    if own:
        check_images(options.images, options.output)
        if (options.output / SAVED).is_file():
            raise ValueError(f"{options.output} holds the demo of embedded scenes; choose another --output")
    check_writable(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    if not own:
        check_same_settings(options)
    torch.manual_seed(options.seed)
    backbone = load_backbone(options.backbone, options.weights, frozen=True)
    with RunFolder(options.output, "demo", again="continues"):
        sections = of_images(options, backbone.to(device)) if own else of_scenes(options, backbone)
    facts = {
        "command": shell(["demo", *argv]),
        "backbone": f"{backbone.spec.name}, {weights_in_words(options)}",
        "seed": str(options.seed),
        "threads": str(torch.get_num_threads()),
        "processor": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **versions(),
    }
    target = options.output / "report.html"
    write(target, page(*titles(options), sections, facts))
    write_picture(target.with_name("pictures.png"), gallery_sheet(sections[0].galleries[0]))
    print(f"the demo took {time.perf_counter() - start:.0f} s; open {target} in a browser")
    warn_if_random(options)
    hint("dense look PHOTO", "the same of a photo of yours")
    return 0


def titles(options: Namespace) -> tuple[str, str]:
    """Return the title of the report and a summary."""
    if options.images is not None:
        return f"Features of {options.backbone}", f"{options.images}, without labels."
    return (
        "A backbone, its heads, and objects without labels",
        "Everything below was computed on this machine from procedural scenes, without downloads: a short pretraining; "
        "heads for depth and classes on a frozen backbone, compared with random initialisation; object discovery "
        "without labels; and denoising. The scenes shown are from the test split.",
    )


def of_scenes(options: Namespace, backbone: Backbone) -> list[Section]:
    """Return discovery, heads, restoration and pretraining on embedded scenes."""
    from dense.backbone.weights.names import directory
    from dense.demo.discovery import discovery
    from dense.demo.heads import Plan, heads
    from dense.demo.pretraining import pretraining
    from dense.demo.restoration import restoration

    folder, source = options.output, options.backbone
    if options.weights is not None or directory(options.backbone) is None:
        source = str(folder / "backbone")  # one directory that every command opens
        backbone.save_pretrained(source)
    sections = [discovery(folder, backbone, source, options.shown, options.measured, options.seed)]
    if options.steps:
        plan = Plan(folder, options.steps, tuple(options.scenes), options.shown, options.seed)
        sections.append(heads(plan, backbone, source))
    if options.restoration_steps:
        plan = Plan(folder, options.restoration_steps, (options.scenes[0], 1), options.shown, options.seed)
        sections.append(restoration(plan, source))
    if options.pretraining_steps != 0:
        sections.append(pretraining(folder, options.pretraining_steps, options.seed))
    return sections


def of_images(options: Namespace, backbone: Backbone) -> list[Section]:
    """Return what needs no labels, on a user's images."""
    from dense.demo.own_images import own_images

    weights = ["--backbone", options.backbone, *(["--weights", options.weights] if options.weights else [])]
    return own_images(options.images, backbone, options.shown, options.size, weights, options.output)


def check_same_settings(options: Namespace) -> None:
    """Save the settings of this demo; raise if the folder holds the runs of another one."""
    settings = {name: getattr(options, name) for name in SETTINGS} | {"scenes": list(options.scenes)}
    path = options.output / SAVED
    saved = json.loads(path.read_text()) if path.is_file() else None
    if saved is not None and saved != settings:
        changed = ", ".join(name for name in settings if saved.get(name) != settings[name])
        raise ValueError(f"{options.output} holds a demo with another {changed}; delete it or choose another --output")
    if saved is None and any(options.output.iterdir()):
        raise ValueError(f"{options.output} is not empty and holds no demo; choose another --output")
    write(path, json.dumps(settings) + "\n")
