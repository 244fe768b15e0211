"""`dense.evaluate`: a trained model on labelled images, by a named protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dense.backbone import Backbone, load_backbone
from dense.backbone.saved import CONFIG, read_json
from dense.backbone.weights.names import directory
from dense.data.anomaly import open_anomaly
from dense.data.degrade import Degrade
from dense.data.labelled.open import as_in_training, class_target, open_labelled
from dense.data.levels import Reading
from dense.evaluate.dense import PROTOCOLS, TARGETS, DenseProtocol, find_protocol, measure
from dense.evaluate.masks import MASK_PROTOCOLS, MaskProtocol, find_mask_protocol, measure_masks
from dense.evaluate.protocol import Result
from dense.evaluate.restoration import measure_restoration
from dense.model.network import DenseModel, Inference
from dense.suggest import check_options, did_you_mean, options_of

SCENES = {"restoration": 50}  # embedded scenes, unless their number is given; 200 for other tasks


MASKS = ("instance", "panoptic")
TRAIN = ("train", "the training images; data are the validation images")
NEEDED = {"knn": TRAIN, "linear": TRAIN, "labels-needed": ("output", "a folder for its runs")}
BACKBONES = ("knn", "linear", "probe", "retrieval", "in-context", "labels-needed", "anomaly")  # protocols of backbones


def evaluate(model: Any, data: str | Path, protocol: str = "plain", **options: Any) -> Result:
    """Measure a trained model or a backbone on labelled images and return the numbers with their protocol.

        result = dense.evaluate("runs/mine/model", "FOLDER", protocol="nyuv2")
        result.numbers["abs_rel"], print(result.protocol)
        dense.evaluate(backbone, "VAL", "knn", train="TRAIN", layers="all", readout="all").table
        dense.evaluate(backbone, "CAMVID", "in-context", train_images=10, resize=364)
        dense.evaluate(backbone, "CAMVID", "labels-needed", output="runs/labels", counts=(1, 5))
        dense.evaluate(backbone, "MVTEC", "anomaly", layout="mvtec", category="screw", shots=1)

    protocol: plain, nyuv2, kitti_eigen, relative, slide_512, dinov2_ms, eomt_640 or eomt_1280 of a trained model, with
    the options of `evaluate_model`; knn, linear, probe, retrieval, in-context, labels-needed or anomaly of a backbone,
    with those of `evaluate_backbone`; anomaly also of a model that `dense anomaly fit` wrote.
    """
    known = dict.fromkeys((*BACKBONES, *PROTOCOLS, *MASK_PROTOCOLS))
    if protocol not in known:
        raise ValueError(f"unknown protocol {protocol!r}: known are {', '.join(known)}.{did_you_mean(protocol, known)}")
    if protocol in BACKBONES:
        return evaluate_backbone(model, data, protocol, **options)
    names = [field.name for kind in (DenseProtocol, MaskProtocol) for field in fields(kind) if field.name != "name"]
    check_options(f"protocol {protocol}", options, [*options_of(evaluate_model), *names])
    return evaluate_model(model, data, protocol, **options)


def evaluate_backbone(
    model: str | Path | Backbone | Any, data: str | Path, protocol: str, *, weights: str | Path | None = None,
    device: str | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Measure a backbone; `evaluate` calls it with one of the protocols of backbones.

    model: a backbone, its name, or a directory; of anomaly also a fitted model. weights: of a name.
    data and options, by protocol:

    - knn, linear: data are the validation images; train, the training images; resize, crop, resample and scenes as in
      `Pair.open`; the options of `measure_knn` or `measure_linear`.
    - retrieval: the options of `measure_retrieval`.
    - probe: labelled images and the options of `measure_layers`, or "scenes" and those of `measure_probe`.
    - in-context: labelled images; the options of `measure_in_context` and of `build_memory` or `build_insid3`.
    - labels-needed: labelled images; output, the folder of its runs; the options of `measure_labels_needed`.
    - anomaly: a folder; layout and category (one or several) as in `open_anomaly`; the options of `measure_anomaly`
      and, of a backbone, of `build_anomaly`.
    """
    from dense.evaluate.anomaly import measure_anomaly
    from dense.evaluate.classification.data import Pair
    from dense.evaluate.classification.measure import measure_knn, measure_linear
    from dense.evaluate.in_context import measure_in_context
    from dense.evaluate.labels_needed import kept_backbone, measure_labels_needed
    from dense.evaluate.layers import measure_layers
    from dense.evaluate.probe import measure_probe
    from dense.evaluate.retrieval import measure_retrieval
    from dense.memory.anomaly import build_anomaly
    from dense.memory.build import METHODS, build_memory

    pair = [name for name in options_of(Pair.open) if name != "reading"]
    memory = METHODS.get(options.get("method", "knn"), build_memory)
    known = {
        "knn": ["train", *pair, *options_of(measure_knn)],
        "linear": ["train", *pair, *options_of(measure_linear)],
        "retrieval": options_of(measure_retrieval),
        "probe": options_of(measure_probe if str(data) == "scenes" else measure_layers),
        "in-context": [name for name in options_of(measure_in_context, memory) if name != "facts"],
        "labels-needed": ["output", *options_of(measure_labels_needed)],
        "anomaly": [n for n in ("category", *options_of(measure_anomaly, build_anomaly)) if n not in ("data", "facts")],
    }[protocol]
    check_options(f"protocol {protocol}", options, ["weights", "device", *known])
    if protocol in NEEDED and options.get((needed := NEEDED[protocol])[0]) is None:
        raise ValueError(f"protocol={protocol!r} needs {needed[0]}=, {needed[1]}")
    fitted = _fitted(model) if protocol == "anomaly" else None
    if fitted and weights is not None:
        raise ValueError(f"weights={str(weights)!r} are of a backbone, and {model} is a fitted model; leave them out")
    network: Any = fitted or (model if isinstance(model, Backbone) else load_backbone(model, weights, frozen=True))
    if device is not None:
        network.to(device)
    if protocol == "anomaly":
        layout, category = options.pop("layout", "folder"), options.pop("category", None) or ()
        sets = open_anomaly(data, layout, [category] if isinstance(category, str) else category)
        return measure_anomaly(network, sets, data=str(data), layout=layout, **options)
    if protocol in ("knn", "linear"):
        opening = {name: options.pop(name) for name in ("resize", "crop", "resample", "scenes") if name in options}
        reading, train = Reading.of_spec(network.spec), str(options.pop("train"))
        sources = Pair.open(train, str(data), seed=options.get("seed", 0), reading=reading, **opening)
        return (measure_knn if protocol == "knn" else measure_linear)(network, sources, **options)
    if protocol == "in-context":
        return measure_in_context(network, data, **options)
    if protocol == "labels-needed":
        output = Path(options.pop("output"))
        if isinstance(model, Backbone):
            name, file = kept_backbone(model, output / "backbone"), None
        else:
            name, file = str(model), None if weights is None else str(weights)
        return measure_labels_needed(network, name, file, data, output, **options)
    if protocol == "retrieval":
        return measure_retrieval(network, data, **options)
    if str(data) == "scenes":
        return measure_probe(network, **options)
    return measure_layers(network, str(data), **options)


def _fitted(model: Any) -> DenseModel | None:
    """Return the model of a `Predictor`, of a directory or itself; None for a backbone."""
    if isinstance(model, Backbone):
        return None
    network = getattr(model, "model", model)
    if isinstance(network, DenseModel):
        return network
    folder = directory(network)
    return DenseModel.open(folder) if folder is not None and "head" in read_json(folder / CONFIG) else None


def evaluate_model(
    model: str | Path | DenseModel | Any,
    data: str | Path,
    protocol: str = "plain",
    *,
    what: str | None = None,
    layout: str | None = None,
    split: str = "val",
    classes: Any = None,
    depth: Any = None,
    annotations: str | Path | None = None,
    val_ratio: float | None = None,
    split_by: str | None = None,
    kb_crop: bool | None = None,
    degrade: Mapping[str, list[float]] | None = None,
    unseen: Mapping[str, list[float]] | None = None,
    scenes: int | None = None,
    size: int = 96,
    camera_height: Sequence[float] | None = None,
    seed: int = 0,
    device: str | None = None,
    **changes: Any,
) -> Result:
    """Measure a trained model on labelled images; `evaluate` calls it with a protocol of dense predictions.

    Args:
        model: a directory that `dense train` wrote, a `DenseModel`, or a `Predictor`, of which only the network
            is used: the protocol decides flips and scales, and size and windows unless it leaves them to the model.
        data: a folder with images/ and masks/ or depth/, a published data set, or "scenes".
        protocol: plain, nyuv2, kitti_eigen, relative, slide_512 or dinov2_ms; of masks plain, eomt_640 or eomt_1280; of
            a restoration model plain only.
        what: depth or segmentation, of a joint model; None for both. instance or panoptic, which models of masks have.
        layout, split, classes, depth, annotations, val_ratio, split_by, kb_crop: how the data are arranged, see
            `open_labelled`; for the folder of the training, those of the training if left out.
        degrade, unseen: kinds and levels of degradation, of a restoration model.
        scenes, size, camera_height, seed: of embedded scenes.
        device: on which the model runs; where it is, if left out.
        changes: fields of the protocol, such as window=512, flip=True, scales=(0.75, 1.0), crop, cap, alignment.
    """
    if isinstance(model, Backbone):
        raise ValueError(f"protocol={protocol!r} is of a trained model; of a backbone there are {', '.join(BACKBONES)}")
    network = getattr(model, "model", model)
    if not isinstance(network, DenseModel):
        network = DenseModel.from_pretrained(network)
    if device is not None:
        network.to(device)
    restores = "restored" in network.outputs
    opening = as_in_training(
        network.facts, data, layout=layout, depth=depth, val_ratio=val_ratio, split_by=split_by, kb_crop=kb_crop,
        **({} if restores else {"classes": classes, "annotations": annotations}),
    )  # fmt: skip
    opening["kb_crop"] = bool(opening["kb_crop"])
    if restores and layout is None and opening["layout"] == "folder":
        opening["layout"] = "images"
    if what is None and network.task in MASKS:
        what = network.task
    targets = ("masks",) if what in MASKS else TARGETS.get(what or "", ("labels", "depth"))
    if not restores and (what == "segmentation" or (what is None and "depth" not in network.outputs)):
        given = (opening["layout"], opening["annotations"])
        targets = ("masks",) if class_target(data, split, *given) == "masks" else targets
    if "masks" not in targets:
        opening.pop("annotations", None)
    source = open_labelled(
        data, split, partial=what not in MASKS, size=size, length=scenes or SCENES.get(network.task, 200), seed=seed,
        camera_height=(camera_height[0], camera_height[1]) if camera_height else None,
        reading=network.inference.reading,
        **opening | ({} if restores else {"targets": targets}),
    )  # fmt: skip
    if not len(source):
        share = opening["val_ratio"]
        raise ValueError(f"val_ratio={share} leaves no images for validation; choose a split, such as all or test")
    if what in MASKS:
        return measure_masks(
            network, source, find_mask_protocol(protocol, **changes), str(what), data=str(data), split=split
        )  # fmt: skip
    names: dict[str, Any] = {"data": str(data), "split": split, "kb_crop": opening["kb_crop"]}
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
    plan = None if opening["layout"] == "paired" else Degrade(dict(degrade or {}), dict(unseen or {}) or None)
    return measure_restoration(network, source, plan, inference, bool(flip), layout=opening["layout"], **names)
