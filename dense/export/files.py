"""ONNX and torch.export files: writing them, running them, and comparing them with the model."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dense.export.network import ExportNetwork, Maps, example
from heads.features import Size

AXES = {0: "batch", 2: "height", 3: "width"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise where a package that writes or runs ONNX is missing."""
    missing = [p for p in PACKAGES if importlib.util.find_spec(p) is None]
    if missing:
        raise RuntimeError(f"ONNX needs {', '.join(missing)}: pip install 'dino-dense[export]', or write a .pt2 file")


def write_onnx(
    program: ExportedProgram, path: Path, names: list[str], axes: list[int], facts: dict[str, Any], opset: int | None
) -> None:
    """Write an ONNX file, with weights beyond 2 GB beside it; every fact becomes an entry of its metadata."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    shapes = ({n: AXES[n] for n in axes},)
    with quiet():
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=names, dynamic_shapes=shapes,
            opset_version=opset,
        )  # fmt: skip
        assert written is not None
        if opset is not None and (kept := written.model.opset_imports[""]) != opset:
            raise ValueError(f"opset={opset}: the operators of this model need {kept}; ask for {kept} or newer")
        ClearMetadataAndDocStringPass()(written.model)  # stack traces of this machine
        written.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
        written.save(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages and warnings of the converter."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def onnx_runner(path: Path) -> Callable[[Tensor], Maps]:
    """Return a function that runs the file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def run(images: Tensor) -> Maps:
        values = session.run(names, {"images": images.numpy()})
        return {n: torch.from_numpy(v) for n, v in zip(names, values, strict=True)}

    return run


def write_pt2(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a torch.export file that contains the facts as metadata.json."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts, indent=2)})


def pt2_runner(path: Path) -> Callable[[Tensor], Maps]:
    """Return a function that runs the file in torch."""
    return torch.export.load(path).module()


TOLERANCE = 1e-4  # of the largest absolute value of an output


@torch.no_grad()
def compare(
    network: ExportNetwork, run: Callable[[Tensor], Maps], sizes: Sequence[tuple[int, Size]], path: Path
) -> dict[str, float]:
    """Return the largest difference of each output, relative to its largest value; raise beyond TOLERANCE."""
    found: dict[str, float] = {}
    for batch, size in sizes:
        images = example(network, batch, size)
        where = f"{path} was written, but on {batch} images of {size[0]}x{size[1]}"
        try:
            predictions = run(images)
        except Exception as error:
            raise RuntimeError(f"{where} it does not run: {error}") from error
        for name, expected in network(images).items():
            if predictions[name].shape != expected.shape:
                raise RuntimeError(
                    f"{where} its {name} has shape {tuple(predictions[name].shape)}, not {tuple(expected.shape)}"
                )
            scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            difference = float((predictions[name] - expected).abs().max() / scale)
            if not difference <= TOLERANCE:  # NaN fails too
                raise RuntimeError(
                    f"{where} its {name} differs from the model's by {difference:.1e} of the largest value, more than "
                    f"{TOLERANCE:.0e}; do not use it, and try another --opset or a .pt2 file"
                )
            found[name] = max(found.get(name, 0.0), difference)
    return found
