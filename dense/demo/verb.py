"""The verb."""

from __future__ import annotations

import json
import platform
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from dense.backbone import Backbone, load_backbone
from dense.backbone.weights.names import directory
from dense.cli.backbone_options import say_if_random
from dense.cli.evaluate_options import source_of_weights
from dense.cli.parser import Parser, device
from dense.console import check_writable
from dense.data.image import list_images
from dense.demo.heads import Plan, train_heads
from dense.demo.looking import find_objects
from dense.demo.own import is_video, own_images
from dense.demo.pretraining import pretraining
from dense.demo.report import Part, gallery_sheet, page, shell
from dense.demo.restoring import restore_images
from dense.media.draw import write_picture
from dense.media.video import Video
from dense.model.card import versions

KEPT = "demo.json"  # settings of a demo of embedded scenes, in its folder
SETTINGS = (
    "backbone",
    "weights",
    "steps",
    "restoration_steps",
    "pretraining_steps",
    "scenes",
    "measured",
    "shown",
    "seed",
)


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense demo",
        description="A report of what works: of embedded scenes without downloads in about five minutes, or of your own images.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="folder to write to; runs/demo, or runs/own with --images, if left out",
    )
    parser.add_argument("--images", type=Path, default=None, help="a folder of images, an image or a video of yours")
    parser.add_argument("--backbone", default="scenes_tiny", help="a name, or a saved directory")
    parser.add_argument(
        "--weights", default=None, help="'timm', a weight file or a directory; random initialisation if left out"
    )
    parser.add_argument("--shown", type=int, default=5, help="how many scenes or images are shown")
    parser.add_argument(
        "--size", type=int, default=320, help="of --images: shorter side that the backbone sees; 0: as it is"
    )
    parser.add_argument("--device", type=device, default="cpu", help="of --images: cpu, cuda, mps, ...")
    parser.add_argument("--steps", type=int, default=60, help="of every head; 0 trains none")
    parser.add_argument("--restoration-steps", type=int, default=60, help="of restoration; 0: none")
    parser.add_argument("--pretraining-steps", type=int, default=None, help="the recipe's if left out; 0: none")
    parser.add_argument("--scenes", type=int, nargs=2, default=(200, 40), help="to train heads on, and to validate on")
    parser.add_argument("--measured", type=int, default=40, help="scenes on which discovery is measured")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, of heads and of random initialisation")
    options = parser.parse_args(argv)
    counts = {"shown": 1, "size": 0, "steps": 0, "restoration_steps": 0, "measured": 1}
    for name, least in counts.items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    if min(options.scenes) < 2 or (options.pretraining_steps or 0) < 0:
        parser.error("--scenes needs 2 or more of both, --pretraining-steps 0 or more")
    options.output = options.output or Path("runs/demo" if options.images is None else "runs/own")
    start = time.perf_counter()
    if options.images is not None:  # what cannot be read is found before anything is written
        Video(options.images) if is_video(options.images) else list_images(options.images, without=options.output)
        if (options.output / KEPT).is_file():
            raise ValueError(f"{options.output} holds the demo of embedded scenes; choose another --output")
    check_writable(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.images is None:
        same_demo(options)
    torch.manual_seed(options.seed)
    backbone = load_backbone(options.backbone, options.weights, frozen=True)
    parts = of_scenes(options, backbone) if options.images is None else of_images(options, backbone)
    facts = {
        "command": shell(["demo", *argv]),
        "backbone": f"{backbone.spec.name}, {source_of_weights(options)}",
        "seed": str(options.seed),
        "threads": str(torch.get_num_threads()),
        "processor": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **versions(),
    }
    target = options.output / "report.html"
    target.write_text(page(*titles(options), parts, facts))
    write_picture(target.with_name("pictures.png"), gallery_sheet(parts[0].galleries[0]))
    print(f"the demo took {time.perf_counter() - start:.0f} s; open {target} in a browser")
    say_if_random(options)
    return 0


def titles(options: Namespace) -> tuple[str, str]:
    """Of the report, and what it is in one sentence."""
    if options.images is not None:
        return f"What {options.backbone} sees", f"{options.images}, without a single label."
    return (
        "A backbone, its heads, and objects without labels",
        "Everything below was computed on this machine from procedural scenes, without downloads: a short pretraining, "
        "a frozen backbone with heads for depth and classes beside the same heads on random initialisation, objects found "
        "without labels, and noise taken away. The scenes shown were never trained on.",
    )


def of_scenes(options: Namespace, backbone: Backbone) -> list[Part]:
    """Pretraining, heads, restoration and discovery on embedded scenes."""
    folder, source = options.output, options.backbone
    if options.weights is not None or directory(options.backbone) is None:
        source = str(folder / "backbone")  # one directory that every command opens
        backbone.save_pretrained(source)
    parts = [find_objects(folder, backbone, source, options.shown, options.measured, options.seed)]
    if options.steps:
        plan = Plan(folder, options.steps, tuple(options.scenes), options.shown, options.seed)
        parts.append(train_heads(plan, backbone, source))
    if options.restoration_steps:
        plan = Plan(folder, options.restoration_steps, (options.scenes[0], 1), options.shown, options.seed)
        parts.append(restore_images(plan, source))
    if options.pretraining_steps != 0:
        parts.append(pretraining(folder, options.pretraining_steps, options.seed))
    return parts


def of_images(options: Namespace, backbone: Backbone) -> list[Part]:
    """What a backbone sees in images of one's own."""
    weights = ["--backbone", options.backbone, *(["--weights", options.weights] if options.weights else [])]
    return own_images(options.images, backbone.to(options.device), options.shown, options.size, weights, options.output)


def same_demo(options: Namespace) -> None:
    """Refuse a folder that holds the runs of another demo; the same one continues."""
    settings = {name: getattr(options, name) for name in SETTINGS} | {"scenes": list(options.scenes)}
    kept = options.output / KEPT
    known = json.loads(kept.read_text()) if kept.is_file() else None
    if known is not None and known != settings:
        changed = ", ".join(name for name in settings if known.get(name) != settings[name])
        raise ValueError(f"{options.output} holds a demo with another {changed}; delete it or choose another --output")
    if known is None and any(options.output.iterdir()):
        raise ValueError(f"{options.output} is not empty and holds no demo; choose another --output")
    kept.write_text(json.dumps(settings) + "\n")
