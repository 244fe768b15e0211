"""Heads from plain data, such as a config file; `head.spec()` is the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from heads.anomaly import AnomalyHead
from heads.dpt import DPT
from heads.eomt import EoMT
from heads.head import DenseHead
from heads.insid3 import Insid3Head
from heads.linear import LinearHead
from heads.memory import MemoryHead
from heads.options import check_names
from heads.outputs import Bins, Classes, Masks, Output, Regression
from heads.pyramid import Pyramid, PyramidHead
from heads.restoration.head import RestorationHead, RestoredImage

OUTPUTS: dict[str, type[Output]] = {c.name: c for c in (Regression, Bins, Classes, Masks, RestoredImage)}


def _dpt(outputs: Mapping[str, Output], **options: Any) -> DenseHead:
    return DPT(**options).with_outputs(**outputs)


HEADS: dict[str, tuple[Callable[..., DenseHead], Callable[..., Any]]] = {  # name -> builder, owner of the options
    "anomaly": (AnomalyHead, AnomalyHead),
    "dpt": (_dpt, DPT),
    "eomt": (EoMT, EoMT),
    "insid3": (Insid3Head, Insid3Head),
    "linear": (LinearHead, LinearHead),
    "memory": (MemoryHead, MemoryHead),
    "pyramid": (PyramidHead, Pyramid),
    "restoration": (RestorationHead, RestorationHead),
}


def build(spec: Mapping[str, Any]) -> DenseHead:
    """Build a head from `{"name": "dpt", ...options, "outputs": {"depth": {"name": "regression", ...options}}}`.

    `build(head.spec())` has the parameters of `head`. An unknown name or option raises, with the list of known ones.
    """
    options = dict(spec)
    outputs = options.pop("outputs", None)
    if not isinstance(outputs, Mapping) or not outputs:
        raise ValueError(
            f"outputs={outputs!r}: expected one or several by name, such as {{'depth': {{'name': 'regression'}}}}"
        )
    make, owner = HEADS[_name("head", options, HEADS)]
    check_names(f"head {spec['name']!r}", options, owner, but={"outputs"})
    return make(outputs={name: build_output(name, output) for name, output in outputs.items()}, **options)


def build_output(name: str, spec: Mapping[str, Any] | Output) -> Output:
    """Build one output from `{"name": "classes", "count": 21}`."""
    if isinstance(spec, Output):
        return spec
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"output {name!r}: expected its name and options, such as {{'name': 'regression'}}, got {spec!r}"
        )
    options = {key: _current(name, key, value) for key, value in spec.items()}
    output = OUTPUTS[_name(f"output {name!r}", options, OUTPUTS)]
    check_names(f"output {name!r} ({output.name})", options, output)
    return output(**options)


def _current(output: str, key: str, value: Any) -> Any:
    """Translate "picture", which "image" was called in configs and saved models of version 0.1."""
    if key in ("name", "upsample") and value == "picture":
        message = f"output {output!r}: {key} 'picture' is now called 'image'; write 'image', or save the model again"
        warnings.warn(message, FutureWarning, stacklevel=4)
        return "image"
    return value


def _name(what: str, options: dict[str, Any], known: Mapping[str, Any]) -> str:
    name = options.pop("name", None)
    if name not in known:
        raise ValueError(f"{what}: unknown name {name!r}; expected one of {', '.join(known)}")
    return name
