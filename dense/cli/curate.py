"""`dense curate`: from a pool of images to a list or shards worth pretraining on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

from dense.cli.backbone_options import add_backbone, open_backbone, say_if_random
from dense.cli.parser import Parser
from dense.console import check_writable
from dense.curate.embeddings import Embedder
from dense.curate.filters import Preparation, find_filter, read_boxes
from dense.curate.pool import Pool
from dense.curate.run import curate
from dense.curate.search import Kind, faiss
from dense.curate.settings import Keep, Retrieve, Settings
from dense.curate.writing import Form
from dense.evaluate.classification.data import CenterCrop
from dense.evaluate.classification.features import READOUTS


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = options_of_verb()
    options = parser.parse_args(argv)
    if options.with_curated and not options.like:
        parser.error("--with-curated needs --like")
    faiss()
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    for text in options.filter:
        find_filter(text)
    boxes = read_boxes(options.blur_boxes) if options.blur_boxes else {}
    prepare = Preparation(options.min_side, options.min_contrast, tuple(options.filter), boxes)
    view = CenterCrop(options.resize, options.crop)
    pool, like, held_out = (
        Pool.open(roots, length=options.scenes, size=options.scene_size, seed=options.seed) if roots else None
        for roots in (options.pool, options.like, options.held_out)
    )
    assert pool is not None
    check_writable(options.output)
    backbone = open_backbone(options, frozen=True)
    say_if_random(options)
    embedder = Embedder(
        backbone, options.embeddings or options.output / "embeddings", view, options.readout, options.batch, options.workers,
        options.part,
    )  # fmt: skip
    report = curate(
        pool, options.output, embedder, like=like, held_out=held_out, crops=options.held_out_crops, settings=settings, prepare=prepare,
        with_curated=options.with_curated, form=options.form,
    )  # fmt: skip
    written = report["written"]
    where = options.output / (written["list"] if "list" in written else written["shards"])
    print(
        f"{written['pictures']} of {report['counts']['pictures']} images stay: {where}; why others do not: {options.output / 'sheet.html'}"
    )
    return 0


def options_of_verb() -> Parser:
    """Everything that can be said."""
    parser = Parser(
        prog="dense curate",
        description="Drop what is unfit, copies, and copies of held-out images; keep what is like a curated set. The same command continues one that was stopped.",
    )
    where = "folders, lists, shards or scenes:train"
    parser.add_argument("pool", nargs="+", help=f"images to choose from: {where}")
    parser.add_argument(
        "--like", nargs="+", default=[], help=f"curated images; all that is no copy stays without: {where}"
    )
    parser.add_argument(
        "--held-out", nargs="+", default=[], help=f"images of tests, of which no copy may stay: {where}"
    )
    parser.add_argument(
        "--held-out-crops",
        type=float,
        nargs="*",
        default=[0.9, 0.8],
        help="parts of held-out images that are looked for too",
    )
    parser.add_argument("--with-curated", action="store_true", help="curated images join the result")
    parser.add_argument("--output", type=Path, default=Path("curated"), help="folder to write to")
    parser.add_argument(
        "--form", choices=get_args(Form), default=None, help="of the result; a list if all images are files"
    )
    add_embedding(parser)
    add_filters(parser)
    add_settings(parser)
    parser.add_argument("--scenes", type=int, default=1000, help="how many, of embedded scenes")
    parser.add_argument("--scene-size", type=int, default=128, help="their side")
    return parser


def add_embedding(parser: Parser) -> None:
    """How images become vectors."""
    add_backbone(parser, seed="")
    parser.add_argument(
        "--readout", choices=READOUTS, default=None, help="class token, average of patches or both; class if left out"
    )
    parser.add_argument("--resize", type=int, default=256, help="shorter side before the crop")
    parser.add_argument("--crop", type=int, default=224, help="side of the centre crop that the backbone sees")
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    parser.add_argument(
        "--embeddings", type=Path, default=None, help="folder for vectors; OUTPUT/embeddings if left out"
    )
    parser.add_argument(
        "--part", type=int, default=1024, help="images a file of vectors: what is lost at most when it is killed"
    )


def add_filters(parser: Parser) -> None:
    """What is unfit."""
    parser.add_argument("--min-side", type=int, default=64, help="pixels of the shorter side")
    parser.add_argument(
        "--min-contrast", type=float, default=4.0, help="standard deviation of grey values; blank below"
    )
    parser.add_argument(
        "--filter", action="append", default=[], metavar="MODULE:FUNCTION",
        help="asked about an image and its name: True keeps, False drops, an image replaces; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--blur-boxes", type=Path, default=None, help='JSON: {"a.jpg": [[left, top, right, bottom], ...]}'
    )


def add_settings(parser: Parser) -> None:
    """See `Settings`."""
    words = {
        "hash_distance": "bits of 64 by which hashes of duplicates may differ, 0 to 7",
        "threshold": "cosine from which on images are duplicates",
        "held_out_threshold": "cosine from which on an image is a held-out one",
        "neighbours": "of each image in the graph of duplicates",
        "keep": "which of a group stays",
        "retrieve": "the nearest of each curated image, or a sample of its cluster; auto: nearest from 10000 on",
        "per_query": "images for each curated one",
        "per_cluster": "images of one cluster at most",
        "clusters": "of the pool; 0: one for 100 images, at most 100000",
        "total": "images of the pool at most, in equal shares from curated sets and sources; 0: no limit",
        "index": "flat is exact, ivfpq small and quick; auto: flat up to 200000",
        "seed": "of samples, clusters, scenes and random initialisation",
    }
    choices = {"keep": Keep, "retrieve": Retrieve, "index": Kind}
    for name, value in asdict(Settings()).items():
        known = get_args(choices[name]) if name in choices else None
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, choices=known, help=words[name]
        )
