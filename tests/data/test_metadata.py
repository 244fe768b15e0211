"""Columns of CSV files: what is counted, and what is refused before training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dense.data.metadata import read_metadata


class Named:
    """Images that have names alone."""

    labels = None

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = [f"{folder}/{name}" for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> Any:
        raise NotImplementedError


def read(folder: Path, text: str, columns: list[str], numbers: tuple[str, ...] = ()) -> Any:
    file = folder / "m.csv"
    file.write_text(text)
    return read_metadata(file, Named(folder, "a/1.png", "a/2.png", "3.png", "4.png"), str(folder), columns, numbers)


def test_classes_numbers_and_empty_cells(tmp_path: Path) -> None:
    text = "plate;image;dose\nP2;a/2.png;10\nP1;a/1.png;\n\n P1;./3.png;20\n;4.png;15\nP9;none.png;1\nP2;a/2.png;10\n"
    found = read(tmp_path, text, ["plate", "dose"], ("dose",))
    np.testing.assert_array_equal(found.values, [[0, math.nan], [1, 0], [0, 1], [math.nan, 0.5]])
    plate, dose = found.columns
    assert (plate.classes, plate.counts, plate.known, plate.chance) == (("P1", "P2"), (2, 1), 3, 2 / 3)
    assert (dose.low, dose.high, dose.known) == (10, 20, 3)
    assert dose.chance == pytest.approx(1 / 3)
    said = " | ".join(found.notes)
    for part in ("1 rows name no image", "none.png", "1 rows repeat another one", "1 of 2 classes of 'plate' have one"):
        assert part in said
    assert found.digest != read(tmp_path, text.replace("10", "11"), ["plate", "dose"], ("dose",)).digest


def test_images_without_a_row_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "file,p\na/1.png,1\n3.png,2\n", ["p"], ("p",))
    assert found.columns[0].known == 2
    assert "2 of 4 images have no row and count for no column: a/2.png, 4.png" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "columns", "numbers", "message"),
    [
        (
            "image,plate\na/1.png,x\na/2.png,y\n",
            ["plaet"],
            (),
            "'plaet' does not exist; its columns are plate. Did you",
        ),
        ("image,plate\na/1.png,x\na/2.png,y\n", ["image"], (), "column 'image' names the images"),
        ("image,p\na/1.png,x\na/1.png,y\n", ["p"], (), "lines 2 and 3 both describe a/1.png, with different values"),
        ("image,p\nb.png,x\n", ["p"], (), r"no row names an image of .*such as 'b.png'.* such as 'a/1.png'"),
        ("image,p\na/1.png,x\na/2.png,x\n", ["p"], (), "column 'p' is 'x' for every image"),
        ("image,p\na/1.png,\na/2.png,\n", ["p"], (), "column 'p' is empty for every image"),
        ("image,p\na/1.png,1\na/2.png,2.5\n", ["p"], (), "another class for each of its 2 images; .*guides.numbers"),
        ("image,p\na/1.png,1\na/2.png,many\n", ["p"], ("p",), "line 3: p is 'many', expected a number"),
        ("image,p\na/1.png,1\na/2.png,nan\n", ["p"], ("p",), "line 3: p is 'nan', expected a number"),
        ("image,p\na/1.png,1\na/2.png,1.0\n", ["p"], ("p",), "column 'p' is 1 for every image"),
        ("image,p\na/1.png,1,2\n", ["p"], (), "line 2: 3 cells, expected 2"),
        ("image\na/1.png\n", ["p"], (), "first line is 'image'; expected the names of at least two columns"),
        ("", ["p"], (), "expected the names of at least two columns"),
    ],
)
def test_what_cannot_be_used(
    tmp_path: Path, text: str, columns: list[str], numbers: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, columns, numbers)


def test_files_that_are_none(tmp_path: Path) -> None:
    images = Named(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match=r"data.metadata: .*none.csv is not a file"):
        read_metadata(tmp_path / "none.csv", images, str(tmp_path), ["p"])
    (tmp_path / "binary.csv").write_bytes(b"image,p\n\xff\xfe,\x00\n")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_metadata(tmp_path / "binary.csv", images, str(tmp_path), ["p"])
