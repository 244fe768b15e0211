"""Reading images: every mode correctly, every damaged file with one kind of error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from dense.data import image as images
from dense.data.image import EXTENSIONS, ImageError, decode_image, list_images, read_image, to_rgb
from dense.data.large import open_windows

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)  # 16, 16, 3


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff16(values: NDArray[Any]) -> bytes:
    """A grey TIFF file of the array's own type."""
    return stored(Image.fromarray(values), "TIFF")


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# ---- modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG"])
def test_grey_and_colour(kind: str) -> None:
    """RGB and L come out as three channels, exactly where the format is lossless."""
    tolerance = {"JPEG": 6, "GIF": 40}.get(kind, 0)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    for values in (COLOUR, np.repeat(RAMP[..., None], 3, axis=2)):
        image = Image.fromarray(values)
        if (values[..., 0] == values[..., 1]).all() and kind != "WEBP":
            image = image.convert("L")
        result = decode_image(stored(image, kind, **options))
        assert (result.dtype, result.shape) == (np.uint8, (16, 16, 3))
        assert np.abs(result.astype(int) - values).max() <= tolerance


def test_height_comes_first(tmp_path: Path) -> None:
    """A wide image is wide; the array is the caller's own."""
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "wide.png")
    result = read_image(tmp_path / "wide.png")
    assert result.shape == (20, 30, 3)
    assert result[0, 0].tolist() == [1, 2, 3]
    assert result.flags.writeable
    assert result.flags.c_contiguous
    assert np.array_equal(read_image(str(tmp_path / "wide.png")), result)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_composited_over_white(mode: str) -> None:
    """Opaque pixels keep their colour, clear ones become white, half of black half of that."""
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(10, 10, 10, 255), (10, 10, 10, 0), (0, 0, 0, 128)]):
        image.putpixel((x, 0), pixel)
    if mode in ("RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    elif mode == "PA":
        clear = image.getchannel("A")
        image = image.convert("L").convert("P").convert("PA")
        image.putalpha(clear)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    assert to_rgb(image)[0].tolist() == [[10] * 3, [255] * 3, [127] * 3]


def test_transparent_palettes_and_colours() -> None:
    """tRNS of palette, grey and colour PNG files."""
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 100, 0, 0])
    assert decode_image(stored(palette, "PNG")).tolist() == [[[9, 8, 7], [100, 0, 0]]]
    assert decode_image(stored(palette, "PNG", transparency=1)).tolist() == [[[9, 8, 7], [255] * 3]]
    assert decode_image(stored(palette, "PNG", transparency=b"\x00\xff")).tolist() == [[[255] * 3, [100, 0, 0]]]
    assert decode_image(stored(palette, "GIF", transparency=0))[0, 0].tolist() == [255] * 3
    grey = Image.fromarray(np.array([[5, 6]], np.uint8))
    assert decode_image(stored(grey, "PNG", transparency=6)).tolist() == [[[5] * 3, [255] * 3]]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode_image(stored(colour, "PNG", transparency=(1, 2, 3))).tolist() == [[[255] * 3]]


def test_one_bit() -> None:
    """Black and white."""
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode_image(stored(image, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    """Print colours: no ink is white, full cyan has no red, black ink is black."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    result = decode_image(stored(Image.fromarray(inks, "CMYK"), kind, **options))
    for x, wanted in ((4, (255, 255, 255)), (12, (0, 255, 255)), (20, (0, 0, 0))):
        assert np.abs(result[4, x].astype(int) - wanted).max() <= 4


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces(mode: str) -> None:
    """Grey is grey in each."""
    image = Image.new("RGB", (2, 2), (100, 100, 100))
    image = Image.new("LAB", (2, 2), (100, 128, 128)) if mode == "LAB" else image.convert(mode)
    result = to_rgb(image).astype(int)
    assert np.ptp(result) <= 12
    assert 80 <= result.mean() <= 120


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(kind: str) -> None:
    """65535 is white, half of it half, and a dark image stays dark."""
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    result = decode_image(stored(Image.fromarray(values), kind))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (result == result[..., :1]).all()
    dark = decode_image(stored(Image.fromarray(np.full((2, 2), 200, np.uint16)), kind))
    assert dark.max() == 1


def test_twelve_bits_in_sixteen_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the name of the first image; not for black images, for brighter ones, or for 8 bits."""
    monkeypatch.setattr(images, "_dark", [])
    for name, highest in (("black", 0), ("bright", 4096), ("first", 4095), ("second", 1000)):
        Image.fromarray(np.array([[0, highest]], np.uint16)).save(tmp_path / f"{name}.tif")
    Image.new("L", (4, 4), 9).save(tmp_path / "eight.png")
    for name in ("black.tif", "bright.tif", "eight.png"):
        read_image(tmp_path / name)
    assert capsys.readouterr().out == ""
    assert read_image(tmp_path / "first.tif").max() == 16
    read_image(tmp_path / "second.tif")
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'first.tif'} is read as 0 to 65535")
    assert "4095" in printed
    assert "--levels 0 4095" in printed
    assert printed.count("\n") == 1
    monkeypatch.setattr(images, "_dark", [])
    to_rgb(Image.fromarray(np.array([[0, 7]], np.uint16)))
    assert capsys.readouterr().out.startswith("an image is read as")


def test_sixteen_bit_colour() -> None:
    """An RGB PNG of 16 bits keeps the upper eight."""

    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decode_image(file).tolist() == [[[255, 128, 1]]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.5, 1.2], [0, 128, 255]),  # a highlight
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([-3.0, np.nan, 1.0], [0, 0, 255]),
        ([0.0, 1.0, np.inf], [0, 255, 255]),
    ],
)
def test_floating_point_images(values: list[float], wanted: list[int]) -> None:
    """White is 1, 255 or 65535, by the brightest value; NaN is black."""
    assert decode_image(tiff16(np.array([values], np.float32)))[0, :, 0].tolist() == wanted


def test_thirty_two_bits() -> None:
    """Whole numbers beyond 16 bits are clipped."""
    assert decode_image(tiff16(np.array([[0, 65535, 2**30, -5]], np.int32)))[0, :, 0].tolist() == [0, 255, 255, 0]


def test_the_first_frame_of_many() -> None:
    """An animation is its first image."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    for kind in ("GIF", "WEBP"):
        file = stored(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(decode_image(file)[0, 0].astype(int) - (200, 0, 0)).max() < 8


# ---- rotation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """All eight turns and mirrors."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: np.transpose, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = stored(Image.fromarray(np.ascontiguousarray(undo(upright))), "PNG", exif=exif)
    assert np.array_equal(decode_image(file)[..., 0], upright)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""]
)
def test_damaged_exif(exif: bytes) -> None:
    """The image is read without its EXIF data."""
    assert decode_image(stored(Image.fromarray(COLOUR), "JPEG", exif=exif)).shape == (16, 16, 3)


# ---- damage


def test_not_an_image(tmp_path: Path) -> None:
    """Each problem is named, with the file."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in (
        ("empty.jpg", "empty.jpg is empty"),
        ("text.png", "text.png is not an image of a known format"),
        ("folder.jpg", "folder.jpg is a folder"),
        ("missing.jpg", "no such image: .*missing.jpg"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"shard\.tar:7 is empty"):
        decode_image(b"", "shard.tar:7")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    """A file cut anywhere is an error, not half an image."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = stored(Image.fromarray(noise), kind)
    for share in (0.02, 0.3, 0.7):
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(file[: int(len(file) * share)])
        with pytest.raises(ImageError, match="cut"):
            read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_any_damage_is_an_image_error(kind: str) -> None:
    """Bytes changed at random: an image or ImageError, whatever the reader of the format raises."""
    rng = np.random.default_rng(1)
    file = stored(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), kind)
    outcomes = set()
    for trial in range(120):
        damaged = np.frombuffer(file, np.uint8).copy()
        area = slice(None, 60) if trial % 2 else slice(None)  # headers above all
        where = rng.integers(0, len(damaged[area]), 1 + trial % 8)
        damaged[area][where] = rng.integers(0, 256, len(where))
        try:
            result = decode_image(damaged.tobytes())
            outcomes.add("read")
            assert result.ndim == 3
            assert result.dtype == np.uint8
        except ImageError:
            outcomes.add("error")
    assert outcomes == ({"error"} if kind == "PNG" else {"read", "error"})  # PNG has checksums


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims or holds enormously many pixels is refused; a large one is read without a warning."""
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 60000, 60000, 8, 2, 0, 0, 0))
    header += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="pixels"):
        decode_image(header)
    with pytest.raises(ImageError, match="pixels"):
        decode_image(stored(Image.new("1", (15000, 15000)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(stored(Image.fromarray(COLOUR), "PNG")).shape == (16, 16, 3)  # 256 pixels: PIL would warn


# ---- smaller JPEG


@pytest.mark.parametrize(
    ("at_least", "wanted"), [(None, 800), (800, 800), (401, 800), (400, 400), (150, 200), (1, 100)]
)
def test_decoding_at_a_part_of_the_size(at_least: int | None, wanted: int) -> None:
    """The shorter side is at least as long as requested, and the content is the same."""
    x, y = np.meshgrid(np.linspace(0, 255, 1200), np.linspace(0, 255, 800))
    image = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))
    result = decode_image(stored(image, "JPEG", quality=95), at_least=at_least)
    assert result.shape == (wanted, wanted * 3 // 2, 3)
    back = np.asarray(Image.fromarray(result).resize((1200, 800)))
    assert np.abs(back.astype(int) - np.asarray(image)).mean() < 2
    assert decode_image(stored(image, "PNG"), at_least=at_least).shape == (800, 1200, 3)  # other formats are read whole


# ---- lists


def test_list_images(tmp_path: Path) -> None:
    """Folders within folders, sorted, by extension in any case; files as they are named; nothing is an error."""
    for name in ("b/2.JPG", "b/1.png", "a.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.webp", "b/1.png", "b/2.JPG"]
    assert list_images([tmp_path / "notes.txt", tmp_path / "b"])[0].name == "notes.txt"
    assert [p.name for p in list_images(tmp_path, without=tmp_path / "b")] == ["a.webp"]
    assert len(list_images(tmp_path, without=tmp_path)) == 3  # targets beside the images
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        list_images(tmp_path / "c")
    (tmp_path / "b/images").mkdir()  # a class that is called masks is of images, and targets beside images are not
    for name in ("b/masks/1.png", "b/panoptic/1.png", "b/panoptic_val/1.png", "b/images/1.png", "masks/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)][-3:] == [
        "b/2.JPG",
        "b/images/1.png",
        "masks/3.png",
    ]
    assert len(list_images(tmp_path / "b/masks")) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*none; looked for \.bmp"):
        list_images(str(tmp_path / "none"))
    assert ".jpg" in EXTENSIONS
    for name in ("a.btf", "b.svs"):
        tifffile.imwrite(tmp_path / "none" / name, np.zeros((8, 8, 3), np.uint8), photometric="rgb", bigtiff=True)
    assert [read_image(path).shape for path in list_images(tmp_path / "none")] == [(8, 8, 3)] * 2


@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        ((4, 20, 30), {"photometric": "minisblack"}, 4),
        ((20, 30, 4), {"photometric": "minisblack", "planarconfig": "contig"}, 4),
        ((2, 3, 20, 30), {"metadata": {"axes": "CZYX"}, "photometric": "minisblack"}, 6),
    ],
)
def test_a_tiff_of_other_channels_names_them(
    shape: tuple[int, ...], options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    """No page is read for the whole; opacity is no channel."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, np.uint16), **options)
    for read in (read_image, open_windows)[: 5 - len(shape)]:  # planes of two axes are read whole
        with pytest.raises(ImageError, match=rf"a.tif has {count} channels, expected 1 or 3 .*--channels {count}"):
            read(tmp_path / "a.tif")
    colours = np.full((20, 30, 4), 255, np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", colours, photometric="rgb", extrasamples=["unassalpha"])
    assert read_image(tmp_path / "b.tif").shape == (20, 30, 3)


def test_numbers_that_pil_does_not_read(tmp_path: Path) -> None:
    """Double precision is read as single precision, three pages as the windows of a large file."""
    values = np.linspace(0, 1, 600).reshape(20, 30)
    for kind in (np.float32, np.float64, np.float16):
        tifffile.imwrite(tmp_path / f"{np.dtype(kind)}.tif", values.astype(kind))
    expected = read_image(tmp_path / "float32.tif")
    assert np.array_equal(read_image(tmp_path / "float64.tif"), expected)
    assert np.abs(read_image(tmp_path / "float16.tif").astype(int) - expected).max() <= 1
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([255 * values] * 3).astype(np.uint8), photometric="minisblack")
    assert np.array_equal(open_windows(tmp_path / "pages.tif").read(0, 0, 20, 30), read_image(tmp_path / "pages.tif"))
