"""`dense convert`: backbones and published heads to a saved directory, or back to their release's own layout."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import Parser, add_published, add_set, check_sources
from dense.console import hint
from dense.files import check_writable

OF_HEADS = ("family", "kind", "max_depth", "weights")  # options for published heads alone
EXAMPLES = (
    ("dense convert dino_deitsmall16_pretrain.pth mine --backbone dino_vits16", "to a directory"),
    ("dense convert runs/mine/backbone official.pth --official", "and back to the release's own layout"),
)


def parser(**options: bool) -> Parser:
    words = "Convert a backbone's weights, or a published head; every tensor must find its place."
    parser = Parser("dense convert", words, EXAMPLES, **options)
    parser.add_argument("source", type=Path, help="weight file or directory")
    parser.add_argument(
        "target",
        type=Path,
        help="directory to write (config.json + model.safetensors), or a .pth or .safetensors file with --official",
    )
    parser.add_argument("--backbone", help="architecture in a backbone's file, or backbone of a published head")
    parser.add_argument(
        "--official", action="store_true", help="write a backbone in its release's own layout to a file"
    )
    parser.add_argument(
        "--huggingface", action="store_true", help="write a DPT or EoMT model as a directory that transformers opens"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with transformers, timm or segmentation_models_pytorch; save parity.json",
    )
    parser.add_argument(
        "--branch", choices=["teacher", "student"], default="teacher", help="network of a training checkpoint"
    )
    add_set(parser, "override of the backbone, such as positions=timm, or what a published file does not hold")
    add_published(parser, backbone=False)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb; return 1 if --verify finds a difference."""
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.official and options.huggingface:
        of_verb.error("--official and --huggingface write different layouts; choose one")
    if not options.official and options.target.suffix in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{options.target.name} looks like a file; add --official to write one, or name a directory")
    if options.huggingface and options.target.resolve() == options.source.resolve():
        raise ValueError(f"{options.target} would be written over itself in another layout; name another directory")
    check_sources(options)
    check_writable(options.target.parent)
    from dense.model.network import DenseModel
    from dense.published import is_ours
    from dense.published.convert import Layout, read, write

    source, target = options.source, options.target
    facts = {name: getattr(options, name) for name in OF_HEADS if getattr(options, name) is not None}
    loaded = read(source, options.backbone, options.branch, dict(options.set), **facts)
    if isinstance(loaded, DenseModel):
        print(loaded.backbone.report or f"{source}: its backbone")
    print(loaded.report or f"{source}: a directory of this project")
    if options.verify and is_ours(source):
        raise ValueError(f"{source} is a directory of this project; --verify is for files that others published")
    layout: Layout = "official" if options.official else "huggingface" if options.huggingface else "own"
    print(write(loaded, source, target, layout))
    if layout == "own":
        is_head = isinstance(loaded, DenseModel)
        words = ("predict", str(target), "IMAGES") if is_head else ("look", "PHOTO", "--backbone", str(target))
        command = shlex.join(["dense", *words])
        hint(command, "what it predicts" if is_head else "what it sees in a photo")
    if not options.verify:
        return 0
    from dense.published.parity import certify

    certificate = certify(source, loaded)
    path = certificate.save(target.with_suffix(".parity.json") if options.official else target / "parity.json")
    print(f"{certificate}\nwrote {path}")
    return 0 if certificate.equal else 1
