"""PCA pictures: the main directions of features as colours, at the size of the picture they came from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import get_args

import torch.nn.functional as F

from dense.arguments import Parser
from dense.discover import PCA
from dense.discover.pca import Colours
from dense.visual import Picture, to_picture
from heads.features import Features

SHARED = 64  # pictures, spread evenly, that settle the colours of all


def add_pca(parser: Parser) -> None:
    """Whether and how there are pictures."""
    parser.add_argument(
        "--pca", action="store_true", help="also write the deepest map's main directions as NAME_pca.png"
    )
    parser.add_argument("--pca-shared", action="store_true", help="the same colours mean the same in all pictures")
    parser.add_argument(
        "--pca-foreground", action="store_true", help="the first direction cuts out the object, the rest colour it"
    )
    parser.add_argument("--pca-colours", default="rgb", choices=get_args(Colours), help="of three directions")
    parser.add_argument("--pca-smooth", action="store_true", help="blend cells instead of showing them as squares")


def wants_pca(options: Namespace) -> bool:
    """Whether any of its options asks for pictures."""
    return options.pca or options.pca_shared or options.pca_foreground or options.pca_smooth


def settle(features: Iterable[Features], options: Namespace) -> PCA:
    """Directions and colours of some pictures together."""
    return PCA.fit((f.maps[-1] for f in features), options.pca_foreground)


def coloured(features: Features, options: Namespace, shared: PCA | None = None) -> Picture:
    """One picture's features (a batch of one), by their own main directions or by shared ones."""
    pca = shared or settle([features], options)
    colours = pca(features.maps[-1], options.pca_colours, features.padded_size, options.pca_smooth)
    if features.resized:
        colours = F.interpolate(colours, size=features.image_size, mode="nearest-exact")
    else:
        colours = features.to_image(colours)
    return to_picture(colours[0])
