"""`dense features`: a backbone's feature maps of images, on disk."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.cli.parser import (
    Parser,
    add_backbone,
    add_overwrite,
    again,
    check_sources,
    choose_levels,
    layers,
    norm,
    open_backbone,
    reading_of,
    run_folder,
    warn_if_random,
    weights_in_words,
)
from dense.console import hint, progress
from dense.files import RunFolder, write
from dense.items import Items, version

SHARED = 64  # images, evenly spread, whose features fit the colours of all
GROUP = 64  # images whose rows of a table are written, and made again, together
EXAMPLES = (
    ("dense features IMAGES --backbone dinov2_vits14 --weights FILE --output maps --layers last4", "four layers"),
    ("dense features IMAGES --backbone photos_tiny --output maps --format none --pca", "PCA pictures only"),
    ("dense features IMAGES --output maps --format none --table maps/images.parquet", "a row per image"),
)


def parser(**options: bool) -> Parser:
    words = "Write feature maps, one file per image, and features.json beside them; with --pca also pictures of them."
    parser = Parser("dense features", words, EXAMPLES, **options)
    parser.add_argument("images", nargs="+", type=Path, help="images or folders of images")
    add_backbone(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--layers", type=layers, default="last", help="last, last4, even4, default, or 2,5,8,11")
    parser.add_argument(
        "--norm", choices=["true", "false", "last"],
        help="final norm; the backbone's default if left out",
    )  # fmt: skip
    parser.add_argument("--format", default="npz", choices=["npz", "safetensors", "zarr", "none"], help="of the maps")
    parser.add_argument("--table", type=Path, help="also write a table of features, FILE.parquet (needs pyarrow)")
    parser.add_argument("--per", default="image", choices=["image", "patch"], help="what a row of the table holds")
    parser.add_argument(
        "--pca", action="store_true", help="also write image and first three components as NAME_pca.png"
    )
    parser.add_argument("--pca-shared", action="store_true", help="use the same components for all images")
    parser.add_argument(
        "--pca-foreground", action="store_true", help="cut out the foreground by the first component, colour the rest"
    )
    parser.add_argument(
        "--pca-colours", choices=("rgb", "hsv", "hue"),
        help="of the components, rgb if left out; hue: as in the write-ups, component 1 as hue and 2 as value",
    )  # fmt: skip
    parser.add_argument("--pca-smooth", action="store_true", help="interpolate between patches")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    pca = any((options.pca, options.pca_shared, options.pca_foreground, options.pca_smooth, options.pca_colours))
    options.pca_colours = options.pca_colours or "rgb"
    if options.format == "none" and not pca and not options.table:
        of_verb.error("--format none writes no maps; add --pca for pictures of them, or --table FILE.parquet")
    if options.table and options.table.suffix != ".parquet":
        of_verb.error(f"--table {options.table}: expected a name that ends in .parquet")
    check_sources(options)
    choose_levels(options, options.images, options.output)
    with run_folder("features", options.output, options, shared=True) as run:
        return features(options, pca, run)


def features(options: Namespace, pca: bool, run: RunFolder) -> int:
    """Write the features of all images; return the exit status."""
    import numpy as np

    from dense.backbone.extract import extract, need, save
    from dense.backbone.tables import Table
    from dense.data.image import ImageError, list_images, read_image
    from dense.data.levels import as_rgb
    from dense.data.values import files_of, stem_of
    from dense.discover.pca import PCA, pca_picture
    from dense.media.draw import write_picture

    if options.format == "zarr":
        need("zarr")
    table = Table(options.table, options.per) if options.table else None
    reading = reading_of(options)
    paths = list_images(options.images, without=options.output, reading=reading)
    backbone = open_backbone(options, frozen=True)
    shared, final = None, norm(options.norm)
    if options.pca_shared:
        some = extract(backbone, paths[:: -(-len(paths) // SHARED)], options.layers, final)
        found = [features.maps[-1] for _, features in some if not isinstance(features, ImageError)]
        shared = PCA.fit(iter(found), options.pca_foreground, options.pca_colours) if found else None
    names: dict[str, str] = {}
    for path in paths:
        names[unused(stem_of(path, reading).name, names)] = str(path)
    stems = list(names)
    items = Items(stems, run, [version(*files_of(path, reading)) for path in paths], GROUP if table else 1)
    waiting: list[tuple[int, dict[str, Any]]] = []  # of a group of the table
    extracted = extract(backbone, [paths[index] for index in items.todo], options.layers, final)
    for index, (path, result) in zip(items.todo, progress(extracted, "features", len(items.todo)), strict=True):
        if isinstance(result, ImageError):
            facts: dict[str, Any] = {"failed": str(result)}
        else:
            stem = stems[index]
            if pca:
                picture = pca_picture(result, options.pca_colours, options.pca_foreground, options.pca_smooth, shared)
                image = as_rgb(read_image(path, reading=reading))
                write_picture(options.output / f"{stem}_pca.png", np.hstack([image, picture]))
            save(options.output / stem, options.format, result)
            shapes = [tuple(m.shape[1:]) for m in result.maps]
            facts = {"layers": result.layers, "norm": result.norm, "shapes": shapes}
            if table:
                table.add(stem, str(path), result)
        waiting.append((index, facts))
        if table is None or index + 1 == len(paths) or (index + 1) % GROUP == 0:
            if table:
                table.write_part(index // GROUP)
            for one in waiting:
                items.done(*one)
            waiting.clear()
    with items.joining() as every:
        return 0 if every is None else join(options, paths, stems, every, backbone.spec.to_dict(), table)


def join(
    options: Namespace, paths: Sequence[Path], stems: Sequence[str], every: Sequence[Any], spec: Any, table: Any
) -> int:
    """Write features.json and the table of all images; return the exit status."""
    skipped = [one["failed"] for one in every if "failed" in one]
    if len(skipped) == len(paths):
        raise ValueError(f"none of {len(paths)} images could be read: {'; '.join(skipped[:3])}")
    last = [one for one in every if "failed" not in one][-1]
    suffix = "" if options.format in ("none", "zarr") else f".{options.format}"
    written = {f"{stem}{suffix}": str(p) for stem, p, one in zip(stems, paths, every, strict=True) if "layers" in one}
    origin = {"images": written, "backbone": spec, "weights": weights_in_words(options)}
    facts = origin | {"layers": last["layers"], "norm": last["norm"], "skipped": skipped}
    if options.format == "zarr":
        from dense.backbone.extract import close_store

        close_store(options.output, facts)
    write(options.output / "features.json", json.dumps(facts, indent=2) + "\n")
    if table:
        table.join(range(-(-len(paths) // GROUP)), {k: v for k, v in facts.items() if k not in ("images", "skipped")})
    pairs = zip(last["layers"], last["shapes"], strict=True)
    shapes = ", ".join(f"layer {n}: {tuple(shape)}" for n, shape in pairs)
    print(f"{len(written)} images written to {options.output} (the last one: {shapes})")
    if skipped:
        print(f"{len(skipped)} skipped:\n  " + "\n  ".join(skipped[:10]))
    warn_if_random(options)
    hint(again(options, "explore", *options.images, "--output", "page.html"), "the same features, interactively")
    return 0


def unused(stem: str, names: dict[str, str]) -> str:
    """The stem, or with a number if another image has this name."""
    name, twin = stem, 1
    while name in names:
        twin += 1
        name = f"{stem}_{twin}"
    return name
