"""Segmentation without training, measured: some annotated images are remembered, others are compared with their masks.

This is the protocol of Hummingbird (Balazevic et al., 2023), or of INSID3 (Cuttano et al., 2026).
"""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any, Literal

from dense.backbone import Backbone
from dense.data.labelled.open import draw, open_labelled
from dense.data.levels import Reading
from dense.evaluate.dense import DenseProtocol, measure
from dense.evaluate.protocol import Result
from dense.memory import remember

NAME = "in-context"


class WithUnknown:
    """Labelled images with one class more, the last, for unknown pixels in memory; no ground truth has it.

    It counts as 0 in the means of IoU, as in the published numbers.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.classes = source, (*source.classes, "unknown")

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # of an object that is being copied
            raise AttributeError(name)
        return getattr(self.source, name)


def measure_in_context(
    backbone: Backbone,
    data: str | Path,
    *,
    layout: str = "folder",
    train_split: str = "train",
    split: str = "val",
    train_images: int | None = None,
    scenes: int = 200,
    side: int = 96,
    method: str = "knn",
    unknown: int | Literal["new"] | None = None,
    hungarian: bool = False,
    score_at: Literal["image", "input"] = "image",
    seed: int = 0,
    **options: Any,
) -> Result:
    """Remember annotated images and measure the segmentation of others by them.

    Args:
        backbone: frozen.
        data: images with masks, or "scenes".
        layout: how the data are arranged, see `open_labelled`.
        train_split, split: the images that are remembered, and those that are measured.
        train_images: remember so many of them, drawn by `seed`; all if left out.
        scenes, side: number and side of embedded scenes.
        method: "knn" or "insid3", see `dense.memory`.
        unknown: class of unknown pixels in memory, of knn; "new" is a class of their own, whose IoU of 0 counts.
        hungarian, score_at: see `DenseProtocol`.
        seed: of all that is drawn.
        options: of `build_memory` or `build_insid3`.
    """
    if train_images is not None and train_images < 1:
        raise ValueError(f"train_images={train_images}: expected at least 1")
    rendered = str(data) == "scenes"

    def opened(name: str, length: int) -> Any:
        return open_labelled(
            data, name, layout=layout, targets=("labels",), length=length, size=side, seed=seed,
            reading=Reading.of_spec(backbone.spec),
        )  # fmt: skip

    source, val = opened(train_split, train_images if rendered and train_images else scenes), opened(split, scenes)
    if train_images is not None and not rendered:
        source = draw(source, train_images, seed)
    new = unknown == "new"
    if new:
        source, val = WithUnknown(source), WithUnknown(val)
        unknown = len(val.classes) - 1
    given = options | ({} if unknown is None else {"unknown": unknown}) | ({"seed": seed} if method == "knn" else {})
    facts = {"images": f"{data} {train_split} ({len(source)} images)"}
    model = remember(method, backbone, source, **given, facts=facts)
    protocol = DenseProtocol(NAME, resize=model.inference.resize, hungarian=hungarian, score_at=score_at)
    of_memory = {"choice": "balanced", "augment": 0, "unknown": None} if method == "knn" else {}
    of_memory |= {name: value for name, value in given.items() if name in of_memory}
    of_head = {name: value for name, value in model.head.options().items() if name not in ("name", "in_channels")}
    settings = {"method": method, "seed": seed} | of_memory | of_head
    result = measure(model, val, protocol, "segmentation", data=str(data), split=split, **settings)
    numbers = with_unknown(result.numbers) if new else result.numbers
    return replace(result, numbers=numbers, protocol=replace(result.protocol, name=NAME))


def with_unknown(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return numbers whose means of IoU are also over the last class, which counts as 0.

    Without this, mIoU leaves out a class that is never predicted, and the matched one a class without ground truth.
    """
    rows = list(numbers["per_class"].values())
    counted = [row["iou"] for row in rows[:-1] if not isnan(row["iou"])]
    true = sum(row["pixels"] > 0 for row in rows)
    found = {"miou": sum(counted) / (len(counted) + 1), "classes": float(len(counted) + 1)}
    if "miou_hungarian" in numbers:
        found["miou_hungarian"] = numbers["miou_hungarian"] * true / (true + 1)
    return numbers | found
