"""`dense.evaluate`: a trained model on labelled images, by a named protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dense.data.degrade import Degrade
from dense.data.labelled.open import open_labelled
from dense.evaluate.dense import TARGETS, find_protocol, measure
from dense.evaluate.protocol import Result
from dense.evaluate.restoration import measure_restoration
from dense.model.network import DenseModel, Inference

SCENES = {"restoration": 50}  # embedded scenes, unless their number is given; 200 for other tasks


def evaluate(
    model: str | Path | DenseModel | Any,
    data: str | Path,
    protocol: str = "plain",
    *,
    what: str | None = None,
    layout: str | None = None,
    split: str = "val",
    classes: Any = None,
    depth: Any = None,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    kb_crop: bool = False,
    degrade: Mapping[str, list[float]] | None = None,
    unseen: Mapping[str, list[float]] | None = None,
    scenes: int | None = None,
    size: int = 96,
    camera_height: Sequence[float] | None = None,
    seed: int = 0,
    device: str | None = None,
    **changes: Any,
) -> Result:
    """Measure a trained model on labelled images and return the numbers with their protocol.

        result = dense.evaluate("runs/mine/model", "FOLDER", protocol="nyuv2")
        result.numbers["abs_rel"], print(result.protocol)

    Args:
        model: a directory that `dense train` wrote, a `DenseModel`, or a `Predictor`, of which only the network
            is used: the protocol decides flips and scales, and size and windows unless it leaves them to the model.
        data: a folder with images/ and masks/ or depth/, a published data set, or "scenes".
        protocol: plain, nyuv2, kitti_eigen, relative, slide_512 or dinov2_ms; of a restoration model plain only.
        what: depth or segmentation, of a joint model; None for both.
        layout, split, classes, depth, val_ratio, split_by, kb_crop: how the data are arranged, see `open_labelled`.
        degrade, unseen: kinds and levels of degradation, of a restoration model.
        scenes, size, camera_height, seed: of embedded scenes.
        device: on which the model runs; where it is, if left out.
        changes: fields of the protocol, such as window=512, flip=True, scales=(0.75, 1.0), crop, cap, alignment.
    """
    network = getattr(model, "model", model)
    if not isinstance(network, DenseModel):
        network = DenseModel.from_pretrained(network)
    if device is not None:
        network.to(device)
    restores = "restored" in network.outputs
    layout = layout or ("images" if restores else "folder")
    source = open_labelled(
        data, split, layout=layout, partial=True, depth=depth, val_ratio=val_ratio, split_by=split_by,
        kb_crop=kb_crop, size=size, length=scenes or SCENES.get(network.task, 200), seed=seed,
        camera_height=(camera_height[0], camera_height[1]) if camera_height else None,
        **({} if restores else {"targets": TARGETS.get(what or "", ("labels", "depth")), "classes": classes}),
    )  # fmt: skip
    if not len(source):
        raise ValueError(f"val_ratio={val_ratio} leaves no images for validation; choose a split, such as all or test")
    names: dict[str, Any] = {"data": str(data), "split": split, "kb_crop": kb_crop}
    if not restores:
        return measure(network, source, find_protocol(protocol, **changes), what, **names)
    if protocol != "plain":
        raise ValueError(f"protocol={protocol!r}: restored images are measured by the protocol plain")
    flip, window, stride = (changes.pop(name, None) for name in ("flip", "window", "stride"))
    if changes:
        raise ValueError(f"restored images are measured without {', '.join(changes)}; leave it out")
    inference = network.inference
    if window is not None or stride is not None:
        inference = Inference(window=window or inference.window, stride=stride)
    plan = None if layout == "paired" else Degrade(dict(degrade or {}), dict(unseen or {}) or None)
    return measure_restoration(network, source, plan, inference, bool(flip), layout=layout, **names)
