"""Usable images: minimum size and contrast, user-defined filters, blurred boxes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dense.curate import Pool, Preparation, read_boxes
from dense.curate.filters import blur, load_filter
from tests.curate.pools import folder, save

CODE = """
def keep(image, name): return True
def drop(image, name): return name.endswith("000.png")
def grey(image, name): return image.mean(2, keepdims=True).repeat(3, 2).astype("uint8")
def spoil(image, name):
    image[:] = 0
    return True
def nothing(image, name): return None
def floats(image, name): return image / 255
def fails(image, name): return image[1000]
number = 3
"""


@pytest.fixture
def filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a module of filters."""
    (tmp_path / "my_filters_of_tests.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_filters_of_tests", raising=False)
    load_filter.cache_clear()
    return tmp_path


def prepared(root: Path, *names: str) -> Preparation:
    return Preparation(filters=tuple(f"my_filters_of_tests:{name}" for name in names))


def test_filters_keep_drop_and_replace(filters: Path) -> None:
    """Filters run in turn on the result of the one before, and cannot change an image in place."""
    pool = Pool.open([folder(filters / "pool", range(2))])
    assert prepared(filters, "keep", "spoil")(pool, 0).edits == ()
    np.testing.assert_array_equal(prepared(filters, "spoil")(pool, 0).image, pool.read(0))
    kept, dropped = (prepared(filters, "drop")(pool, index) for index in (0, 1))
    assert (kept.state, dropped.state, dropped.reason) == ("fit", "filtered", "my_filters_of_tests:drop")
    changed = prepared(filters, "keep", "grey")(pool, 0)
    assert changed.edits == ("my_filters_of_tests:grey",)
    assert changed.image is not None
    assert (changed.image[..., 0] == changed.image[..., 2]).all()


@pytest.mark.parametrize(
    ("name", "words"), [("nothing", "gave None"), ("floats", "float64"), ("fails", "failed on .*000.png: IndexError")]
)
def test_wrong_results_raise(filters: Path, name: str, words: str) -> None:
    """A broken safety filter must not let images pass."""
    pool = Pool.open([folder(filters / "pool", range(1))])
    with pytest.raises(ValueError, match=words):
        prepared(filters, name)(pool, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keep", "MODULE:FUNCTION"),
        ("my_filters_of_tests:dorp", "Did you mean drop"),
        ("my_filters_of_tests:number", "int"),
        ("no_such_module_here:x", "No module named"),
    ],
)
def test_unknown_filters_are_named(filters: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_filter(text)


def test_the_code_of_a_filter_is_part_of_the_key(filters: Path) -> None:
    """Embeddings made with other code are not reused."""
    before = prepared(filters, "keep").key()
    (filters / "my_filters_of_tests.py").write_text(CODE + "\n# another\n")
    assert prepared(filters, "keep").key() != before


def test_unusable_images(tmp_path: Path) -> None:
    root = folder(tmp_path, range(1))
    save(root / "1.png", np.full((64, 64, 3), 90, np.uint8))
    save(root / "2.png", np.zeros((64, 31, 3), np.uint8))
    (root / "3.png").write_bytes(b"\x89PNG\r\n")
    prepare = Preparation(min_side=32, min_contrast=4.0)
    pool = Pool.open([root])
    assert [prepare(pool, index).state for index in range(4)] == ["fit", "blank", "too small", "unreadable"]


def test_boxes_are_blurred_and_nothing_else(tmp_path: Path) -> None:
    """The content of a box is lost, the rest of the image is unchanged."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    done = blur(image, [(10, 20, 40.5, 50)], "a")
    outside = np.ones((60, 80), bool)
    outside[20:50, 10:41] = False
    assert (done[outside] == image[outside]).all()
    assert done[20:50, 10:41].std() < 0.25 * image[20:50, 10:41].std()
    assert (blur(image, [(-5, -5, 500, 500)], "a").shape) == image.shape
    with pytest.raises(ValueError, match="holds nothing of a"):
        blur(image, [(80, 0, 90, 10)], "a")


def test_boxes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are relative to the file of boxes, whatever the spelling of the pool."""
    folder(tmp_path / "pool", range(2))
    (tmp_path / "boxes.json").write_text(json.dumps({"pool/001.png": [[0, 0, 20, 20]], "pool/9.png": []}))
    monkeypatch.chdir(tmp_path / "pool")
    pool = Pool.open(["../pool"])
    prepare = Preparation(boxes=read_boxes("../boxes.json"))
    assert [prepare(pool, index).edits for index in range(2)] == [(), ("blur",)]
    assert prepare.missing(pool.name(index) for index in range(2)) == {str(tmp_path / "pool/9.png")}


@pytest.mark.parametrize(
    ("text", "words"), [("[1]", "expected"), ("{", "not JSON"), ('{"a": [[1, 2, 3]]}', "boxes of a")]
)
def test_invalid_files_of_boxes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_boxes(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="no such file of boxes"):
        read_boxes(tmp_path / "c.json")
