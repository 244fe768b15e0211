"""Numbers of many bits and channels as bytes, from files of every kind, and what is refused."""

from __future__ import annotations

import importlib.util
import math
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, features

from dense.curate import Pool
from dense.data import image as reading_images
from dense.data.image import dark, decode_image, list_images, read_image, read_values
from dense.data.labelled.check import check
from dense.data.labelled.formats import DepthFormat
from dense.data.labelled.open import open_labelled
from dense.data.labelled.reading import read_depth, read_mask
from dense.data.labelled.sample import DataError
from dense.data.large import NotWindowed, numbers_of, open_windows
from dense.data.levels import PHOTOGRAPHS, RGB, ImageError, Reading, as_rgb, fitted, report_nan, sampled, statistics
from dense.data.unlabelled import open_images
from dense.data.values import stem_of, stored
from dense.data.windows import WindowSource
from dense.evaluate.classification.data import Examples
from dense.evaluate.classification.extraction import version
from dense.predict import Predictor
from tests.data.scientific_files import cells, compressed_as, labelled, lzw
from tests.predict.models import model

Bytes = NDArray[np.uint8]


@pytest.fixture
def photo() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def twelve(values: Bytes) -> NDArray[np.uint16]:
    """8 bits as the 12 bits that mean the same."""
    return np.round(values * (4095 / 255)).astype(np.uint16)


# ---- bytes


def test_8_12_16_bits_and_floats_of_one_meaning_give_the_same_bytes(photo: Bytes) -> None:
    forms: list[tuple[NDArray[Any], Any]] = [
        (photo, None), (photo, [0, 255]), (twelve(photo), [0, 4095]), (photo.astype(np.uint16) * 257, None),
        (photo.astype(np.uint16) * 257, [0, 65535]), (photo / np.float32(255), None), (photo / 255, [0, 1]),
        (photo.astype(np.float32), None), (photo.astype(np.int32) - 100, [-100, 155]),
    ]  # fmt: skip
    for values, levels in forms:
        np.testing.assert_array_equal(Reading.of(levels).to_bytes(values), photo, f"{values.dtype} {levels}")


def test_to_bytes_agrees_with_the_formula_in_every_type() -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, 4096, (30, 20, 2))
    reading = Reading(("a", "b"), (100, 300), (3000, 2000), gamma=0.7, log=True)
    expected = np.empty(values.shape)
    for c, (black, white) in enumerate(((100, 3000), (300, 2000))):
        scaled = np.log1p(np.maximum(values[..., c] - black, 0)) / np.log1p(white - black)
        expected[..., c] = np.floor(255 * np.clip(scaled, 0, 1) ** 0.7 + 0.5)
    for kind in (np.uint16, np.int32, np.float32, np.float64):
        assert np.abs(reading.to_bytes(values.astype(kind)).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(
        reading.to_bytes(values.astype(np.uint16)), reading.to_bytes(values.astype(np.float64))
    )


def test_nan_is_black_and_reported_once(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("dense.data.levels.with_nan", {})
    values = np.full((4, 5), 0.5, np.float32)
    values[0] = np.nan
    values[1] = np.inf
    for _ in range(2):
        found = Reading.of([0, 1], 1).to_bytes(values, "x.tif")[..., 0]
    report_nan()  # a single one is not reported twice
    assert found[:, 0].tolist() == [0, 255, 128, 128]
    assert capsys.readouterr().out.count("NaN") == 1
    for name in "abcda":
        Reading.of([0, 1], 1).to_bytes(values, f"{name}.tif")
    report_nan()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "4 images have NaN, which became black: a.tif (25 %), b.tif (25 %), c.tif (25 %) and 1 more"


def test_per_image_takes_quantiles_of_each_channel() -> None:
    values = np.stack([np.linspace(50, 90, 10_000), np.linspace(-3, 7, 10_000)], 1).reshape(100, 100, 2)
    found = Reading.of("per_image", 2).to_bytes(values)
    assert found[0, 0].tolist() == [0, 0] and found[-1, -1].tolist() == [255, 255]
    assert abs(int(found[50, 0, 0]) - 128) <= 2 and abs(int(found[50, 0, 1]) - 128) <= 2
    assert Reading.of("per_image", 1).to_bytes(np.full((3, 3), 7)).max() == 0  # nothing to stretch


def test_levels_are_fitted_per_channel_and_reproducibly() -> None:
    images = [cells(2, seed)[0] for seed in range(5)]
    found, reason = fitted(Reading.of(None, ["dapi", "actin"]), images)
    low, high = np.quantile(np.concatenate([i.reshape(-1, 2) for i in images]), (0.001, 0.999), axis=0)
    assert found.black == tuple(np.floor(low)) and found.white == tuple(np.ceil(high))
    assert "0.1 and 99.9 %" in reason and "5 images" in reason
    assert "dapi" in str(found) and Reading.from_dict(found.to_dict()) == found
    mean, std = statistics([found.to_bytes(i) for i in images])
    whole = np.concatenate([found.to_bytes(i).reshape(-1, 2) for i in images]) / 255
    np.testing.assert_allclose(mean, whole.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, whole.std(0), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"levels": [4095, 0]}, "levels 4095 0: expected black below white; they are reversed, write 0 before 4095"),
        ({"levels": [1, 2, 3]}, "expected two numbers"),
        ({"levels": {"blac": [0]}}, "Did you mean black"),
        ({"levels": {"black": [0, 1], "white": [5, 6]}, "channels": 5}, "one for each of 5 channels"),
        ({"levels": "auto"}, "choose auto"),
        ({"levels": {"gamma": 0}}, "gamma=0"),
        ({"channels": ["a", "a"]}, "each name once"),
        ({"channels": 0}, "at least 1"),
    ],
)
def test_wrong_declarations_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Reading.of(**given)


def test_the_default_is_saved_as_nothing() -> None:
    assert PHOTOGRAPHS.to_dict() == {} and Reading.from_dict(None) == PHOTOGRAPHS == Reading()
    assert Reading.of(None, 3).channels == RGB and Reading.of(None, 3).colours and not Reading.of(None, 2).colours


def test_images_are_drawn_as_documented(photo: Bytes) -> None:
    assert as_rgb(photo) is photo
    assert (as_rgb(photo[..., :1]) == photo[..., :1]).all()
    assert as_rgb(photo[..., :2])[..., 2].max() == 0
    np.testing.assert_array_equal(as_rgb(np.dstack([photo, photo])), photo)


# ---- files


@pytest.mark.parametrize("bits", [1, 8, 12, 16])
def test_numbers_whose_0_is_white(bits: int, tmp_path: Path) -> None:
    """They are turned within the bits of the file, also where these are packed."""
    if bits == 12:
        pytest.importorskip("imagecodecs")
    kind = {1: bool, 8: np.uint8, 12: np.uint16, 16: np.uint16}[bits]
    values = np.random.default_rng(0).integers(0, 2**bits, (16, 24)).astype(kind)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite", bitspersample=bits)
    np.testing.assert_array_equal(read_values(path)[..., 0], 2**bits - 1 - values.astype(int))


def test_rgb_through_the_path_of_channels_equals_photographs_bit_for_bit(photo: Bytes, tmp_path: Path) -> None:
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"a.png": {}, "a.tif": {}, "a.jpg": {"exif": exif}, "lzw.tif": {"compression": "tiff_lzw"}, "a.bmp": {}}
    for name, options in files.items():
        image.save(tmp_path / name, **options)
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("1").save(tmp_path / "bits.png")
    alpha = np.dstack([photo, photo[..., :1]])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    tifffile.imwrite(tmp_path / "deep.tif", photo[..., 0].astype(np.uint16) * 200)
    tifffile.imwrite(tmp_path / "float.tif", photo[..., 0] / np.float32(255))
    for path in sorted(tmp_path.iterdir()):
        expected = read_image(path)
        for reading in (Reading.of(None, 3), Reading(gamma=1.0, channels=RGB)):
            np.testing.assert_array_equal(read_image(path, reading=reading), expected, path.name)


def test_every_kind_of_file_gives_its_numbers(photo: Bytes, tmp_path: Path) -> None:
    values = twelve(photo)
    planes = np.moveaxis(values, 2, 0)
    write = tifffile.imwrite
    write(tmp_path / "contig.tif", values, photometric="rgb")
    write(tmp_path / "tiled.tif", values, photometric="rgb", tile=(16, 16))
    write(tmp_path / "deflate.tif", values, photometric="rgb", compression="zlib")
    write(tmp_path / "planar.tif", planes, photometric="minisblack", planarconfig="separate")
    write(tmp_path / "big.tif", planes, photometric="minisblack", bigtiff=True, byteorder=">")
    write(tmp_path / "cells.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    write(tmp_path / "imagej.tif", planes, imagej=True, metadata={"axes": "CYX"})
    with tifffile.TiffWriter(tmp_path / "pages.tif") as pages:
        for plane in planes:
            pages.write(plane, contiguous=False)
    write(tmp_path / "plain_pages.tif", planes, photometric="minisblack", metadata=None)
    cv2.imwrite(str(tmp_path / "rgb16.png"), values[..., ::-1])
    np.save(tmp_path / "last.npy", values)
    np.save(tmp_path / "first.npy", planes)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_values(path), values, path.name)
        found = read_image(path, reading=Reading.of([0, 4095], ["a", "b", "c"]))
        np.testing.assert_array_equal(found, photo, path.name)
        data = decode_image(path.read_bytes(), path.name, reading=Reading.of([0, 4095], 3))
        np.testing.assert_array_equal(data, photo, path.name)


def test_compressions_that_need_a_codec(tmp_path: Path) -> None:
    """Without imagecodecs, pages of LZW are read, and what cannot be read is an error that names the package."""
    values = np.random.default_rng(0).integers(0, 4096, (3, 40, 56)).astype(np.uint16)
    np.testing.assert_array_equal(read_values(lzw(tmp_path / "pages.tif", values)), np.moveaxis(values, 0, 2))
    if importlib.util.find_spec("imagecodecs"):
        pytest.skip("imagecodecs is installed")
    lzw(tmp_path / "bands.tif", values, planarconfig="separate")
    tifffile.imwrite(tmp_path / "zstd.tif", values[0], compression="zlib", tile=(16, 16))
    compressed_as(tmp_path / "zstd.tif", 50000)
    for name, count in (("bands.tif", 3), ("zstd.tif", 1)):
        for reading in (Reading.of([0, 4095], count), Reading.of([0, 4095])):
            with pytest.raises(ImageError, match=rf"{name}: .* needs imagecodecs: pip install 'dino-dense\[tiff\]'"):
                read_image(tmp_path / name, reading=reading)
        with pytest.raises(NotWindowed, match="needs imagecodecs"):
            open_windows(tmp_path / name, Reading.of([0, 4095], count))


def test_channels_are_chosen_by_the_names_that_a_file_stores(tmp_path: Path) -> None:
    values, _ = cells(3)
    planes = np.moveaxis(values, 2, 0)
    names = ["DAPI", "Actin", "ER"]
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, metadata={"axes": "CYX", "Channel": {"Name": names}})
    xml = "".join(f'<Item name="D" sample="{i}" role="description">{n}</Item>' for i, n in enumerate(names))
    gdal = (42112, "s", 0, f"<GDALMetadata>{xml}</GDALMetadata>", True)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="minisblack", planarconfig="separate", extratags=[gdal])
    for name in ("a.ome.tif", "b.tif"):
        assert stored(tmp_path / name).names == tuple(names)
        found = read_image(tmp_path / name, reading=Reading.of([0, 4095], ["er", "dapi"]))
        np.testing.assert_array_equal(found, Reading.of([0, 4095], 2).to_bytes(values[..., [2, 0]]))
        with pytest.raises(ImageError, match=r"3 channels \(DAPI, Actin, ER\), expected 2 \(nir, red\)"):
            read_image(tmp_path / name, reading=Reading.of(None, ["nir", "red"]))


def test_numpy_files_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="nothing is unpickled"):
        read_values(tmp_path / "a.npy")


def test_numpy_files_are_images_only_where_numbers_are_declared(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, cells(2)[0])
    with pytest.raises(FileNotFoundError, match="no images"):
        list_images(tmp_path)
    assert len(list_images(tmp_path, reading=Reading.of(None, 2))) == 2
    with pytest.raises(FileNotFoundError):
        open_images(tmp_path)
    assert open_images(tmp_path, reading=Reading.of(None, 2)).read(0).shape == (48, 64, 2)


def test_dicom(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    stored_numbers = cells(1)[0][..., 0]
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(str(tmp_path / f"{kind}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        data.Rows, data.Columns = stored_numbers.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, kind
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        data.WindowCenter, data.WindowWidth = 40, 400
        data.PixelData = stored_numbers.tobytes()
        data.save_as(tmp_path / f"{kind}.dcm", enforce_file_format=True)
    expected = stored_numbers.astype(int) * 2 - 1024
    np.testing.assert_array_equal(read_values(tmp_path / "MONOCHROME2.dcm")[..., 0], expected)
    turned = (4095 - stored_numbers.astype(int)) * 2 - 1024
    np.testing.assert_array_equal(read_values(tmp_path / "MONOCHROME1.dcm")[..., 0], turned)
    assert stored(tmp_path / "MONOCHROME2.dcm").window == (-160, 240)
    assert len(list_images(tmp_path, reading=Reading.of([-160, 240]))) == 2


def test_dicom_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ImportError, match=r"pip install 'dino-dense\[dicom\]'"):
        read_values(tmp_path / "a.dcm")


def in_png(path: Path, values: NDArray[np.uint16], colour_type: int) -> None:
    """Write a PNG of 16 bits by its definition."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits(kind: int, channels: int, tmp_path: Path) -> None:
    """Colours and opacity keep all their bits, by declared levels and in photographs, which lie over white."""
    values = np.random.default_rng(0).integers(0, 65536, (16, 24, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    in_png(path, values, kind)
    np.testing.assert_array_equal(read_values(path), values)
    found = read_image(path).astype(float)
    opacity = values[..., -1:] / 65535 if kind > 2 else 1
    expected = opacity * values[..., : channels if kind == 2 else channels - 1] / 257 + 255 * (1 - opacity)
    assert np.abs(found - expected).max() <= 0.51
    assert dark([str(path)], PHOTOGRAPHS) is None
    if kind > 2:
        values[..., -1] = 65535
        in_png(path, values, kind)
    reading = Reading.of([0, 65535], 3 if kind != 4 else 1)
    np.testing.assert_array_equal(read_image(path, reading=reading)[..., 0], np.rint(values[..., 0] / 257))


@pytest.mark.parametrize(("kind", "channels"), [("P5", 1), ("P6", 3)])
def test_ppm_of_16_bits(kind: str, channels: int, tmp_path: Path) -> None:
    """The numbers of the file by declared levels; photographs have the white of its header."""
    values = np.random.default_rng(0).integers(0, 4096, (16, 24, channels)).astype(np.uint16)
    path = tmp_path / "a.ppm"
    path.write_bytes(f"{kind} 24 16 4095\n".encode() + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_values(path), values)
    found = read_image(path, reading=Reading.of([0, 4095], channels))
    assert np.abs(found.astype(int) - read_image(path)[..., :channels]).max() <= 1
    assert dark([str(path)], PHOTOGRAPHS) is None


def test_numbers_that_pil_reads_wrong(tmp_path: Path) -> None:
    """Planes of 16 bits, and other orders of bytes, in photographs, depth maps and masks."""
    colours = np.random.default_rng(0).integers(0, 65536, (3, 40, 56)).astype(np.uint16)
    expected = np.rint(np.moveaxis(colours, 0, 2) / 257)
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", colours, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    np.testing.assert_array_equal(decode_image((tmp_path / "a.tif").read_bytes()), expected)
    depth = np.random.default_rng(0).uniform(1, 9, (40, 56)).astype(np.float32)
    tifffile.imwrite(tmp_path / "depth.tif", depth, byteorder=">", compression="zlib")
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.tif", DepthFormat()), depth)
    mask = np.random.default_rng(0).integers(0, 300, (40, 56)).astype(np.int16)
    tifffile.imwrite(tmp_path / "mask.tif", mask, byteorder=">", compression="zlib")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), mask)
    with pytest.raises(DataError, match="has 3 channels"):
        read_depth(tmp_path / "a.tif", DepthFormat(scale=1))
    with pytest.raises(DataError, match="a mask holds whole numbers"):
        read_mask(tmp_path / "depth.tif")


def test_real_files_are_read_as_another_reader_does() -> None:
    """Those of scikit-image's sample images that its wheel holds."""
    skimage = pytest.importorskip("skimage.io")
    folder = Path(skimage.__file__).parents[1] / "data"
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".png", ".tif", ".jpg")):
        expected = skimage.imread(path)
        if expected.ndim > 3 or path.name == "chessboard_RGB.png":  # pages of colours; 16 bits, of which that keeps 8
            continue
        values = read_values(path)
        expected = expected[..., None] if expected.ndim == 2 else expected
        if expected.shape != values.shape:  # pages come first there
            expected = np.moveaxis(expected, 0, 2)
        np.testing.assert_array_equal(values, expected, path.name)


# ---- a file for each channel


def test_a_file_per_channel_is_one_image(tmp_path: Path) -> None:
    labelled(tmp_path, 3, names=["dapi", "actin", "bf"])
    reading = Reading.of([0, 4095], ["actin", "dapi"])
    assert [p.name for p in list_images(tmp_path / "images", reading=reading)] == [
        "cell0_actin.tif", "cell14_actin.tif", "cell7_actin.tif",
    ]  # fmt: skip
    expected = Reading.of([0, 4095], 2).to_bytes(cells(3, 0)[0][..., [1, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "images/cell0_actin.tif", reading=reading), expected)
    source = open_labelled(tmp_path, "all", reading=reading)
    assert len(source) == 3 and check(source) == []  # masks are cell0.png, ...
    np.testing.assert_array_equal(source.read(0).image, expected)
    before = source.identity(0)
    (tmp_path / "images/cell0_dapi.tif").touch()
    assert source.identity(0) != before
    unlabelled = open_images(tmp_path / "images", reading=reading)
    assert len(unlabelled) == 3
    np.testing.assert_array_equal(unlabelled.read(0), expected)


@pytest.mark.parametrize(("names", "suffix"), [(("dapi", "actin"), ".ome.tif"), (("DAPI", "aCtin"), ".tif")])
def test_names_of_channels_in_names_of_files(names: tuple[str, str], suffix: str, tmp_path: Path) -> None:
    """Before .ome.tif, and in capitals."""
    values = cells(2)[0]
    for channel, name in enumerate(names):
        tifffile.imwrite(tmp_path / f"w1_{name}{suffix}", values[..., channel])
        tifffile.imwrite(tmp_path / f"w1.b_{name}{suffix}", values[..., channel])
    tifffile.imwrite(tmp_path / f"w1_er{suffix}", values[..., 0])  # a channel that is not named
    reading = Reading.of([0, 4095], ["dapi", "actin"])
    source = open_images(tmp_path, reading=reading)
    assert len(source) == len(list_images(tmp_path, reading=reading)) == 2
    for index in range(2):
        np.testing.assert_array_equal(source.read(index), reading.to_bytes(values))
        windows = open_windows(source.name(index), reading)
        np.testing.assert_array_equal(windows.read(0, 0, *values.shape[:2]), reading.to_bytes(values))
    assert stem_of(tmp_path / f"w1_{names[0]}{suffix}", reading) == tmp_path / "w1"


def test_numbered_channels(tmp_path: Path) -> None:
    labelled(tmp_path, 2, names=["ch1", "ch2"])
    assert len(open_images(tmp_path / "images", reading=Reading.of(None, 2))) == 2


def test_a_missing_channel_is_one_error_before_training(tmp_path: Path) -> None:
    labelled(tmp_path, 3, names=["dapi", "actin"])
    (tmp_path / "images/cell7_actin.tif").unlink()
    reading = Reading.of([0, 4095], ["dapi", "actin"])
    for opened in (
        lambda: open_labelled(tmp_path, "all", reading=reading), lambda: list_images(tmp_path, reading=reading),
        lambda: open_images(tmp_path / "images", reading=reading),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=r"1 of 3 images lack the file of a channel: .*cell7: actin"):
            opened()
    with pytest.raises(ImageError, match=r"has no channel cell7_actin\.tif beside it"):
        read_image(tmp_path / "images/cell7_dapi.tif", reading=reading)


# ---- what is refused


def test_mixed_numbers_of_channels_are_named_by_the_check(tmp_path: Path) -> None:
    labelled(tmp_path, 4)
    tifffile.imwrite(tmp_path / "images/cell7.tif", np.moveaxis(cells(3, 1)[0], 2, 0), photometric="minisblack")
    problems = check(open_labelled(tmp_path, "all", reading=Reading.of([0, 4095], ["a", "b"])))
    assert len(problems) == 1 and "cell7.tif has 3 channels, expected 2 (a, b)" in problems[0]


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_colours_where_numbers_are_expected(mode: str, photo: Bytes, tmp_path: Path) -> None:
    Image.fromarray(photo).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a colour map is for people; save the numbers as grey values"):
        read_image(tmp_path / "a.png", reading=Reading.of(None, ["dapi"]))
    grey = Image.fromarray(photo[..., 0])
    grey.convert(mode).save(tmp_path / "grey.png")  # grey values, stored as colours
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png", reading=Reading.of(None, ["dapi"])), np.asarray(grey)[..., None]
    )


def test_several_channels_where_a_photograph_is_expected(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cells(5)[0])
    with pytest.raises(ImageError, match=r"5 channels, expected 1 or 3 of a photograph; name them, as --channels 5"):
        read_image(tmp_path / "a.npy", reading=Reading.of([0, 4095]))


def test_planes_of_depth_are_no_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 2, 8, 8), np.uint16), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ImageError, match="4 along Z, 2 along C"):
        read_values(tmp_path / "a.tif")


def test_nan_of_a_set_is_counted(tmp_path: Path) -> None:
    labelled(tmp_path, 3)
    values = np.moveaxis(cells(2, 0)[0], 2, 0) / np.float32(4095)
    values[0, :24] = np.nan
    tifffile.imwrite(tmp_path / "images/cell0.tif", values, photometric="minisblack")
    tifffile.imwrite(tmp_path / "images/cell7.tif", np.full_like(values, np.nan), photometric="minisblack")
    warnings: list[str] = []
    problems = check(open_labelled(tmp_path, "all", reading=Reading.of(None, ["a", "b"])), warnings=warnings)
    assert [p for p in problems if "cell7.tif holds no number that is finite" in p]
    assert any("2 images" in line and "NaN, which become black" in line for line in warnings)


def test_damaged_and_missing_files_are_one_kind_of_error(tmp_path: Path) -> None:
    reading = Reading.of([0, 4095], 2)
    labelled(tmp_path, 1)
    whole = (tmp_path / "images/cell0.tif").read_bytes()
    for name, data in {"a.tif": whole[:300], "b.png": b"\x89PNG....", "c.tif": b"", "d.npy": b"\x93NUMPY"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name, reading=reading)
    for name in ("none.tif", "images"):
        with pytest.raises(ImageError):
            read_image(tmp_path / name, reading=reading)


# ---- nearly black


@pytest.mark.parametrize(("highest", "option"), [(4000, "0, 4095"), (900, "0, 1023"), (235, "0, 255")])
def test_a_set_that_is_nearly_black_names_the_option(highest: int, option: str, tmp_path: Path) -> None:
    names = []
    for number in range(3):
        values = np.full((8, 8), highest - number, np.uint16)
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(values).save(names[-1])
    problem = dark(names, PHOTOGRAPHS)
    assert problem is not None and problem.endswith(f'--data.levels "[{option}]"') and f"is {highest}" in problem
    assert dark(names, Reading.of([0, 4095])) is None and dark(names, Reading.of("per_image")) is None
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), 200, np.uint8))  # has no say in it
    assert dark([*names, str(tmp_path / "a.tif")], PHOTOGRAPHS) == problem
    tifffile.imwrite(tmp_path / "b.tif", np.full((8, 8), highest, np.uint16))
    assert "b.tif" in str(dark([str(tmp_path / name) for name in ("a.tif", "b.tif")], PHOTOGRAPHS))
    Image.fromarray(np.full((8, 8), 50_000, np.uint16)).save(names[1])  # one is not dark
    assert dark(names, PHOTOGRAPHS) is None


def test_a_set_that_would_come_out_wrong(tmp_path: Path) -> None:
    """Colours of 16 bits, one hot pixel, numbers below 0, and floating point of two scales."""
    name = str(tmp_path / "colours.png")
    cv2.imwrite(name, np.full((8, 8, 3), 3000, np.uint16))
    problem = dark([name], PHOTOGRAPHS)
    assert problem is not None and "is 3000" in problem
    values = np.full((100, 100), 100, np.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "hot.png")
    problem = dark([str(tmp_path / "hot.png")], PHOTOGRAPHS)
    assert problem is not None and problem.endswith('--data.levels "[0, 255]"')
    np.save(tmp_path / "below.npy", np.full((8, 8), -500, np.int16))
    problem = dark([str(tmp_path / "below.npy")], Reading(("ct",)))
    assert problem is not None and "below 0, such as -500" in problem
    names = [str(tmp_path / f"{white}.npy") for white in (1, 200)]
    for path, white in zip(names, (1, 200), strict=True):
        np.save(path, np.full((8, 8), white, np.float32))
    problem = dark(names, Reading(("dna",)))
    assert problem is not None and "differ in what would be white (1 of" in problem
    assert dark(names[:1], Reading(("dna",))) is None
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan, np.float32))
    missing = str(tmp_path / "missing.tif")  # which the check of a training names
    assert dark([missing], Reading(("dna",))) is None
    with pytest.raises(ImageError, match="no such image"):
        numbers_of(missing, Reading(("dna",)))
    with pytest.raises(ImageError, match="no finite number"):
        read_image(tmp_path / "nan.npy", reading=Reading(("dna",)))


def test_a_sample_is_spread_over_the_image() -> None:
    """Also where a stride would meet few columns; a small range far from 0 and mixed channels are fitted."""
    values = np.zeros((1000, 1000, 1), np.uint16)
    values[:, 400:500] = 9
    assert 0.08 < (sampled(values) == 9).mean() < 0.12
    small = np.random.default_rng(0).uniform(1000.1, 1000.4, (40, 40, 1))
    found = fitted(Reading(("height",)), [small])[0]
    assert 1000.09 < found.black[0] < 1000.11 and 1000.39 < found.white[0] < 1000.41
    grey, colours = np.full((4, 4, 1), 7, np.uint16), np.full((4, 4, 3), 9, np.uint16)
    assert fitted(PHOTOGRAPHS, [grey, colours])[0].white == (9.0,) * 3
    for levels, words in (([0, math.inf], "finite numbers"), ({"black": "a", "white": 5}, "expected numbers")):
        with pytest.raises(ValueError, match=words):
            Reading.of(levels)  # type: ignore[arg-type]


def test_names_that_match_in_part_are_refused(tmp_path: Path) -> None:
    """By position, one channel would be taken for another."""
    values = np.stack([np.full((16, 16), n, np.uint8) for n in (1, 2)])
    tifffile.imwrite(
        tmp_path / "cells.ome.tif", values, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "Actin"]}}
    )
    assert read_image(tmp_path / "cells.ome.tif", reading=Reading(("actin", "dapi")))[0, 0].tolist() == [2, 1]
    with pytest.raises(ImageError, match="has the channels DAPI, Actin, expected actin, tubulin"):
        read_image(tmp_path / "cells.ome.tif", reading=Reading(("actin", "tubulin")))


def test_other_verbs_name_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Of grey and of colours, read whole and in windows."""
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.png"), np.full((8, 8, 3), 3000, np.uint16))
    tifffile.imwrite(tmp_path / "c.tif", np.full((8, 8, 3), 3000, np.uint16), photometric="rgb")
    predictor = Predictor(model("labels"), large=0)
    for read in (read_image, predictor.opened):
        for name in ("a.png", "b.png", "c.tif"):
            monkeypatch.setattr(reading_images, "_dark", [])
            read(tmp_path / name)
            assert f"{name} is read as 0 to 65535" in capsys.readouterr().out


def geotiff(path: Path, values: np.ndarray, nodata: object, **options: Any) -> Path:
    """Write a TIFF with GDAL's tag of the number that means unknown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", extratags=[(42113, 2, 0, str(nodata), True)], **options)
    return path


@pytest.mark.parametrize(
    ("kind", "nodata"), [(np.int16, -9999), (np.uint16, 65535), (np.uint8, 255), (np.float32, -3.4028234663852886e38)]
)
@pytest.mark.parametrize("levels", [[0, 100], None])
def test_nodata_is_nan(kind: type, nodata: float, levels: Any, tmp_path: Path) -> None:
    """Black, whatever the number is, in whole images and in windows; it has no part in the levels."""
    values = np.random.default_rng(0).integers(1, 100, (80, 64)).astype(kind)
    values[:10] = nodata
    path = geotiff(tmp_path / "a.tif", values, nodata, tile=(16, 16))
    reading = Reading.of(levels, ["height"])
    found = read_image(path, reading=reading)
    assert not found[:10].any() and found[10:].any()
    assert np.array_equal(open_windows(path, reading).read(0, 0, 80, 64), found)
    numbers = numbers_of(path, reading)
    assert np.isnan(numbers[:10]).all() and np.array_equal(numbers[10:, :, 0], values[10:].astype(np.float64))
    chosen = fitted(Reading(("height",)), [numbers])[0]
    assert 1 <= chosen.black[0] <= 2 and 98 <= chosen.white[0] <= 99
    assert np.array_equal(read_values(path)[..., 0], values)  # what the file stores


@pytest.mark.parametrize("nodata", [0, 65535])
def test_nodata_of_a_photograph_is_a_number_like_others(nodata: int, tmp_path: Path) -> None:
    """Without channels or levels, 16 bits stay those of the type, in whole images and in windows."""
    values = np.full((64, 64), nodata, np.uint16)
    values[16:48] = 12850
    path = geotiff(tmp_path / "a.tif", values, nodata, tile=(16, 16))
    found = read_image(path)
    assert sorted(np.unique(found).tolist()) == sorted([50, 255 if nodata else 0])
    assert np.array_equal(open_windows(path, PHOTOGRAPHS).read(0, 0, 64, 64), found)


@pytest.mark.skipif(not features.check("libtiff"), reason="PIL was built without libtiff")
def test_zstd_of_grey_values(tmp_path: Path) -> None:
    """PIL reads what neither tifffile nor OpenCV decodes; a mask of another kind names what it needs."""
    values = np.random.default_rng(0).integers(0, 2000, (40, 30)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="zstd")
    assert np.array_equal(read_mask(tmp_path / "a.tif"), values)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([values] * 2), compression="zlib", planarconfig="separate")
    compressed_as(tmp_path / "b.tif", 50000)
    if importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(ImageError, match=r"b\.tif: its compression \(ZSTD.* needs imagecodecs"):
            read_mask(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("name", "stem"), [("w0.ome.tif", "w0"), ("w0.OME.TIF", "w0"), ("w0_DAPI.OME.TIF", "w0"), ("w0.1.tif", "w0.1")]
)
def test_the_stem_of_an_image(name: str, stem: str) -> None:
    assert stem_of(Path(name), Reading.of(None, ["dapi", "actin"])) == Path(stem)


def test_all_files_of_an_image_are_its_version(tmp_path: Path) -> None:
    """What is cached of an image is computed again where the file of any channel changes."""
    reading = Reading.of([0, 100], ["dapi", "actin"])
    for channel in reading.channels:
        tifffile.imwrite(tmp_path / f"w0-{channel}.tif", np.full((32, 32), 50, np.uint16))
    tifffile.imwrite(tmp_path / "w0-phase.tif", np.full((32, 32), 50, np.uint16))  # not named, so left out

    def versions() -> list[str]:
        pool = Pool.open([tmp_path], reading=reading)
        assert len(pool) == 1
        examples = Examples("set", pool.sources[0], np.zeros(1, np.int64), ("none",))
        return [pool.version(range(1)), version(examples)]

    before = versions()
    tifffile.imwrite(tmp_path / "w0-actin.tif", np.full((32, 40), 50, np.uint16))
    assert all(one != other for one, other in zip(before, versions(), strict=True))


def test_a_number_that_no_pixel_can_have_changes_nothing(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for number, nodata in enumerate((-9999, 0.5, "nan", "none")):
        path = geotiff(tmp_path / f"{number}.tif", values, nodata)
        assert numbers_of(path, Reading(("a",))).dtype == np.uint8


def test_targets_without_data_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of masks where it is no class, and of depth, in whole images, whose files are opened once, and in windows."""
    labelled(tmp_path, 1)
    mask = np.zeros((48, 64), np.uint8)
    mask[:4], mask[4:8] = 200, 1
    depth = np.full((48, 64), 5, np.float32)
    depth[40:] = -32768
    (tmp_path / "masks/cell0.png").unlink()
    geotiff(tmp_path / "masks/cell0.tif", mask, 200, tile=(16, 16))
    geotiff(tmp_path / "depth/cell0.tif", depth, -32768, tile=(16, 16))
    (tmp_path / "depth.yaml").write_text("kind: metric\n")
    source = open_labelled(tmp_path, "all", reading=Reading.of([0, 4095], 2))
    assert not check(source)
    for sample in (source.read(0), WindowSource(source, 1, (64, 64)).read(0)):  # type: ignore[arg-type]
        assert sample.labels is not None and sample.depth is not None
        assert (sample.labels[:4] == 255).all() and (sample.labels[4:8] == 1).all() and not sample.labels[8:].any()
        assert np.isnan(sample.depth[40:]).all() and (sample.depth[:40] == 5).all()
    geotiff(tmp_path / "masks/cell0.tif", mask % 200, 0)
    opened: list[Path] = []
    path_open = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: opened.append(path) or path_open(path, *mode))
    assert not (source.labels(0) == 255).any()  # type: ignore[union-attr]
    assert np.isnan(source.depth(0)[40:]).all()  # type: ignore[index,union-attr]
    assert [path.parent.name for path in opened] == ["masks", "depth"]


def test_a_set_with_nodata_that_is_nearly_black(tmp_path: Path) -> None:
    values = np.full((20, 20), 3000, np.int16)
    values[0] = -9999
    problem = dark([str(geotiff(tmp_path / "a.tif", values, -9999))], Reading(("height",)))
    assert problem is not None and problem.endswith('--data.levels "[0, 4095]"')
