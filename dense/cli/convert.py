"""`dense convert`: backbones and published heads to a saved directory, or back to their release's own layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dense.backbone import Backbone, WeightsError, load_backbone
from dense.backbone.saved import CONFIG, read_json
from dense.cli.parser import Parser, key_value
from dense.cli.published_options import add_options, said
from dense.model.network import DenseModel
from dense.published import FAMILIES, Published, is_backbone, is_ours, load_published, recognise


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense convert",
        description="Convert a backbone's weights, or a published head; every tensor must find its place.",
    )
    parser.add_argument("source", type=Path, help="weight file or directory")
    parser.add_argument(
        "target",
        type=Path,
        help="directory to write (config.json + model.safetensors), or a .pth or .safetensors file with --official",
    )
    parser.add_argument(
        "--backbone", help="what a backbone's file holds, a timm or official name, or what a published head stands on"
    )
    parser.add_argument(
        "--official", action="store_true", help="write a backbone in its release's own layout to a file"
    )
    parser.add_argument(
        "--huggingface", action="store_true", help="write a DPT model as a directory that transformers opens"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with transformers, timm or segmentation_models_pytorch; save parity.json",
    )
    parser.add_argument("--branch", choices=["teacher", "student"], default="teacher", help="of a training checkpoint")
    parser.add_argument(
        "--set",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the backbone, such as positions=timm, or what a published file cannot say",
    )
    add_options(parser, without=("backbone", "set"))
    options = parser.parse_args(argv)
    if options.official and options.huggingface:
        parser.error("--official and --huggingface write different layouts; choose one")
    if not options.official and options.target.suffix in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{options.target.name} looks like a file; add --official to write one, or name a directory")
    if options.huggingface and options.target.resolve() == options.source.resolve():
        raise ValueError(f"{options.target} would be written over itself in another layout; name another directory")
    loaded = read(options)
    report = loaded.report
    if isinstance(loaded, DenseModel):
        print(loaded.backbone.report or f"{options.source}: its backbone")
    print(report or f"{options.source}: a directory of this project")
    if options.verify and is_ours(options.source):
        raise ValueError(
            f"{options.source} is a directory of this project; --verify is for files that others published"
        )
    write(loaded, options)
    return verify(loaded, options) if options.verify else 0


def read(options: argparse.Namespace) -> Backbone | DenseModel:
    """What the source holds: a trained model, a published head with its backbone, or a backbone."""
    source, config = options.source, options.source / CONFIG
    about = said(options)
    alone = {k: v for k, v in about.items() if k in ("family", "kind", "max_depth", "weights")}
    if is_ours(source):
        if alone:
            raise ValueError(
                f"{source} is a directory of this project, which says its {next(iter(alone))} itself; leave it out"
            )
        return DenseModel.from_pretrained(source) if "head" in read_json(config) else backbone_of(options)
    if alone:
        return load_published(source, **about)
    try:
        file = Published.read(source)
    except (WeightsError, FileNotFoundError):  # a backbone's reader knows more forms, and says what is wrong
        return backbone_of(options)
    if any(family.fits(file) for family in FAMILIES.values()):
        return load_published(file, **about)
    return backbone_of(options, file)


def backbone_of(options: argparse.Namespace, file: Published | None = None) -> Backbone:
    """A backbone, named by a person or by its own config.json."""
    overrides = dict(options.set)
    if options.backbone is not None:
        return load_backbone(options.backbone, options.source, branch=options.branch, **overrides)
    if not (options.source / CONFIG).is_file():
        if file is not None and is_backbone(file.tensors) is None:
            recognise(file)  # names what is nearest
        raise ValueError(f"say which architecture {options.source} holds: --backbone dinov2_vits14, for example")
    return load_backbone(options.source, **overrides)


def write(loaded: Backbone | DenseModel, options: argparse.Namespace) -> None:
    """In the layout that was asked for."""
    target = options.target
    if options.official:
        if not isinstance(loaded, Backbone):
            raise ValueError(f"{options.source} holds a head too; --official writes backbones alone")
        state = loaded.export_official(target)
        print(f"wrote {len(state)} tensors, {sum(t.numel() for t in state.values()):,} parameters, to {target}")
    elif options.huggingface:
        from dense.published.export import export_huggingface

        if not isinstance(loaded, DenseModel):
            raise ValueError(f"{options.source} is a backbone without a head; --huggingface writes DPT models")
        name = export_huggingface(loaded, target)
        spec = loaded.backbone.spec
        if spec.positions not in ("size", "bilinear"):
            height, width = spec.image_size
            print(
                f"transformers reads positions by a rule of its own: away from {height}x{width} pixels its numbers differ"
            )
        print(f"wrote {target}; open it with transformers.{name}.from_pretrained({str(target)!r})")
    else:
        loaded.save_pretrained(target)
        opener = "load" if isinstance(loaded, DenseModel) else "load_backbone"
        print(f"wrote {target}; open it with dense.{opener}({str(target)!r})")


def verify(loaded: Backbone | DenseModel, options: argparse.Namespace) -> int:
    """Print and save the certificate; 1 if the outputs differ."""
    from dense.published.parity import certify

    target = options.target
    certificate = certify(options.source, loaded)
    path = certificate.save(target.with_suffix(".parity.json") if options.official else target / "parity.json")
    print(f"{certificate}\nwrote {path}")
    return 0 if certificate.equal else 1
