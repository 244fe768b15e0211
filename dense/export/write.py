"""Write a model to a file and compare the file with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from dense._version import __version__
from dense.backbone import Backbone, load_backbone
from dense.backbone.saved import CONFIG, read_json
from dense.backbone.spec import RGB, Layers
from dense.data.levels import Reading
from dense.export.files import compare, onnx_runner, pt2_runner, require_packages, write_onnx, write_pt2
from dense.export.network import ExportNetwork, check_size, example
from dense.files import replacing
from dense.model.network import DenseModel, Inference
from dense.predict.predictions import Depth
from heads.features import Norm, Size


@dataclass(frozen=True)
class Exported:
    """A checked file. difference: the largest one of each output, relative to its largest absolute value."""

    path: Path
    metadata: dict[str, Any]
    difference: dict[str, float]


def export(
    model: DenseModel | Backbone | str | Path,
    output: str | Path,
    size: Size | None = None,
    *,
    dynamic: bool = False,
    raw: bool = False,
    opset: int | None = None,
    layers: Layers | None = None,
    norm: Norm | None = None,
    raw_depth: bool = False,
) -> Exported:
    """Write a .onnx or .pt2 file for images of `size` (height, width) and any batch, and compare it with the model.

    Without a size, it is that at which a model of `dense train` was validated.

    Args:
        model: a trained model or its directory, or a backbone, its directory or its name.
        dynamic: support every height and width of at least two whole patches; impossible with a position table.
        raw: the file takes images with values from 0 to 255 and normalises them.
        opset: version of the ONNX operators; by default torch's.
        layers, norm: layers of a backbone, and whether they are normed; by default its own.
        raw_depth: depth as the head predicts it, such as its logarithm, instead of metres.
    """
    output = Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"output={str(output)!r}: expected a name that ends in .onnx (ONNX) or .pt2 (torch.export)")
    if output.suffix == ".onnx":
        require_packages()
    elif opset is not None:
        raise ValueError(f"opset={opset} is of ONNX; leave it out for a .pt2 file")
    if isinstance(model, str | Path):
        model = open_model(model)
    if isinstance(model, DenseModel) and not model.head.exports:
        raise ValueError(f"the head {model.head.options()['name']} cannot be exported; use dense predict")
    view = model.facts.get("view") if isinstance(model, DenseModel) else None
    inference = model.inference if isinstance(model, DenseModel) else Inference()
    if inference.square and (side := inference.longer or max(view or (0,))):
        view = (side, side)
    size = view if size is None else size
    if size is None and isinstance(inference.resize, tuple):
        size = inference.resize
    if size is None:
        sides = (("longer", inference.longer), ("shorter", inference.resize))
        known = (f"of the model's working size only the {which} side is known, {side}" for which, side in sides if side)
        message = next(known, "the model has no working size")
        raise ValueError(f"size: {message}; give height and width in pixels, --size H W")
    if inference.square and size[0] != size[1]:
        raise ValueError(
            f"size={tuple(size)}: the model pads images below and at the right to a square, which a file leaves to its "
            f"user; give a square, such as --size {max(size)} {max(size)}"
        )
    network = ExportNetwork(
        copy.deepcopy(model).cpu().float().eval().requires_grad_(False), raw, layers, norm, raw_depth
    )
    size, patch = (int(size[0]), int(size[1])), network.backbone.spec.patch
    if isinstance(model, DenseModel) and "restored" in model.outputs:
        if dynamic:
            raise ValueError("a restoration gives its backbone a fixed number of patches; export one file per size")
        if min(size) < 1:
            raise ValueError(f"size={size}: expected a height and a width in pixels")
    else:
        check_size(network.backbone, size, dynamic)
    axes: dict[int, Any] = {0: Dim("batch")}
    sizes = [(1, size), (3, size)]
    if dynamic:
        axes |= {2: patch * Dim("rows", min=2), 3: patch * Dim("columns", min=2)}
        sizes.append((2, (size[0] + patch, size[1] + 3 * patch)))
    with torch.no_grad():
        names = list(network(example(network, 1, size)))
        program = torch.export.export(network.at(size), (example(network, 2, size),), dynamic_shapes=(axes,))
    facts = metadata(network, size, dynamic, names)
    with replacing(output, sum(tensor.nbytes for tensor in network.state_dict().values())) as file:
        if output.suffix == ".onnx":
            write_onnx(program, file, names, list(axes), facts, opset)
        else:
            write_pt2(program, file, facts)
    run = onnx_runner(output) if output.suffix == ".onnx" else pt2_runner(output)
    return Exported(output, facts, compare(network, run, sizes, output))


def open_model(source: str | Path, weights: str | None = None, **overrides: Any) -> DenseModel | Backbone:
    """Open a directory that `dense train` wrote, or any backbone that `load_backbone` knows."""
    folder = Path(source)
    if (folder / CONFIG).is_file() and "head" in read_json(folder / CONFIG):
        if weights or overrides:
            raise ValueError(f"{folder} is a trained model with all its settings; leave weights and settings out")
        return DenseModel.from_pretrained(folder)
    if (folder / "model" / CONFIG).is_file():
        raise ValueError(f"{folder} is the folder of a run; its model is {folder / 'model'}")
    return load_backbone(source, weights, **overrides)


def metadata(network: ExportNetwork, size: Size, dynamic: bool, names: list[str]) -> dict[str, Any]:
    """Return the metadata stored in the file."""
    model, spec = network.model, network.backbone.spec
    rgb = spec.channels == RGB
    images = "RGB" if rgb else f"{len(spec.channels)} channels"
    facts: dict[str, Any] = {
        "format": "dino-dense/export",
        "version": __version__,
        "task": "features",
        "outputs": names,
        "input": f"{images}, 0 to 255" if network.raw else f"{images}, 0 to 1, minus mean, divided by std",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "size": list(size),
        "multiple": spec.patch if dynamic else None,  # of other sizes; None where there are none
        "backbone": spec.name,
        "layers": list(network.layers),
        "norm": network.norm,
    }
    reading = model.inference.reading if isinstance(model, DenseModel) else Reading.of_spec(spec)
    if plain := reading.to_dict():
        facts["reading"] = plain  # what the stored numbers of an image mean, before it is 0 to 255
    if not rgb:
        facts["channels"] = list(spec.channels)
    if isinstance(model, DenseModel):
        facts["task"] = model.task
        if "restored" in names:
            facts["restored"] = f"{images}, 0 to 1, not clamped"
        if "labels" in names:
            facts["labels"] = "logits, one channel per class"
            facts["classes"] = list(model.classes or map(str, range(model.outputs["labels"].count)))
        if (masks := model.outputs.get("masks")) is not None:
            facts["mask_logits"] = "one mask per query, over the whole image"
            if model.inference.square:
                facts["square"] = "images are padded below and at the right to a square of black"
            facts["class_logits"] = "classes of each query, the last of which is no object"
            facts |= {"kind": masks.kind, "things": masks.things}
            facts["classes"] = list(model.classes or map(str, range(masks.count)))
        if (kind := model.depth_kind) is not None:
            kind = "metric" if kind == "log" and not network.raw_depth else kind
            unit = Depth.of(np.empty((0, 0), np.float32), kind).unit  # type: ignore[arg-type]
            facts |= {"depth_kind": kind, "depth_unit": unit}
        if model.inference.refine != "none":
            facts["refine"] = f"not exported; dense predict applies {model.inference.refine}"
        if model.inference.resize is not None:
            facts["working_size"] = model.inference.resize  # of the shorter side, or height and width
    return facts
