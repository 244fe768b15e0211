"""`dense features`: a backbone's feature maps of images, on disk."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import (
    Parser,
    add_backbone,
    add_overwrite,
    again,
    check_sources,
    layers,
    norm,
    open_backbone,
    run_folder,
)
from dense.console import hint, progress
from dense.files import write

SHARED = 64  # images, evenly spread, whose features fit the colours of all
EXAMPLES = (
    ("dense features IMAGES --backbone dinov2_vits14 --weights FILE --output maps --layers last4", "four layers"),
    ("dense features IMAGES --backbone scenes_tiny --output maps --format none --pca", "PCA pictures only"),
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
    parser.add_argument("--format", default="npz", choices=["npz", "safetensors", "none"], help="of the maps")
    parser.add_argument(
        "--pca", action="store_true", help="also write image and first three components as NAME_pca.png"
    )
    parser.add_argument("--pca-shared", action="store_true", help="use the same components for all images")
    parser.add_argument(
        "--pca-foreground", action="store_true", help="cut out the foreground by the first component, colour the rest"
    )
    parser.add_argument(
        "--pca-colours", default="rgb", choices=("rgb", "hsv", "hue"),
        help="of the components; hue: as in the write-ups, component 1 as hue and 2 as value",
    )  # fmt: skip
    parser.add_argument("--pca-smooth", action="store_true", help="interpolate between patches")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    pca = options.pca or options.pca_shared or options.pca_foreground or options.pca_smooth
    if options.format == "none" and not pca:
        of_verb.error("--format none writes no maps; add --pca for pictures of them")
    check_sources(options)
    with run_folder("features", options.output, options):
        return features(options, pca)


def features(options: Namespace, pca: bool) -> int:
    """Write the features of all images; return the exit status."""
    import numpy as np

    from dense.backbone.extract import extract, save
    from dense.data.image import ImageError, list_images, read_image
    from dense.discover.pca import PCA, pca_picture
    from dense.media.draw import write_picture

    paths = list_images(options.images, without=options.output)
    backbone = open_backbone(options, frozen=True)
    shared, final = None, norm(options.norm)
    if options.pca_shared:
        some = extract(backbone, paths[:: -(-len(paths) // SHARED)], options.layers, final)
        found = [features.maps[-1] for _, features in some if not isinstance(features, ImageError)]
        shared = PCA.fit(iter(found), options.pca_foreground, options.pca_colours) if found else None
    skipped: list[str] = []
    written: dict[str, str] = {}
    last = None
    for path, result in progress(extract(backbone, paths, options.layers, final), "features", len(paths)):
        if isinstance(result, ImageError):
            skipped.append(str(result))
            continue
        last = result
        name = unused(path.stem, written)
        written[name] = str(path)
        if pca:
            picture = pca_picture(result, options.pca_colours, options.pca_foreground, options.pca_smooth, shared)
            write_picture(options.output / f"{name}_pca.png", np.hstack([read_image(path), picture]))
        save(options.output / name, options.format, result)
    if last is None:
        raise ValueError(f"none of {len(paths)} images could be read: {'; '.join(skipped[:3])}")
    suffix = "" if options.format == "none" else f".{options.format}"
    facts = {
        "images": {f"{name}{suffix}": path for name, path in written.items()},
        "backbone": backbone.spec.to_dict(),
        "layers": last.layers,
        "norm": last.norm,
        "skipped": skipped,
    }
    write(options.output / "features.json", json.dumps(facts, indent=2) + "\n")
    shapes = ", ".join(f"layer {n}: {tuple(m.shape[1:])}" for n, m in zip(last.layers, last.maps, strict=True))
    print(f"{len(written)} images written to {options.output} (the last one: {shapes})")
    if skipped:
        print(f"{len(skipped)} skipped:\n  " + "\n  ".join(skipped[:10]))
    hint(again(options, "explore", *options.images, "--output", "page.html"), "the same features, to touch")
    return 0


def unused(stem: str, names: dict[str, str]) -> str:
    """The stem, or with a number if another image of this name was written."""
    name, twin = stem, 1
    while name in names:
        twin += 1
        name = f"{stem}_{twin}"
    return name
