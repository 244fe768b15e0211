"""Heads that others published: recognised by their keys, with their numerics, as models of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dense.backbone import WeightsError
from dense.model.network import DenseModel
from dense.published.family import Published, is_ours
from dense.published.recognise import FAMILIES, recognise
from dense.published.vit import is_backbone
from dense.suggest import UnknownOption, did_you_mean


def load_published(source: str | Path | Published, family: str | None = None, **said: Any) -> DenseModel:
    """The model in a published file or directory, or in one that was read.

    family: which of `FAMILIES` it is of, where the keys do not tell. said: what the file cannot say: kind, max_depth,
    backbone, weights, ... by family. Something that is missing raises, with the choices.
    """
    file = source if isinstance(source, Published) else Published.read(source)
    found = recognise(file, family)
    if unknown := [name for name in said if name not in found.options]:
        hint = did_you_mean(unknown[0], found.options)
        takes = ", ".join(found.options) or "nothing"
        raise UnknownOption(f"{found.name} ({found.title}) takes no {unknown[0]!r}; it takes {takes}.{hint}")
    try:
        return found.build(file, **said)
    except KeyError as error:
        raise WeightsError(f"{file.path} lacks {error}, which every file of {found.name} ({found.title}) has") from None


__all__ = ["FAMILIES", "Published", "is_backbone", "is_ours", "load_published", "recognise"]
