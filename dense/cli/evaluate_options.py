"""Options that the verbs of `dense evaluate` share, and what becomes of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, get_args

from dense.backbone import Backbone
from dense.cli.backbone_options import add_backbone, is_random
from dense.cli.parser import Parser, device
from dense.console import check_writable
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import LabelledSource
from dense.evaluate.classification.data import AsItIs, CenterCrop, Examples, RandomCrop, Resample, View, open_examples
from dense.evaluate.classification.features import final_norm, statistics
from dense.evaluate.protocol import Protocol


def add_common(parser: Parser) -> None:
    """Which backbone, where and how reported."""
    add_backbone(parser, seed="of scenes, of random initialisation and of all training here")
    add_output(parser)


def add_output(parser: Parser) -> None:
    """Where results go."""
    parser.add_argument(
        "--output", type=_writable, default=None, help="folder for results.json; nothing is written without"
    )


def _writable(text: str) -> Path:
    """A folder that can be written, which is found out before the work."""
    check_writable(Path(text))
    return Path(text)


def add_labelled(parser: Parser, scenes: int) -> None:
    """How labelled images are stored, which scenes there are (see `open_data`), and where the model runs."""
    parser.add_argument("--depth", metavar="YAML", help="how depth is stored, instead of depth.yaml")
    parser.add_argument(
        "--val-ratio", type=float, default=0.1, help="data.val_ratio of the training, for a folder that is not split"
    )
    parser.add_argument("--kb-crop", action="store_true", help="cut KITTI's images to 352x1216 at the bottom centre")
    parser.add_argument("--scenes", type=int, default=scenes, help="how many embedded scenes")
    parser.add_argument("--size", type=int, default=96, help="their side")
    parser.add_argument("--camera-height", type=float, nargs=2, help="range of their camera's height in metres")
    parser.add_argument("--seed", type=int, default=0, help="of the series of scenes")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, mps, ...")


def open_data(options: Namespace, **settings: Any) -> LabelledSource:
    """The images that --data, --layout, --split and `add_labelled`'s options name."""
    return open_labelled(
        options.data, options.split, layout=options.layout, length=options.scenes, size=options.size, seed=options.seed,
        camera_height=tuple(options.camera_height) if options.camera_height else None, partial=True,
        depth=options.depth, val_ratio=options.val_ratio, kb_crop=options.kb_crop, **settings,
    )  # fmt: skip


def add_images(parser: Parser) -> None:
    """Which images and how they are shown."""
    where = "folder with one folder a class, list file, shards, or scenes:train, scenes:val, scenes:test"
    parser.add_argument("--train", required=True, help=where)
    parser.add_argument("--val", required=True, help=where)
    parser.add_argument("--resize", type=int, default=256, help="shorter side before the crop; not for scenes")
    parser.add_argument(
        "--crop", type=int, default=None, help="side of the centre crop, or of scenes (224, or 96 for scenes)"
    )
    parser.add_argument("--resample", choices=get_args(Resample), default="bicubic", help="of validation images")
    parser.add_argument("--train-scenes", type=int, default=2000, help="how many embedded scenes to learn from")
    parser.add_argument("--val-scenes", type=int, default=500, help="how many embedded scenes to judge by")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")


def open_pair(options: Namespace) -> tuple[Examples, Examples, View]:
    """Both sets, compared before any work, and the view of validation images."""
    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    scenes = {root.startswith("scenes:") for root in (options.train, options.val)}
    if len(scenes) == 2:
        raise ValueError(f"train is {options.train} and val is {options.val}: only one of them is embedded scenes")
    if options.crop is None:
        options.crop = 96 if scenes == {True} else 224
    view: View = AsItIs() if scenes == {True} else CenterCrop(options.resize, options.crop, options.resample)
    train, val = open_examples(
        options.train,
        options.val,
        scenes=(options.train_scenes, options.val_scenes),
        size=options.crop,
        seed=options.seed,
    )
    return train, val, view


def source_of_weights(options: Namespace) -> str:
    """Where the weights came from, in words."""
    if options.weights is not None:
        return "weights of timm" if options.weights == "timm" else str(options.weights)
    return f"random initialisation (seed {options.seed})" if is_random(options) else str(options.backbone)


def describe_protocol(
    name: str, options: Namespace, backbone: Backbone, train: Examples, val: Examples, view: View, features: str
) -> Protocol:
    """What the verbs on images have in common."""
    words = "as rendered"
    if isinstance(view, CenterCrop):
        words = f"shorter side {view.resize} {view.resample} (PIL, antialiased), centre crop {view.crop}"
    return Protocol(
        name=name,
        train=f"{train.source} ({len(train)} images)",
        val=f"{val.source} ({len(val)} images)",
        view=words,
        resolution=options.crop,
        features=features,
        norm=final_norm(backbone),
        statistics=statistics(backbone),
        classes=len(train.classes),
    )


def random_crop(options: Namespace, resample: Resample) -> View:
    """The view of training images."""
    return RandomCrop(options.crop, resample=resample)
