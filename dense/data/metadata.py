"""Metadata of images: columns of a CSV file, as classes or as numbers."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dense.data.unlabelled import Images
from dense.suggest import did_you_mean

IMAGE = "image"  # the column that names the images, where there is one; else the first


@dataclass(frozen=True)
class Column:
    """A column of metadata: what its values mean, over all images whose cell is not empty.

    counts: images of each class; () for numbers. known: images with a value. chance: what a guess reaches that is the
    same for every image, which is the share of the most frequent class, or the mean absolute deviation from the median,
    within 0 to 1.
    """

    name: str
    classes: tuple[str, ...]  # () for numbers
    counts: tuple[int, ...]
    known: int
    chance: float
    low: float = 0.0  # the range of numbers, which becomes 0 to 1
    high: float = 1.0
    share: float = 1.0  # of the images that have a value

    def __str__(self) -> str:
        words = f"{len(self.classes)} classes" if self.classes else f"numbers from {self.low:g} to {self.high:g}"
        return f"{self.name}: {words} of {self.known} images"


@dataclass(frozen=True)
class Metadata:
    """Columns of a CSV file, in the order of the images.

    values (N, columns): the index of the class, or the number scaled to 0..1; NaN where nothing is known. notes: what
    was left out, with counts.
    """

    path: Path
    columns: tuple[Column, ...]
    values: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of all values, by which another file is recognised."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(
            repr([(column.name, column.classes, column.low, column.high) for column in self.columns]).encode()
        )
        digest.update(np.nan_to_num(self.values, nan=-1.0).tobytes())
        return digest.hexdigest()


def read_metadata(
    path: str | Path, images: Images, root: str, columns: Sequence[str], numbers: Sequence[str] = ()
) -> Metadata:
    """Return columns of a CSV file for the images of `root`; an empty cell means that a value is unknown.

    The column `image`, or else the first, names images relative to the root, those of shards by their member. Tabs or
    semicolons may separate cells. numbers: the columns that hold numbers; all others hold classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column, a row or a value cannot be used; the message has its line.
    """
    lines = _lines(Path(path))
    _, header = next(lines)
    image = header.index(IMAGE) if IMAGE in header else 0
    others = columns_of(path)
    for name in columns:
        if name not in others:
            about = " names the images" if name == header[image] else " does not exist"
            hint = "" if name == header[image] else did_you_mean(name, others)
            raise ValueError(f"{path}: column {name!r}{about}; its columns are {', '.join(others)}.{hint}")
    places = [header.index(name) for name in columns]
    index = {_name(images.name(number), root): number for number in range(len(images))}
    found: dict[int, tuple[int, list[str]]] = {}  # image -> line, cells
    unknown, repeated = list[str](), list[str]()
    for line, cells in lines:
        name, values = cells[image].removeprefix("./"), [cells[place] for place in places]
        number = index.get(name)
        if number is None:
            unknown.append(name)
        elif number not in found:
            found[number] = line, values
        elif found[number][1] == values:
            repeated.append(name)
        else:
            raise ValueError(
                f"{path}: lines {found[number][0]} and {line} both describe {name}, with different values; leave one"
            )
    if not found:
        said = f"such as {unknown[0]!r}" if unknown else "it has none"
        raise ValueError(
            f"{path}: no row names an image of {root} ({said}); expected names relative to it, such as "
            f"{next(iter(index))!r}, in the column {header[image]!r}"
        )
    without = [name for name, number in index.items() if number not in found]
    notes = [
        f"{path}: {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for names, what in (
            (unknown, f"rows name no image of {root} and are left out"),
            (repeated, "rows repeat another one"),
            (without, f"of {len(index)} images have no row and count for no column"),
        )
        if names
    ]
    table = np.full((len(images), len(columns)), np.nan, np.float32)
    made = []
    for place, name in enumerate(columns):
        known = {number: (line, own[place]) for number, (line, own) in found.items() if own[place]}
        if not known:
            raise ValueError(f"{path}: column {name!r} is empty for every image; leave it out")
        column, table[list(known), place] = (_numbers if name in numbers else _classes)(path, name, known)
        made.append(replace(column, share=len(known) / len(images)))
        if alone := [one for one, count in zip(column.classes, column.counts, strict=True) if count == 1]:
            more = ", ..." if len(alone) > 3 else ""
            notes.append(
                f"{path}: {len(alone)} of {len(column.classes)} classes of {name!r} have one image: "
                f"{', '.join(alone[:3])}{more}"
            )
    return Metadata(Path(path), tuple(made), table, tuple(notes))


def columns_of(path: str | Path) -> list[str]:
    """Return the names of the columns of a CSV file, without that of the images."""
    header = next(_lines(Path(path)))[1]
    return [name for name in header if name != (IMAGE if IMAGE in header else header[0])]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of every line, the header first."""
    if not path.is_file():
        raise FileNotFoundError(f"data.metadata: {path} is not a file; expected a CSV file with a line per image")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            header = [cell.strip() for cell in next(rows, [])]
            if len(header) < 2 or len({*header}) < len(header) or not all(header):
                raise ValueError(
                    f"{path}: its first line is {first.strip()[:60]!r}; expected the names of at least two columns, "
                    "each once, separated by commas"
                )
            yield 1, header
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(row)} cells, expected {len(header)} as in the first line"
                    )
                yield rows.line_num, [cell.strip() for cell in row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV file in UTF-8 ({error})") from None


def _name(name: str, root: str) -> str:
    """Return the name of an image relative to the root."""
    if ".tar:" in name:
        return name.rpartition(".tar:")[2]
    path = Path(root)
    return name.removeprefix(f"{path if path.is_dir() else path.parent}/")


def _classes(path: str | Path, name: str, cells: dict[int, tuple[int, str]]) -> tuple[Column, NDArray[np.float32]]:
    classes, values, counts = np.unique([value for _, value in cells.values()], return_inverse=True, return_counts=True)
    if len(classes) == 1:
        raise ValueError(f"{path}: column {name!r} is {str(classes[0])!r} for every image; leave it out")
    if counts.max() == 1:
        advice = "leave it out"
        if all(_number(value) is not None for value in classes):
            advice += f", or add it to model.guides.numbers if {name!r} is a quantity"
        raise ValueError(f"{path}: column {name!r} has another class for each of its {len(cells)} images; {advice}")
    column = Column(
        name, tuple(map(str, classes)), tuple(map(int, counts)), len(cells), float(counts.max() / len(cells))
    )
    return column, values.astype(np.float32)


def _numbers(path: str | Path, name: str, cells: dict[int, tuple[int, str]]) -> tuple[Column, NDArray[np.float32]]:
    values = []
    for line, text in cells.values():
        value = _number(text)
        if value is None:
            raise ValueError(
                f"{path}, line {line}: {name} is {text!r}, expected a number, or nothing where it is unknown; take "
                f"{name!r} out of model.guides.numbers if it holds classes"
            )
        values.append(value)
    low, high = min(values), max(values)
    if low == high:
        raise ValueError(f"{path}: column {name!r} is {low:g} for every image; leave it out")
    scaled = (np.array(values) - low) / (high - low)
    chance = float(np.abs(scaled - np.median(scaled)).mean())
    return Column(name, (), (), len(cells), chance, low, high), scaled.astype(np.float32)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
