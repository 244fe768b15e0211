"""Channels and levels of a training's images: given, saved with its backbone, or chosen from the images, once a run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from dense.backbone.load import saved_spec
from dense.console import warn
from dense.data.image import ImageError
from dense.data.large import numbers_of
from dense.data.levels import PHOTOGRAPHS, RGB, SAMPLED, Reading, fitted, sampled, statistics
from dense.data.values import read_channels, stored
from dense.training.checkpoints import LAST

AUTO = ("black", "white")


class Named(Protocol):
    """Images by index, in files, or in shards, which give their bytes as `data`."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...


class Files(tuple[str, ...]):
    """Images by their paths."""

    def name(self, index: int) -> str:
        return self[index]


Open = Callable[[Reading], Named]


def settle_reading(data: Any, backbone: Any, open_images: Open, folder: Path) -> list[str]:
    """Replace channels and levels that are `auto`, or left out, by those of the run; return "key: value, reason" lines.

    The backbone's options get the names of the channels, the reading, and their measured mean and standard deviation
    where they are not those of photographs.

    data, backbone: parsed options. open_images: opens the training images, of a reading. folder: of the run, whose
    first start has decided already if it has a checkpoint
    """
    if data.channels is None and backbone.channels is not None:
        data.channels = backbone.channels
    saved = saved_spec(backbone.name) or saved_spec(getattr(backbone, "init_from", None))
    lines: list[str] = []
    if saved is not None and data.levels is None and data.channels in (None, len(saved.channels)) and saved.reading:
        reading = Reading.from_dict(saved.reading)
        lines.append(f"data.levels: {reading}, saved with the backbone")
    elif is_auto(data.levels):
        names = data.channels
        if names is None and saved is not None and saved.channels != RGB:
            names = saved.channels
        reading, reason = chosen(before_auto(data.levels, names), open_images, earlier(folder, "data", "levels"))
        lines.append(f"data.levels: {reading}, {reason}")
    else:
        reading = Reading.of(data.levels, data.channels)
        if not reading.channels and saved is not None and saved.channels != RGB:
            reading = replace(reading, channels=saved.channels)
    if reading == PHOTOGRAPHS:
        return lines
    lines = lines or [f"data.levels: {reading}, as given"]
    data.channels = list(reading.channels) or None
    data.levels = {name: value for name, value in reading.to_dict().items() if name != "channels"} or None
    arguments = dict(backbone.arguments)
    if reading.channels:
        if backbone.channels is not None and len(reading.channels) != backbone_count(backbone.channels):
            raise ValueError(
                f"data.channels={list(reading.channels)} and model.backbone.channels={backbone.channels}: expected the "
                "same number; leave model.backbone.channels out"
            )
        same = saved is not None and len(saved.channels) == len(reading.channels)
        if backbone.channels is None and not (saved is not None and saved.channels == reading.channels):
            backbone.channels = list(reading.channels)
        if not reading.colours and "mean" not in arguments and not same:
            found = earlier(folder, "model", "backbone", "arguments") or {}
            if "mean" in found and "std" in found:
                mean, std = found["mean"], found["std"]
            else:
                mean, std = map(list, statistics(sample(reading, open_images(reading), as_bytes=True)))
            arguments |= {"mean": list(mean), "std": list(std)}
            numbers = "; ".join(f"{n} {m:g} and {s:g}" for n, m, s in zip(reading.channels, mean, std, strict=True))
            lines.append(f"mean and standard deviation: {numbers}, measured on the training images")
    if not (saved is not None and dict(saved.reading) == reading.to_dict()):
        arguments["reading"] = reading.to_dict()
    backbone.arguments = arguments
    return lines


def is_auto(levels: Any) -> bool:
    """Whether black and white are to be chosen: `auto`, or a mapping with `black: auto`."""
    return levels == "auto" or (isinstance(levels, Mapping) and "auto" in [levels.get(name) for name in AUTO])


def before_auto(levels: Any, channels: int | Sequence[str] | None) -> Reading:
    """Return what options name beside the levels that are to be chosen."""
    given = {k: v for k, v in levels.items() if k not in AUTO} if isinstance(levels, Mapping) else {}
    return Reading.of(given or None, channels)


def chosen(reading: Reading, open_images: Open, before: Mapping[str, Any] | None) -> tuple[Reading, str]:
    """Return a reading with levels, and the reason: those of the run so far, or quantiles of the training images."""
    if before and "black" in before:
        return replace(reading, black=before["black"], white=before["white"]), "as the run began"
    images = open_images(reading)
    found, reason = fitted(reading, sample(reading, images))
    first = images.name(0)
    if first.lower().endswith(".dcm") and (window := stored(first).window):
        reason += f"; the window of {first} is {window[0]:g} to {window[1]:g}"
    return found, reason


def sample(reading: Reading, images: Named, as_bytes: bool = False) -> list[Any]:
    """Return numbers, or bytes, of some of the images, evenly spread; those that cannot be read are left out."""
    found, problems, count = [], [], min(SAMPLED, len(images))
    for place in range(count):
        index = place * len(images) // count
        name = images.name(index)
        source, index = images.place(index) if hasattr(images, "place") else (images, index)  # of a pool
        try:
            if hasattr(source, "data"):
                values = read_channels(io.BytesIO(source.data(index)), reading, name)
            else:
                values = numbers_of(name, reading)
            some = sampled(values)[None]  # whole images would not fit in memory
            found.append(reading.to_bytes(some, name) if as_bytes else some)
        except ImageError as error:
            problems.append(str(error))
    if not found:
        raise ValueError(f"none of {len(problems)} sampled images could be read: {'; '.join(problems[:3])}")
    if problems:
        warn(f"{len(problems)} of {count} sampled images could not be read, such as {problems[0]}")
    return found


def earlier(folder: Path, *keys: str) -> Any:
    """Return an option with which the run in `folder` began; None if it has no checkpoint or no such option."""
    settings = folder / "config.yaml"
    if not (folder / "checkpoints" / LAST).is_file() or not settings.is_file():
        return None
    found: Any = yaml.safe_load(settings.read_text()) or {}
    for key in keys:
        found = found.get("init_args", found) if isinstance(found, Mapping) else None
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def backbone_count(channels: int | Sequence[str]) -> int:
    return channels if isinstance(channels, int) else len(channels)
