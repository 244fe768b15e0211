"""`dense export`: a trained model or a backbone as one ONNX or torch.export file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense.backbone import Backbone
from dense.backbone.weights.names import directory
from dense.cli.features import layers_option
from dense.cli.parser import Parser, key_value
from dense.console import check_writable
from dense.export.write import export, open_model


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense export",
        description="Write a trained model or a backbone as one ONNX or torch.export file, and check it.",
    )
    parser.add_argument(
        "model", help="directory that dense train wrote, or a backbone: directory, timm or official name"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write: .onnx or .pt2")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of the images, in pixels")
    parser.add_argument("--dynamic", action="store_true", help="other sizes too, where positions are no table")
    parser.add_argument("--raw", action="store_true", help="take images of 0 to 255 and normalise them in the file")
    parser.add_argument("--opset", type=int, help="of ONNX; torch's default if left out")
    parser.add_argument("--weights", help="of a named backbone: 'timm', a weight file or a directory")
    parser.add_argument("--layers", help="of a backbone: last, last4, even4, default, or indices such as 2,5,8,11")
    parser.add_argument("--norm", choices=["true", "false", "last"], help="of a backbone: final norm")
    parser.add_argument(
        "--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="override of the backbone"
    )
    options = parser.parse_args(argv)
    check_writable(options.output.parent)
    model = open_model(options.model, options.weights, **dict(options.set))
    if isinstance(model, Backbone) and options.weights is None and directory(options.model) is None:
        print(f"{options.model} has fresh, random initialisation; give --weights for trained ones")
    norm: Any = {"true": True, "false": False}.get(options.norm, options.norm)
    layers = None if options.layers is None else layers_option(parser, options.layers)
    done = export(
        model, options.output, tuple(options.size),
        dynamic=options.dynamic, raw=options.raw, opset=options.opset, layers=layers, norm=norm,
    )  # fmt: skip
    worst = max(done.difference.values())
    print(f"wrote {done.path} ({done.path.stat().st_size / 1e6:.1f} MB): images -> {', '.join(done.difference)}")
    print(
        f"equal to the model to {worst:.0e} of the largest value, at {'several sizes' if options.dynamic else 'two batch sizes'}"
    )
    return 0
