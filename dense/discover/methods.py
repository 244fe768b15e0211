"""The methods by the names that a command line or a protocol uses, with their settings and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from dense.backbone import BackboneSpec
from dense.discover.attention import Attention
from dense.discover.coclusters import CoClusters
from dense.discover.kmeans import KMeans
from dense.discover.lost import LOST
from dense.discover.maskcut import MaskCut
from dense.discover.source import Source, choose
from dense.discover.spectral import Spectral
from dense.discover.stego import Stego
from dense.discover.tokencut import TokenCut

METHODS: dict[str, Any] = {  # each image by itself
    "attention": Attention,
    "lost": LOST,
    "tokencut": TokenCut,
    "maskcut": MaskCut,
    "spectral": Spectral,
    "kmeans": KMeans,
}
FITTED_METHODS: dict[str, type[CoClusters] | type[Stego]] = {  # fitted to a set of images
    "cocluster": CoClusters,
    "stego": Stego,
}
SETTINGS = {name: tuple(field.name for field in fields(cls)) for name, cls in METHODS.items()} | {
    "cocluster": ("count", "passes", "classes"),
    "stego": ("count", "passes", "steps", "classes"),
    "similarity": ("point",),
}


def settings_by_method(methods: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that each of `methods` takes among those `given`, where None stands for one left out.

    A setting that none of the methods takes raises, but for `layer`, which is also a setting of the features.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name != "layer" and not any(name in SETTINGS[method] for method in methods):
            takers = ", ".join(method for method, names in SETTINGS.items() if name in names)
            raise ValueError(f"--{name.replace('_', '-')} is for {takers}, not for {', '.join(methods)}")
    return {method: {k: v for k, v in given.items() if k in SETTINGS[method]} for method in methods}


def source_of(spec: BackboneSpec, method: str, **changes: Any) -> Source:
    """Return the features that suit a backbone and a method; fields that are not None in `changes` replace its own."""
    return choose(spec, across=method not in METHODS, **changes)


def describe_run(
    name: str, method: Any, source: Source, spec: BackboneSpec, weights: str | None, refinement: str, shorter: int
) -> dict[str, Any]:
    """Return everything that determines the predictions of a run, as plain data."""
    facts: dict[str, Any] = {"method": name, "refine": refinement, "shorter_side": shorter}
    facts["settings"] = {"regions": method.count} if name in FITTED_METHODS else asdict(method)
    if name != "attention":
        facts["features"] = asdict(source)
    return facts | {"backbone": spec.to_dict(), "weights": weights}
