"""Heads from plain data, such as a config file, and back by `head.spec()`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from heads.dpt import DPT
from heads.head import DenseHead
from heads.linear import LinearHead
from heads.outputs import Bins, Classes, Output, Regression
from heads.pyramid import Pyramid, PyramidHead
from heads.restoration.head import Picture, RestorationHead

OUTPUTS: dict[str, type[Output]] = {c.name: c for c in (Regression, Bins, Classes, Picture)}


def _dpt(outputs: Mapping[str, Output], **options: Any) -> DenseHead:
    return DPT(**options).with_outputs(**outputs)


HEADS: dict[str, tuple[Callable[..., DenseHead], Callable[..., Any]]] = {  # how to build it, whose arguments it takes
    "dpt": (_dpt, DPT),
    "linear": (LinearHead, LinearHead),
    "pyramid": (PyramidHead, Pyramid),
    "restoration": (RestorationHead, RestorationHead),
}


def build(spec: Mapping[str, Any]) -> DenseHead:
    """A head from `{"name": "dpt", ...options, "outputs": {"depth": {"name": "regression", ...options}}}`.

    `build(head.spec())` has the parameters of `head`. A name or option that does not exist raises, with the list of
    those that do.
    """
    options = dict(spec)
    outputs = options.pop("outputs", None)
    if not isinstance(outputs, Mapping) or not outputs:
        raise ValueError(
            f"outputs={outputs!r}: expected one or several by name, such as {{'depth': {{'name': 'regression'}}}}"
        )
    make, target = HEADS[_name("head", options, HEADS)]
    _known(f"head {spec['name']!r}", options, target, without={"outputs"})
    return make(outputs={name: build_output(name, output) for name, output in outputs.items()}, **options)


def build_output(name: str, spec: Mapping[str, Any] | Output) -> Output:
    """One output from `{"name": "classes", "count": 21}`."""
    if isinstance(spec, Output):
        return spec
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"output {name!r}: expected its name and options, such as {{'name': 'regression'}}, got {spec!r}"
        )
    options = dict(spec)
    made = OUTPUTS[_name(f"output {name!r}", options, OUTPUTS)]
    _known(f"output {name!r} ({made.name})", options, made)
    return made(**options)


def _name(what: str, options: dict[str, Any], known: Mapping[str, Any]) -> str:
    name = options.pop("name", None)
    if name not in known:
        raise ValueError(f"{what}: unknown name {name!r}; expected one of {', '.join(known)}")
    return name


def _known(what: str, options: Mapping[str, Any], target: Callable[..., Any], without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    parameters = {n: p for n, p in inspect.signature(target).parameters.items() if n not in without}
    if wrong := [n for n in options if n not in parameters]:
        raise ValueError(f"{what}: unknown option {wrong[0]!r}; expected some of {', '.join(parameters)}")
    required = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if required:
        raise ValueError(f"{what}: option {required[0]!r} is missing; add it")
