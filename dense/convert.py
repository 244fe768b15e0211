"""`dense convert`: weights of any known layout to a saved directory, or back to their release's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dense.arguments import Parser, key_value
from dense.backbone import load_backbone


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(prog="dense convert", description="Convert a backbone's weights; every tensor must find its place.")
    parser.add_argument("source", type=Path, help="weight file or directory")
    parser.add_argument(
        "target",
        type=Path,
        help="directory to write (config.json + model.safetensors), or a .pth or .safetensors file with --official",
    )
    parser.add_argument("--backbone", help="timm or official name; not needed for a directory that holds config.json")
    parser.add_argument("--official", action="store_true", help="write the release's own layout to a file")
    parser.add_argument("--branch", choices=["teacher", "student"], default="teacher", help="of a training checkpoint")
    parser.add_argument(
        "--set",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the backbone, such as positions=timm",
    )
    options = parser.parse_args(argv)
    overrides = dict(options.set)
    if options.backbone is None:
        if not (options.source / "config.json").is_file():
            raise ValueError(f"say which architecture {options.source} holds: --backbone dinov2_vits14, for example")
        backbone = load_backbone(options.source, **overrides)
    else:
        backbone = load_backbone(options.backbone, options.source, branch=options.branch, **overrides)
    print(backbone.report or f"{options.source}: a directory of this project")
    if options.official:
        state = backbone.export_official(options.target)
        print(f"wrote {len(state)} tensors, {sum(t.numel() for t in state.values()):,} parameters, to {options.target}")
    else:
        if options.target.suffix in (".pth", ".pt", ".safetensors"):
            raise ValueError(
                f"{options.target.name} looks like a file; add --official to write one, or name a directory"
            )
        backbone.save_pretrained(options.target)
        print(f"wrote {options.target}; open it with dense.load_backbone({str(options.target)!r})")
    return 0
