"""`dense features`: a backbone's maps for anybody's images, on disk."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dense.backbone import Backbone
from dense.backbone.spec import Layers
from dense.cli.backbone_options import add_backbone, open_backbone
from dense.cli.parser import Parser
from dense.console import check_writable, progress
from dense.data.image import ImageError, list_images, read_image
from dense.discover.pca import PCA, SHARED, pca_picture
from dense.media.draw import write_picture
from heads.features import Features, Norm


def extract(
    backbone: Backbone, paths: Sequence[Path], layers: Layers | None = None, norm: Norm | None = None
) -> Iterator[tuple[Path, Features | ImageError]]:
    """Features of each image at its own size, or the error that its file raised."""
    device = next(backbone.parameters()).device
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            yield path, error
            continue
        with torch.inference_mode():
            pixels = torch.from_numpy(image).unsqueeze(0).to(device)
            try:
                yield path, backbone(backbone.normalise(pixels), layers=layers, norm=norm)
            except ValueError as error:  # smaller than one patch
                yield path, ImageError(f"{path}: {error}")


def save(stem: Path, form: str, features: Features) -> None:
    """STEM.npz or STEM.safetensors with map_N (C, h, w) and prefix_N (P, C) of each layer N; "none" writes nothing."""
    maps, prefix = features.maps, features.prefix
    tensors = {f"map_{n}": m[0].cpu().contiguous() for n, m in zip(features.layers, maps, strict=True)}
    tensors |= {f"prefix_{n}": p[0].cpu().contiguous() for n, p in zip(features.layers, prefix, strict=True)}
    if form == "safetensors":
        save_file(tensors, f"{stem}.safetensors")
    elif form == "npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(f"{stem}.npz", **arrays)


def layers_option(parser: Parser, text: str) -> Layers:
    """A name, or indices with commas."""
    if text.isidentifier():
        return text
    try:
        return tuple(int(i) for i in text.split(","))
    except ValueError:
        parser.error(f"--layers {text!r}: expected last, last4, even4, default, or indices such as 2,5,8,11")


def add_pca(parser: Parser) -> None:
    """Add the options of PCA pictures."""
    parser.add_argument(
        "--pca", action="store_true", help="also write the deepest map's main directions as NAME_pca.png"
    )
    parser.add_argument("--pca-shared", action="store_true", help="the same colours mean the same in all pictures")
    parser.add_argument(
        "--pca-foreground", action="store_true", help="the first direction cuts out the object, the rest colour it"
    )
    parser.add_argument("--pca-colours", default="rgb", choices=["rgb", "hsv"], help="of three directions")
    parser.add_argument("--pca-smooth", action="store_true", help="blend cells instead of showing them as squares")


def wants_pca(options: Namespace) -> bool:
    """Return whether any option asks for pictures."""
    return options.pca or options.pca_shared or options.pca_foreground or options.pca_smooth


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense features",
        description="Write feature maps, one file per image, and features.json beside them; with --pca images of them too.",
    )
    parser.add_argument("images", nargs="+", type=Path, help="images or folders of images")
    add_backbone(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--layers", default="last", help="last, last4, even4, default, or indices such as 2,5,8,11")
    parser.add_argument(
        "--norm", default=None, choices=["true", "false", "last"], help="final norm; the backbone's default if left out"
    )
    parser.add_argument("--format", default="npz", choices=["npz", "safetensors", "none"], help="of the maps")
    add_pca(parser)
    options = parser.parse_args(argv)
    layers = layers_option(parser, options.layers)
    if options.format == "none" and not wants_pca(options):
        parser.error("--format none writes no maps; say --pca for images of them")
    paths = list_images(options.images, without=options.output)
    check_writable(options.output)
    backbone = open_backbone(options, frozen=True)
    norm: Any = {"true": True, "false": False, None: None}.get(options.norm, options.norm)
    options.output.mkdir(parents=True, exist_ok=True)
    shared = None
    if options.pca_shared:
        some = extract(backbone, paths[:: -(-len(paths) // SHARED)], layers, norm)
        found = [result for _, result in some if isinstance(result, Features)]
        shared = PCA.fit((f.maps[-1] for f in found), options.pca_foreground) if found else None
    skipped: list[str] = []
    last: Features | None = None
    names: set[str] = set()
    written: dict[str, str] = {}
    for path, result in progress(extract(backbone, paths, layers, norm), "features", len(paths)):
        if isinstance(result, ImageError):
            skipped.append(str(result))
            continue
        last = result
        name, twin = path.stem, 1
        while name in names:  # another image of this name, from another folder or with another ending
            twin += 1
            name = f"{path.stem}_{twin}"
        names.add(name)
        if wants_pca(options):
            picture = pca_picture(result, options.pca_colours, options.pca_foreground, options.pca_smooth, shared)
            write_picture(options.output / f"{name}_pca.png", picture)
        written[name if options.format == "none" else f"{name}.{options.format}"] = str(path)
        save(options.output / name, options.format, result)
    if last is None:
        raise ValueError(f"none of {len(paths)} images could be read: {'; '.join(skipped[:3])}")
    facts = {
        "pictures": written,
        "backbone": backbone.spec.to_dict(),
        "layers": last.layers,
        "norm": last.norm,
        "skipped": skipped,
    }
    (options.output / "features.json").write_text(json.dumps(facts, indent=2) + "\n")
    shapes = ", ".join(f"layer {n}: {tuple(m.shape[1:])}" for n, m in zip(last.layers, last.maps, strict=True))
    print(f"{len(paths) - len(skipped)} images written to {options.output} (the last one: {shapes})")
    if skipped:
        print(f"{len(skipped)} skipped:\n  " + "\n  ".join(skipped[:10]))
    return 0
