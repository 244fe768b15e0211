"""Masks and depth maps: every way to store and to declare them, and errors for those that cannot be used."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dense.data.image import ImageError
from dense.data.labelled.formats import DepthFormat, LabelFormat, depth_format, label_format
from dense.data.labelled.reading import read_depth, read_labels
from dense.data.labelled.sample import DataError
from tests.data.labelled_files import image_file, mask, palette, text

RAW = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
THREE = LabelFormat.numbered(("a", "b", "c"))
SKY, ROAD, VOID = (70, 130, 180), (128, 64, 128), (0, 0, 0)
PAINTED = LabelFormat(("sky", "road"), ((SKY,), (ROAD,)), (VOID,))


# ---- masks


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_numbers_of_any_width(tmp_path: Path, kind: type) -> None:
    """8, 16 and 32 bits."""
    path = mask(tmp_path / "m.tif", RAW, (2, 3), kind)
    labels = read_labels(path, THREE)
    assert labels.dtype == np.uint8
    assert (labels == RAW).all()


def test_values_beyond_a_byte(tmp_path: Path) -> None:
    """Ids of any size become classes, several into one."""
    form = LabelFormat(("ship", "sea"), ((300, 65535), (7,)), (1000,))
    labels = read_labels(mask(tmp_path / "m.png", [[300, 7], [65535, 1000]], (2, 2), np.uint16), form)
    assert labels.tolist() == [[0, 1], [0, 255]]


def test_a_palette_counts_by_its_numbers(tmp_path: Path) -> None:
    """Or by its colours, if colours are declared."""
    path = palette(tmp_path / "m.png", np.array([[0, 1, 2]], np.uint8), [SKY, ROAD, VOID])
    assert read_labels(path, THREE).tolist() == [[0, 1, 2]]
    assert read_labels(path, PAINTED).tolist() == [[0, 1, 255]]


def test_colours(tmp_path: Path) -> None:
    """A painted mask, with and without an opaque alpha channel."""
    values = np.array([[SKY, ROAD], [VOID, ROAD]], np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values).convert("RGBA")):
        image.save(tmp_path / "m.png")
        assert read_labels(tmp_path / "m.png", PAINTED).tolist() == [[0, 1], [255, 1]]


def test_grey_stored_as_colour(tmp_path: Path) -> None:
    """Three equal channels are one number."""
    Image.fromarray(np.repeat(RAW[..., None], 3, 2)).save(tmp_path / "m.png")
    assert (read_labels(tmp_path / "m.png", THREE) == RAW).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    """A grey PNG of 1, 2 or 4 bits holds 0, 1, 2, ..., though readers of images stretch it to 0..255."""
    values = np.arange(16).reshape(2, 8) % 2**bits
    rows = b""
    for row in values:
        row_bits = "".join(f"{v:0{bits}b}" for v in row)
        rows += b"\0" + int(row_bits, 2).to_bytes(len(row_bits) // 8, "big")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    form = LabelFormat.numbered([str(i) for i in range(2**bits)])
    assert (read_labels(tmp_path / "m.png", form) == values).all()


def test_the_zero_label() -> None:
    """ADE20K: 0 is unknown and k is class k - 1."""
    form = LabelFormat.numbered([f"c{i}" for i in range(150)], zero_label=True, ignored=())
    assert form.labels(np.array([[0, 1, 150]], np.uint8)).tolist() == [[255, 0, 149]]
    with pytest.raises(DataError, match="value 255"):
        form.labels(np.array([[255]], np.uint8))


def test_255_classes_are_the_most() -> None:
    """Numbers 0 to 254."""
    form = LabelFormat.numbered([f"c{i}" for i in range(255)])
    assert form.labels(np.array([[254, 255]], np.uint8)).tolist() == [[254, 255]]
    with pytest.raises(ValueError, match=r"256 classes: expected 1 to 255.*merge classes"):
        LabelFormat.numbered([f"c{i}" for i in range(256)])


@pytest.mark.parametrize(
    ("form", "values", "words"),
    [
        (
            THREE,
            [[0, 7, 7, 9]],
            r"m\.png holds the values 7, 9 at 3 pixels, but only 0, 1, 2, 255 are declared.*ignore",
        ),
        (PAINTED, [[SKY, (1, 2, 3)]], r"the colour \(1, 2, 3\) at 1 pixels, but only \(0, 0, 0\), \(70, 130, 180\)"),
        (THREE, [[SKY, ROAD]], r"painted in colours.*give each class its colour"),
        (PAINTED, [[0, 1]], r"\(0, 0, 0\), \(70"),
    ],
)
def test_undeclared_values(tmp_path: Path, form: LabelFormat, values: Any, words: str) -> None:
    """The file, the values and what to do."""
    Image.fromarray(np.array(values, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=words):
        read_labels(tmp_path / "m.png", form)


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    """JPEG, transparent, missing, empty, truncated, no image at all."""
    with pytest.raises(DataError, match=r"is a JPEG, which changes values"):
        read_labels(image_file(tmp_path / "m.jpg"), THREE)
    Image.new("RGBA", (2, 2), (0, 0, 0, 9)).save(tmp_path / "clear.png")
    with pytest.raises(DataError, match="transparent in places"):
        read_labels(tmp_path / "clear.png", THREE)
    with pytest.raises(ImageError, match="no such mask"):
        read_labels(tmp_path / "none.png", THREE)
    with pytest.raises(ImageError, match="not an image"):
        read_labels(text(tmp_path / "words.png", "hello"), THREE)
    whole = mask(tmp_path / "half.png", np.random.default_rng(0).integers(0, 3, (40, 40)), (40, 40)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_labels(tmp_path / "half.png", THREE)


# ---- declarations of classes


@pytest.mark.parametrize(
    ("yaml", "classes", "raw", "labels"),
    [
        ("[sky, ground]", ("sky", "ground"), [0, 1, 255], [0, 1, 255]),
        ("- sky\n- ground", ("sky", "ground"), [0, 1, 255], [0, 1, 255]),
        ("{0: sky, 7: ground, 9: sky}", ("sky", "ground"), [0, 7, 9, 255], [0, 1, 0, 255]),
        ("{1: sky, 2: ground, ignore: [0, 3]}", ("sky", "ground"), [1, 2, 0, 3], [0, 1, 255, 255]),
        ("{sky: {values: [3, 4]}, ground: {value: 5}, ignore: 0}", ("sky", "ground"), [3, 4, 5, 0], [0, 0, 1, 255]),
        ("classes: {sky: 3, ground: [5, 6]}\nignore: [0]", ("sky", "ground"), [3, 5, 6, 0], [0, 1, 1, 255]),
        ("classes: [a, b]\nignore: [9]", ("a", "b"), [0, 1, 9], [0, 1, 255]),
    ],
)
def test_yaml_of_numbers(
    tmp_path: Path, yaml: str, classes: tuple[str, ...], raw: list[int], labels: list[int]
) -> None:
    """Every way to name classes."""
    form = label_format(text(tmp_path / "classes.yaml", yaml))
    assert form.classes == classes
    assert form.labels(np.array([raw], np.uint8)).tolist() == [labels]


def test_yaml_of_colours(tmp_path: Path) -> None:
    """British and American, one and several."""
    yaml = "{sky: {colour: [70, 130, 180]}, road: {colors: [[128, 64, 128], [1, 1, 1]]}, ignore: [[0, 0, 0]]}"
    form = label_format(text(tmp_path / "classes.yaml", yaml))
    raw = np.array([[SKY, ROAD, VOID, (1, 1, 1)]], np.uint8)
    assert form.labels(raw).tolist() == [[0, 1, 255, 1]]


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("", "expected names of classes, for instance"),
        ("[a, a]", "'a' is named twice"),
        ("{0: a, 1: 2}", "class name 2: expected text"),
        ("[yes, no]", "class name True: expected text .in quotes"),
        ("{a: {values: [0]}, b: {values: [0]}}", "value 0 is declared twice, for 'a' and 'b'"),
        ("{a: {values: [0]}, ignore: [0]}", "value 0 is declared twice, for 'a' and 'ignore'"),
        ("{a: {vlaues: [0]}}", "Did you mean values"),
        ("{a: {colour: [1, 2]}}", "expected a whole number, or a colour"),
        ("{a: {colour: [1, 2, 3]}, b: {values: [3]}}", "some values are numbers and some are colours"),
        ("{a: {values: []}}", "'a' has no value"),
        ("{classes: [a], ingore: [0]}", "unknown key 'ingore'"),
        ("{", "is not YAML"),
    ],
)
def test_yaml_that_is_wrong(tmp_path: Path, yaml: str, words: str) -> None:
    """The file and the fault are named."""
    with pytest.raises(ValueError, match=words) as caught:
        label_format(text(tmp_path / "classes.yaml", yaml))
    assert "classes.yaml" in str(caught.value)


# ---- depth


def test_png_with_a_scale(tmp_path: Path) -> None:
    """Millimetres, 0 for unknown."""
    path = mask(tmp_path / "d.png", [[0, 1500], [65535, 1]], (2, 2), np.uint16)
    depth = read_depth(path, DepthFormat("metric", scale=1000))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[np.nan, 1.5], [65.535, 0.001]])


def test_invalid_and_infinite_numbers(tmp_path: Path) -> None:
    """Declared as they are in the file."""
    path = mask(tmp_path / "d.png", [[0, 256], [65535, 65534]], (2, 2), np.uint16)
    depth = read_depth(path, DepthFormat("metric", 256, invalid=(65534,), infinite=(65535,)))
    np.testing.assert_array_equal(depth, [[0, 1], [np.inf, np.nan]])


def test_ranges_of_unknown_numbers(tmp_path: Path) -> None:
    """Both ends belong to a range; numbers may stand beside it."""
    path = mask(tmp_path / "d.png", [[0, 59999], [60000, 65535], [1000, 61234]], (3, 2), np.uint16)
    form = depth_format(text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000, invalid: [0, [60000, 65535]]}"))
    assert form.invalid == (0.0, (60000.0, 65535.0))
    np.testing.assert_array_equal(np.isnan(read_depth(path, form)), [[True, False], [True, True], [False, True]])
    assert form.declaring(7) == "invalid: [0, [60000, 65535], 7]"
    np.save(tmp_path / "negative.npy", np.array([[-2.5, -1, 2]]))
    with pytest.raises(DataError, match=r"invalid: \[0, \[-2.5, -1\]\]"):
        read_depth(tmp_path / "negative.npy", DepthFormat("metric"))


def test_inverse_depth_keeps_its_zero(tmp_path: Path) -> None:
    """There 0 is infinitely far and known."""
    np.save(tmp_path / "d.npy", np.array([[0.0, 2.0, np.nan]]))
    np.testing.assert_array_equal(read_depth(tmp_path / "d.npy", DepthFormat("inverse_relative")), [[0, 2, np.nan]])
    np.testing.assert_array_equal(read_depth(tmp_path / "d.npy", DepthFormat("metric")), [[np.nan, 2, np.nan]])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_arrays(tmp_path: Path, kind: type) -> None:
    """npy, npz, and with an axis too many; inf stays."""
    values = np.array([[1.5, np.inf], [2, 3]], kind)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    np.save(tmp_path / "b.npy", values[None])
    for name in ("a.npy", "a.npz", "b.npy"):
        np.testing.assert_array_equal(read_depth(tmp_path / name, DepthFormat()), values.astype(np.float32))


def test_float_tiff(tmp_path: Path) -> None:
    """32 bits with decimals."""
    values = np.array([[1.25, np.nan], [0, 80]], np.float32)
    Image.fromarray(values).save(tmp_path / "d.tiff")
    np.testing.assert_array_equal(read_depth(tmp_path / "d.tiff", DepthFormat()), [[1.25, np.nan], [np.nan, 80]])


def test_depth_that_is_refused(tmp_path: Path) -> None:
    """Each with its reason."""
    form = DepthFormat("metric")
    mask(tmp_path / "8bit.png", 7)
    mask(tmp_path / "16bit.png", 700, kind=np.uint16)
    image_file(tmp_path / "colour.png")
    (tmp_path / "a.exr").write_bytes(b"v/1\x01")
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.save(tmp_path / "negative.npy", np.array([[-1.0, 2]]))
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nothing")
    for name, words in {
        "8bit.png": "8 bits, which is a rendering of depth for the eye.*give scale",
        "16bit.png": r"whole numbers .uint16, up to 700. and no scale.*scale: 1000",
        "colour.png": "is a colour image",
        "a.exr": "EXR cannot be read.*convert",
        "two.npz": r"holds 2 arrays .a, b.; expected one",
        "negative.npy": r"negative depth .-1.*invalid: \[0, -1\]",
        "cube.npy": r"float64 \(2, 3, 4\); expected numbers of shape",
    }.items():
        with pytest.raises(DataError, match=words):
            read_depth(tmp_path / name, form)
    for name in ("objects.npy", "bad.npz"):
        with pytest.raises(ImageError, match="damaged or truncated"):
            read_depth(tmp_path / name, form)
    with pytest.raises(ImageError, match="no such depth map"):
        read_depth(tmp_path / "none.npy", form)
    assert (read_depth(tmp_path / "8bit.png", DepthFormat("metric", scale=10)) == np.float32(0.7)).all()
    np.save(tmp_path / "inf.npy", np.array([[np.inf]]))
    with pytest.raises(DataError, match="infinite inverse depth"):
        read_depth(tmp_path / "inf.npy", DepthFormat("inverse_relative"))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("{scale: 1000}", "expected at least kind"),
        ("{kind: inverse}", "Did you mean inverse_relative"),
        ("{kind: metric, scael: 3}", "Did you mean scale"),
        ("{kind: metric, scale: 0}", "expected a positive number"),
        ("{kind: metric, invalid: none}", "invalid='none': expected numbers"),
        ("{kind: metric, invalid: [[5, 1]]}", r"invalid=\[\[5, 1\]\]: expected numbers, or ranges \[low, high\]"),
        ("{kind: metric, infinite: [[1, 5]]}", r"infinite=\[\[1, 5\]\]: expected numbers$"),
    ],
)
def test_depth_yaml_that_is_wrong(tmp_path: Path, yaml: str, words: str) -> None:
    """The kind must be declared, and nothing is guessed."""
    with pytest.raises(ValueError, match=words):
        depth_format(text(tmp_path / "depth.yaml", yaml))


def test_depth_yaml(tmp_path: Path) -> None:
    """One number or several."""
    form = depth_format(text(tmp_path / "depth.yaml", "{kind: metric, scale: 256, invalid: 0, infinite: [65535]}"))
    assert form == DepthFormat("metric", 256, (0.0,), (65535.0,))
