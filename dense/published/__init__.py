"""Heads that others published: recognised by their keys, with their numerics, as models of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dense.backbone import WeightsError
from dense.published.file import Published, is_ours
from dense.published.recognise import FAMILIES, recognise
from dense.published.vit import is_backbone
from dense.suggest import did_you_mean
from dense.tasks.model import DenseModel


def load_published(path: str | Path, family: str | None = None, **said: Any) -> DenseModel:
    """The model in a published file or directory.

    family: which of `FAMILIES` it is of, where the keys do not tell. said: what the file cannot say: kind, max_depth,
    backbone, weights, ... by family. Something that is missing raises, with the choices.
    """
    file = Published.read(path)
    found = recognise(file, family)
    if unknown := [name for name in said if name not in found.options]:
        hint = did_you_mean(unknown[0], found.options)
        takes = ", ".join(found.options) or "nothing"
        raise TypeError(f"{found.name} ({found.title}) takes no {unknown[0]!r}; it takes {takes}.{hint}")
    try:
        return found.build(file, **said)
    except KeyError as error:
        raise WeightsError(f"{path} lacks {error}, which every file of {found.name} ({found.title}) has") from None


def is_published(path: str | Path) -> bool:
    """Whether a file or directory is of a family that is known here."""
    try:
        file = Published.read(path)
    except (WeightsError, FileNotFoundError):
        return False
    return any(family.fits(file) for family in FAMILIES.values())


def refuse_unknown(path: str | Path) -> None:
    """Raise for a readable file that is neither a published head nor a backbone, with what is nearest."""
    try:
        file = Published.read(path)
    except (WeightsError, FileNotFoundError):
        return
    if is_backbone(file.tensors) is None:
        recognise(file)


__all__ = ["FAMILIES", "Published", "is_ours", "is_published", "load_published", "recognise", "refuse_unknown"]
