"""Measures of a backbone by memories of its patches."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from dense.cli.evaluate.shared import add_common, measured_backbone
from dense.cli.memory_options import add_memory, memory_options
from dense.cli.parser import Parser

if TYPE_CHECKING:
    from dense.evaluate.protocol import Result


def add_in_context(parser: Parser) -> None:
    add_common(parser)
    parser.add_argument("--data", required=True, help="folder with images/ and masks/, or scenes")
    parser.add_argument("--layout", default="folder", help="folder, voc2012, voc2012_aug, ade20k, cityscapes")
    parser.add_argument("--train-split", default="train", help="the images that are remembered")
    parser.add_argument("--split", default="val", help="the images that are measured")
    parser.add_argument("--train-images", type=int, help="remember so many of them, drawn by --seed; all if left out")
    parser.add_argument("--scenes", type=int, default=200, help="number of embedded scenes")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes")
    parser.add_argument("--hungarian", action="store_true", help="also mIoU after matching classes by Hungarian IoU")
    add_memory(parser)


def in_context(options: Namespace) -> Result:
    from dense.data.labelled.open import open_labelled
    from dense.evaluate.dense import find_protocol, measure
    from dense.memory import remember

    def opened(split: str, length: int) -> Any:
        return open_labelled(
            options.data, split, layout=options.layout, targets=("labels",), length=length, size=options.side,
            seed=options.seed,
        )  # fmt: skip

    scenes = options.data == "scenes"
    source = opened(options.train_split, options.train_images if scenes and options.train_images else options.scenes)
    val = opened(options.split, options.scenes)
    if options.train_images is not None and not scenes:
        import numpy as np

        if not 1 <= options.train_images <= len(source):
            raise ValueError(
                f"--train-images {options.train_images}: expected 1 to {len(source)}, the images there are"
            )
        chosen = np.random.default_rng(options.seed).permutation(len(source))[: options.train_images]
        source = source.take(sorted(map(int, chosen)))
    chosen_options = memory_options(options)
    facts = {"images": str(options.data), "remembered": f"{len(source)} images of {options.train_split}"}
    backbone = measured_backbone(options, "in-context", frozen=True)
    model = remember(options.method, backbone, source, **chosen_options, facts=facts)
    words = {"data": options.data, "split": options.split}
    protocol = find_protocol("plain", resize=model.inference.resize, hungarian=options.hungarian or None)
    used = {"choice": "balanced", "augment": 0, "unknown": None} if options.method == "knn" else {}
    of_head = {name: value for name, value in model.head.options().items() if name not in ("name", "in_channels")}
    given = {name: value for name, value in chosen_options.items() if name in used}
    settings = {"method": options.method, "seed": options.seed} | used | given | of_head
    return measure(model, val, protocol, "segmentation", **words, **settings)
