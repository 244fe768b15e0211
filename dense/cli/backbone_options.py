"""The backbone on a command line: the options that all verbs share, and what becomes of them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

from dense.backbone.base import Backbone
from dense.backbone.load import load_backbone
from dense.backbone.weights.names import directory
from dense.cli.parser import Parser, device, key_value


def add_backbone(parser: Parser, seed: str = "of random initialisation") -> None:
    """--backbone, --weights, --set, --device and --seed; an empty `seed` is for verbs that have one of their own."""
    parser.add_argument("--backbone", required=True, help="timm name, official name or saved directory")
    parser.add_argument(
        "--weights", default=None, help="'timm', a weight file or a directory; random initialisation if left out"
    )
    parser.add_argument(
        "--set", type=key_value, action="append", default=[], metavar="KEY=VALUE",
        help="override of the backbone, such as padding=resize",
    )  # fmt: skip
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, mps, ...")
    if seed:
        parser.add_argument("--seed", type=int, default=0, help=seed)


def open_backbone(options: Namespace, **overrides: Any) -> Backbone:
    """On its device; random initialisation, if it comes to that, by the seed."""
    torch.manual_seed(options.seed)
    return load_backbone(options.backbone, options.weights, **(overrides | dict(options.set))).to(options.device)


def is_random(options: Namespace) -> bool:
    """Whether the weights are fresh."""
    return options.weights is None and directory(options.backbone) is None


def say_if_random(options: Namespace) -> None:
    """Fresh weights show nothing; so that nobody is misled."""
    if is_random(options):
        print("these weights are random: bring published ones with --weights FILE or a directory as --backbone")
