"""`dense export`: a trained model or a backbone as one ONNX or torch.export file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import Parser, add_set, check_sources, layers, norm
from dense.console import hint
from dense.files import check_writable

EXAMPLES = (
    ("dense export runs/mine/model --output mine.onnx --raw", "ONNX that takes uint8 values"),
    ("dense export photos_tiny --output backbone.pt2 --size 224 224", "a backbone, as torch.export saves it"),
)


def parser(**options: bool) -> Parser:
    words = "Write a trained model or a backbone as one ONNX or torch.export file, and check it."
    parser = Parser("dense export", words, EXAMPLES, **options)
    parser.add_argument(
        "model", help="directory that dense train wrote, or a backbone: directory, timm or official name"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write: .onnx or .pt2")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images; by default the model's working size"
    )
    parser.add_argument("--dynamic", action="store_true", help="accept other sizes too, where positions are no table")
    parser.add_argument("--raw", action="store_true", help="take images of 0 to 255 and normalise them in the file")
    parser.add_argument("--raw-depth", action="store_true", help="depth as the head predicts it, such as its logarithm")
    parser.add_argument("--opset", type=int, help="of ONNX; torch's default if left out")
    parser.add_argument("--weights", help="of a named backbone: a weight file, a directory, timm or hub")
    parser.add_argument("--layers", type=layers, help="of a backbone: last, last4, even4, default, or 2,5,8,11")
    parser.add_argument(
        "--norm",
        choices=["true", "false", "last"],
        help="of a backbone: final norm",
    )
    add_set(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    check_writable(options.output.parent)
    check_sources(options)
    from dense.backbone import Backbone
    from dense.backbone.weights.names import directory
    from dense.export import export
    from dense.export.write import open_model

    model = open_model(options.model, options.weights, **dict(options.set))
    if isinstance(model, Backbone) and options.weights is None and directory(options.model) is None:
        print(f"{options.model} is randomly initialised; give --weights for trained ones")
    done = export(
        model, options.output, options.size and tuple(options.size),
        dynamic=options.dynamic, raw=options.raw, opset=options.opset, layers=options.layers, norm=norm(options.norm),
        raw_depth=options.raw_depth,
    )  # fmt: skip
    print(f"wrote {done.path} ({done.path.stat().st_size / 1e6:.1f} MB): images -> {', '.join(done.difference)}")
    where = "several sizes" if options.dynamic else "two batch sizes"
    print(f"equal to the model to {max(done.difference.values()):.0e} of the largest value, at {where}")
    option = "--backbone" if isinstance(model, Backbone) else "--model"
    trained = "" if isinstance(model, Backbone) else str(model.facts.get("images", ""))
    images = trained if Path(trained or "-").is_dir() else "IMAGES"
    words = ("dense", "explore", images, option, str(options.model), "--output", "page.html")
    hint(shlex.join(words), "what it sees, interactively")
    return 0
