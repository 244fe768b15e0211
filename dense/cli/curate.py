"""`dense curate`: deduplicate a pool of images and retrieve a pretraining set from it."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.cli.parser import (
    Parser,
    add_backbone,
    check_sources,
    choose_levels,
    open_backbone,
    reading_of,
    warn_if_random,
)
from dense.console import hint
from dense.files import RunFolder
from dense.items import Items, digest
from dense.ranks import ranks

EXAMPLES = (
    ("dense curate POOL --backbone dino_vits16 --weights FILE --output curated", "drop unusable images and duplicates"),
    (
        "dense curate POOL MORE --like CURATED --held-out TEST --backbone dino_vits16 --weights FILE --total 100000",
        "images similar to CURATED, none of TEST, in equal shares",
    ),
    ("dense curate scenes:train --backbone photos_tiny --resize 96 --crop 96", "embedded scenes, as shards"),
)
SOURCES = "folders, lists, shards or scenes:train"
SETTINGS: dict[str, dict[str, Any]] = {  # fields of dense.curate.Settings, but for the seed
    "hash_distance": {"default": 6, "help": "most differing bits, of 64, between hashes of duplicates, 0 to 7"},
    "threshold": {"default": 0.9, "help": "least cosine of images that are laid over one another, as duplicates are"},
    "held_out_threshold": {
        "default": 0.5,
        "help": "least cosine of a held-out image and an image that is laid over it to see whether it is a copy",
    },
    "agreement": {
        "default": 0.7,
        "help": "least correlation of what both show, for a copy whose hash differs; 0: the cosine alone decides",
    },
    "neighbours": {"default": 16, "help": "nearest neighbours per image in the graph of duplicates"},
    "keep": {"default": "largest", "choices": ("largest", "sharpest"), "help": "which image of a group is kept"},
    "retrieve": {
        "default": "auto",
        "choices": ("auto", "nearest", "clusters"),
        "help": "the nearest images of each curated one, or a sample of its cluster; auto: nearest from 10000 on",
    },
    "per_query": {"default": 4, "help": "images retrieved per curated image"},
    "per_cluster": {"default": 10_000, "help": "most images retrieved from one cluster"},
    "clusters": {"default": 0, "help": "k-means clusters of the pool; 0: one per 100 images, at most 100000"},
    "total": {
        "default": 0,
        "help": "most images of the pool kept, in equal shares from curated sets and sources; 0: no limit",
    },
    "index": {
        "default": "auto",
        "choices": ("auto", "flat", "ivfpq"),
        "help": "flat is exact, ivfpq small and fast; auto: flat up to 200000 images",
    },
}


def parser(**options: bool) -> Parser:
    words = (
        "Drop unusable images, duplicates and copies of held-out images from a pool; keep images similar to a curated "
        "set. The same command continues a run that was stopped."
    )
    parser = Parser("dense curate", words, EXAMPLES, **options)
    add = parser.add_argument
    add("pool", nargs="+", help=f"uncurated images to select from: {SOURCES}")
    add("--like", nargs="+", default=[], help=f"curated images; without them all but copies are kept: {SOURCES}")
    add("--held-out", nargs="+", default=[], help=f"test images, of which no copy may be kept: {SOURCES}")
    add(
        "--held-out-crops", type=float, nargs="*", default=[],
        help="crops of held-out images that are embedded too, as shares of their sides, such as 0.9 0.8",
    )  # fmt: skip
    add("--with-curated", action="store_true", help="add the curated images to the result")
    add("--output", type=Path, default=Path("curated"), help="folder to write to")
    add("--form", choices=("list", "shards"), default=None, help="of the result; a list if all images are files")
    add_backbone(parser, seed="of samples, clusters, scenes and random initialisation")
    add(
        "--readout", choices=("class", "average", "class_average", "last4", "last4_average"), default=None,
        help="class token, average of the patch tokens or both; class if left out",
    )  # fmt: skip
    add("--resize", type=int, default=256, help="shorter side before the crop")
    add("--crop", type=int, default=224, help="side of the centre crop that the backbone receives")
    add("--batch", type=int, default=64, help="images per batch")
    add("--workers", type=int, default=2, help="processes that load images")
    add("--embeddings", type=Path, default=None, help="folder for embeddings; OUTPUT/embeddings if left out")
    add("--part", type=int, default=1024, help="images per file of embeddings, saved twice a minute")
    add("--min-side", type=int, default=64, help="least pixels of the shorter side")
    add("--min-contrast", type=float, default=4.0, help="least standard deviation of the grey values")
    add(
        "--filter", action="append", default=[], metavar="MODULE:FUNCTION",
        help="called with an image and its name: True keeps it, False drops it, an image replaces it; may be repeated",
    )  # fmt: skip
    add("--blur-boxes", type=Path, default=None, help='JSON: {"a.jpg": [[left, top, right, bottom], ...]}')
    for name, option in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=type(option["default"]), **option)
    add("--scenes", type=int, default=1000, help="number of embedded scenes")
    add("--scene-size", type=int, default=128, help="side of the embedded scenes")
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.with_curated and not options.like:
        of_verb.error("--with-curated needs --like")
    check_sources(options)
    choose_levels(options, lambda reading: pool_of(options, options.pool, reading))
    key = digest({name: str(value) for name, value in vars(options).items()})
    with RunFolder(options.output, "curate", again="continues", ranks=ranks(), key=key) as folder:
        return run(options, folder)


def pool_of(options: Namespace, roots: Sequence[str], reading: Any) -> Any:
    """Open the images of a folder, a list, shards, or embedded scenes."""
    from dense.curate import Pool

    return Pool.open(roots, length=options.scenes, size=options.scene_size, seed=options.seed, reading=reading)


def run(options: Namespace, run_folder: RunFolder) -> int:
    """Write the pretraining set and its report; return the exit status."""
    from dense.curate import Embedder, Preparation, Settings, curate, embed_share, read_boxes
    from dense.curate.search import import_faiss
    from dense.evaluate.classification.data import CenterCrop

    import_faiss()  # a missing package is reported before the backbone is loaded
    settings = Settings(**{name: getattr(options, name) for name in (*SETTINGS, "seed")})
    boxes = read_boxes(options.blur_boxes) if options.blur_boxes else {}
    prepare = Preparation(options.min_side, options.min_contrast, tuple(options.filter), boxes)
    view = CenterCrop(options.resize, options.crop)
    reading = reading_of(options)
    pool = pool_of(options, options.pool, reading)
    like = pool_of(options, options.like, reading) if options.like else None
    held_out = pool_of(options, options.held_out, reading) if options.held_out else None
    backbone = open_backbone(options, frozen=True)
    warn_if_random(options)
    folder = options.embeddings or options.output / "embeddings"
    embedder = Embedder(backbone, folder, view, options.readout, options.batch, options.workers, options.part)
    crops, of = options.held_out_crops, run_folder.ranks
    shares = Items([f"share {rank}" for rank in range(of.world)], run_folder if of.world > 1 else None)
    for rank in shares.todo:
        if of.world > 1:
            embed_share(embedder, (pool, like, held_out), prepare, crops, of)
        shares.done(rank)
    with shares.joining() as last:
        if last is None:
            return 0
        report = curate(
            pool, options.output, embedder, like=like, held_out=held_out, crops=crops, settings=settings,
            prepare=prepare, with_curated=options.with_curated, form=options.form,
        )  # fmt: skip
    written = report["written"]
    result = options.output / (written["list"] if "list" in written else written["shards"])
    print(f"kept {written['images']} of {report['counts']['images']} images: {result}")
    print(f"dropped images: {options.output / 'sheet.html'}")
    words = ("--config", "pretrain/small_data", "--data.root", str(result), "--output", "runs/mine")
    hint(shlex.join(["dense", "pretrain", *words]), "a backbone of them")
    return 0
