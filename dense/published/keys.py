"""Published names to ours, and the head that gets the tensors, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import heads
from dense.backbone import Backbone
from dense.backbone.weights.report import WeightsError, compare
from dense.data.labelled.layouts import ADE20K, VOC2012
from dense.model.network import DenseModel, Inference, Task
from dense.published.family import Published, State
from heads.features import Norm
from heads.outputs import Classes

Table = Mapping[str, str]  # pattern -> replacement, applied one after another

UNUSED = r"neck\.fusion\.3\.unit1\."  # the deepest fusion's first unit: published, and read by nothing
CLASSES = {150: ADE20K, 21: VOC2012}


def rename(name: str, table: Table) -> str:
    """One name. In replacements, ~N counts levels from the deepest (~0 is our 3) and @N from one (@1 is our 0)."""
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"~(\d)", lambda found: str(3 - int(found[1])), name)
    return re.sub(r"@(\d)", lambda found: str(int(found[1]) - 1), name)


def renamed(state: State, table: Table) -> State:
    """All of them."""
    return {rename(name, table): tensor for name, tensor in state.items()}


def class_names(file: Published, count: int, given: Any, published: tuple[int, ...] = (150,)) -> tuple[str, ...] | None:
    """Names of `count` classes: as given, or of the data set that has as many, if heads for it are `published`."""
    if given is None:
        return CLASSES[count] if count in published else None
    names = tuple(map(str, given))
    if len(names) != count:
        raise WeightsError(f"classes: {len(names)} names were given, and {file.path} has {count} classes")
    return names


def assemble(
    file: Published,
    family: str,
    backbone: Backbone,
    spec: dict[str, Any],
    state: State,
    layers: tuple[int, ...],
    norm: Norm,
    classes: tuple[str, ...] | None = None,
    inference: Inference = Inference(),
    unused: str = UNUSED,
) -> DenseModel:
    """A model of a backbone that has its weights and the head of `spec`, which gets `state`, under our names, whole."""
    head = heads.build(spec)
    output = next(iter(head.outputs.values()))
    if isinstance(output, Classes) and output.count < 2:
        raise WeightsError(f"{file.path} has one class, a yes or a no by its sign; read are two classes and more")
    own = head.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    given = {k: v for k, v in state.items() if not re.match(unused, k)} | counters
    report = compare(own, given, str(file.path), family)
    report.ignored = [k for k in state if k not in given]
    if not report.complete:
        raise WeightsError(f"{file.path} does not fit the head of {family}; nothing was loaded\n{report}")
    head.load_state_dict(given, strict=True)
    task: Task = "segmentation" if isinstance(output, Classes) else "depth"
    facts = {"published": family, "file": file.path.name}
    model = DenseModel(backbone, head, layers, norm, task, classes, inference, facts)
    model.report = report
    return model.eval()


def shapes(state: State, pattern: str) -> list[Tensor]:
    """Tensors whose names match, in order of the names."""
    return [state[k] for k in sorted(state) if re.fullmatch(pattern, k)]


def dpt_spec(state: State, **options: Any) -> dict[str, Any]:
    """What `heads.build` needs for a DPT whose tensors, under our names, these are; `options` are what shapes cannot say."""
    projects = {i: state.get(f"neck.reassemble.{i}.project.weight") for i in range(4)}
    adapts = [state.get(f"neck.reassemble.{i}.adapt.weight") for i in range(4)]
    if any(a is None for a in adapts):
        raise WeightsError("the file lacks levels of DPT: expected four 3x3 convolutions to one width")
    readout = ["project" if f"neck.reassemble.{i}.readout.weight" in state else "ignore" for i in range(4)]
    spec: dict[str, Any] = {
        "name": "dpt",
        "in_channels": [(adapts[i] if p is None else p).shape[1] for i, p in projects.items()],  # type: ignore[union-attr]
        "width": adapts[0].shape[0],  # type: ignore[union-attr]
        "reassemble": [None if p is None else p.shape[0] for p in projects.values()],
        "readout": readout[0] if len(set(readout)) == 1 else readout,
        "batch_norm": "neck.fusion.0.unit2.norm1.weight" in state,
        "bias": "neck.fusion.0.unit2.conv1.bias" in state,
        "input_norm": "neck.reassemble.0.norm.weight" in state,
        "project": "neck.project.weight" in state,
    }
    return spec | options


def hidden(state: State) -> int:
    """Channels between the last two convolutions of a depth branch."""
    if "branches.depth.conv2.weight" not in state:
        raise WeightsError("the file lacks the convolutions behind the fused map")
    return state["branches.depth.conv2.weight"].shape[0]
