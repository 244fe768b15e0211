"""Windows of large files equal crops of the whole image, for prediction and for training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dense.data import large
from dense.data.image import ImageError, read_image
from dense.data.labelled import open_labelled
from dense.data.labelled.sample import DataError
from dense.data.labelled.segments import encode
from dense.data.large import NotWindowed, is_empty, open_large, open_windows
from dense.data.levels import Reading
from dense.data.unlabelled import open_images
from dense.data.windows import Targets, WindowImages, WindowSource, random_window
from dense.model.inference import slide
from dense.tasks.data import DenseData
from tests.data.scientific_files import labelled

tifffile = pytest.importorskip("tifffile")
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (150, 230, 3), dtype=np.uint8)
TILES: dict[str, Any] = {"tile": (64, 32), "compression": "zlib"}


def tiff(path: Path, values: Any = PIXELS, **options: Any) -> Path:
    """Write an image in tiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values.ndim == 3 and values.shape[-1] == 3:
        options = {"photometric": "rgb"} | options
    tifffile.imwrite(path, values, **(options or TILES))
    return path


def check_windows(path: Path, whole: np.ndarray, reading: Reading | None = None) -> None:
    """Compare random windows, and slices of the tensor and of its transpose, with crops."""
    windows = open_windows(path, *([reading] if reading else []))
    assert windows.shape == whole.shape
    random = np.random.default_rng(1)
    for _ in range(12):
        tall, wide = (int(n) for n in random.integers(1, 100, 2))
        top, left = int(random.integers(0, 150 - tall + 1)), int(random.integers(0, 230 - wide + 1))
        crop = whole[top : top + tall, left : left + wide]
        assert np.array_equal(windows.read(top, left, tall, wide), crop)
        rows, columns = slice(top, top + tall), slice(left, left + wide)
        assert np.array_equal(windows.pixels()[:, rows, columns].permute(1, 2, 0), crop)
        assert np.array_equal(windows.pixels().mT[:, columns, rows].permute(2, 1, 0), crop)


@pytest.mark.parametrize(
    "options",
    [
        {},  # one strip that is not compressed, by memory map
        {"rowsperstrip": 7, "compression": "zlib"},
        {"tile": (16, 64)},
        TILES,
        {**TILES, "predictor": True},
        {**TILES, "bigtiff": True, "byteorder": ">"},
    ],
)
def test_windows_of_photographs(options: dict[str, Any], tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", **options)
    check_windows(path, PIXELS)
    if "bigtiff" not in options:  # PIL reads no BigTIFF of this byte order
        assert np.array_equal(read_image(path), PIXELS)


def test_windows_of_numbers(tmp_path: Path) -> None:
    """Pages, planes, arrays and files of one channel each, of 16 bits and floating point, by declared levels."""
    values = RANDOM.integers(0, 4096, (150, 230, 4), dtype=np.uint16)
    reading = Reading.of([0, 4095], ["a", "b", "c", "d"])
    planes = np.moveaxis(values, 2, 0)
    files = {
        "pages": tiff(tmp_path / "pages.tif", planes, photometric="minisblack", **TILES),
        "planes": tiff(tmp_path / "p.tif", planes, photometric="minisblack", planarconfig="separate", **TILES),
        "samples": tiff(tmp_path / "s.tif", values, photometric="minisblack", planarconfig="contig", **TILES),
    }
    for name, array in (("rows", values), ("channels", planes), ("float", values.astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
        files[name] = tmp_path / f"{name}.npy"
    for number, channel in enumerate("abcd"):
        files["each"] = tiff(tmp_path / f"each_{channel}.tif", planes[number], photometric="minisblack", **TILES)
    expected = reading.to_bytes(values)
    for path in files.values():
        assert np.array_equal(read_image(path, reading=reading), expected), path
        check_windows(path, expected, reading)


def test_windows_of_a_palette_grey_and_alpha(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 256, (3, 256), dtype=np.uint16) * 257
    alpha = np.dstack([PIXELS, RANDOM.integers(0, 256, (150, 230), dtype=np.uint8)])
    for path in (
        tiff(tmp_path / "palette.tif", PIXELS[..., 0], photometric="palette", colormap=colours, **TILES),
        tiff(tmp_path / "grey.tif", PIXELS[..., 0], photometric="minisblack", **TILES),
        tiff(tmp_path / "deep.tif", PIXELS[..., 0].astype(np.uint16) * 200, photometric="minisblack", **TILES),
        tiff(tmp_path / "alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"], **TILES),
    ):
        check_windows(path, read_image(path))


def test_a_pyramid_is_read_at_its_full_size(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(PIXELS, subifds=1, photometric="rgb", **TILES)
        file.write(PIXELS[::2, ::2], subfiletype=1, photometric="rgb", **TILES)
    check_windows(path, PIXELS)


def test_levels_of_the_image_come_from_windows_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All windows have the same levels; those of a whole image, where the sample is all of it."""
    values = RANDOM.uniform(-3, 40, (150, 230, 1)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    reading = Reading.of("per_image", ["a"])
    monkeypatch.setattr(large, "SAMPLE", 230)
    monkeypatch.setattr(large, "SAMPLES", 1)
    check_windows(tmp_path / "a.npy", read_image(tmp_path / "a.npy", reading=reading), reading)
    np.save(tmp_path / "b.npy", np.abs(values) / 43)
    check_windows(tmp_path / "b.npy", read_image(tmp_path / "b.npy"))


def damage(path: Path, tile: int) -> None:
    """Overwrite the middle of a tile."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[offset + count // 3 : offset + count // 2] = bytes(count // 2 - count // 3)
    path.write_bytes(data)


def test_a_damaged_tile_is_masked_and_listed(tmp_path: Path) -> None:
    """Nothing else is lost; so it is with a file that ends too early."""
    path = tiff(tmp_path / "a.tif", **TILES, maxworkers=1)
    damage(path, 10)  # row 1, column 2 of 3 x 8 tiles
    windows = open_windows(path)
    found = windows.read(0, 0, 150, 230)
    expected = PIXELS.copy()
    expected[64:128, 64:96] = large.FILL
    assert np.array_equal(found, expected)
    assert windows.damaged == [(64, 64, 64, 32)]
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 10])
    windows = open_windows(path)
    assert np.array_equal(windows.read(128, 0, 22, 224), expected[128:, :224])
    windows.read(140, 200, 10, 30)
    assert windows.damaged == [(128, 224, 22, 6)]


def leave_out(path: Path, tile: int) -> None:
    """Make a tile one that is not stored, as in sparse files of GDAL."""
    with tifffile.TiffFile(path, mode="r+") as file:
        page: Any = file.pages[0]
        for name in ("TileOffsets", "TileByteCounts"):
            numbers = list(page.tags[name].value)
            numbers[tile] = 0
            page.tags[name].overwrite(numbers)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tile_that_is_not_stored_is_unknown(compression: str | None, tmp_path: Path) -> None:
    """It has the number that GDAL's tag names, in images and targets, in windows and whole."""
    labelled(tmp_path, 1, 1)
    files = {"images/cell0.tif": np.uint16, "masks/cell0.tif": np.uint8, "depth/cell0.tif": np.float32}
    (tmp_path / "masks/cell0.png").unlink()
    (tmp_path / "depth.yaml").write_text("kind: metric\n")
    for name, kind in files.items():
        options = {"extratags": [(42113, 2, 0, "9", True)], "compression": compression, "tile": (16, 16)}
        tiff(tmp_path / name, np.ones((48, 64), kind), photometric="minisblack", **options)
        leave_out(tmp_path / name, 0)
    reading = Reading.of([0, 2], ["a"])
    unknown = open_windows(tmp_path / "images/cell0.tif", reading).numbers()[:48, :64, 0]
    assert np.isnan(unknown[:16, :16]).all() and np.isnan(unknown).sum() == 256
    source = open_labelled(tmp_path, "all", reading=reading)
    samples = (source.read(0), WindowSource(source, 1, (64, 64)).read(0))  # type: ignore[arg-type]
    for sample in samples:
        assert sample.labels is not None and sample.depth is not None
        assert not sample.image[:16, :16].any() and (sample.image > 0).sum() == 48 * 64 - 256
        assert (sample.labels[:16, :16] == 255).all() and (sample.labels == 255).sum() == 256
        assert np.isnan(sample.depth[:16, :16]).all() and np.isnan(sample.depth).sum() == 256


def test_pages_of_photographs_are_read_as_in_a_whole_image(tmp_path: Path) -> None:
    """Three are colours, another number is refused; planes without pages of their own are read whole."""
    planes = np.moveaxis(PIXELS, 2, 0)
    check_windows(tiff(tmp_path / "a.tif", planes, photometric="minisblack", **TILES), PIXELS)
    assert np.array_equal(read_image(tmp_path / "a.tif"), PIXELS)
    tiff(tmp_path / "b.tif", np.concatenate([planes] * 2), photometric="minisblack", **TILES)
    for read in (read_image, open_windows):
        with pytest.raises(ImageError, match=r"b\.tif has 6 channels, expected 1 or 3 of a photograph"):
            read(tmp_path / "b.tif")
    with pytest.raises(NotWindowed, match="no pages of their own"):
        open_large(tiff(tmp_path / "c.tif", planes, photometric="minisblack", truncate=True))


def test_what_is_read_whole_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    tiff(tmp_path / "strip.tif", compression="zlib", rowsperstrip=150)
    tiff(tmp_path / "turned.tif", **TILES, extratags=[(274, 3, 1, 6, True)])
    tiff(tmp_path / "stack.tif", np.stack([PIXELS] * 2), photometric="rgb", **TILES)
    monkeypatch.setattr(large, "CHUNK", 1000)
    for name, words in (
        ("a.png", "only TIFF and .npy"),
        ("strip.tif", r"one piece of 150x230 pixels; write it in tiles"),
        ("turned.tif", "orientation 6"),
        ("stack.tif", "besides rows and columns"),
    ):
        with pytest.raises(NotWindowed, match=words):
            open_large(tmp_path / name)
    (tmp_path / "bad.tif").write_bytes(b"II*\0 nothing")
    whole = tiff(tmp_path / "short.tif", photometric="rgb").read_bytes()
    (tmp_path / "short.tif").write_bytes(whole[:9000])
    np.save(tmp_path / "c.npy", np.zeros((8, 8), complex))
    known = {
        "short.tif": "truncated",
        "bad.tif": "damaged or truncated",
        "none.tif": "no such image",
        "c.npy": "holds complex128, expected",
    }
    for name, words in known.items():
        with pytest.raises(ImageError, match=words):
            open_large(tmp_path / name)


def test_few_tiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "CACHED", 30_000)
    image = open_large(tiff(tmp_path / "a.tif", **TILES))
    image.read(0, 0, 150, 230)
    assert 1 <= len(image._cache) <= 5


def test_shrinking_is_by_area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one level of OpenCV, and in bands."""
    windows = open_windows(tiff(tmp_path / "a.tif", **TILES))
    for band in (large.BAND, 3000):
        monkeypatch.setattr(large, "BAND", band)
        found, expected = windows.shrunk((37, 71)), cv2.resize(PIXELS, (71, 37), interpolation=cv2.INTER_AREA)
        assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(150, 230), (230, 150)])
def test_sliding_reads_windows(shape: tuple[int, int], tmp_path: Path) -> None:
    """One code path gives the same for the file and the tensor, tall and wide."""
    pixels = np.ascontiguousarray(PIXELS if shape == PIXELS.shape[:2] else PIXELS.swapaxes(0, 1))
    windows = open_windows(tiff(tmp_path / "a.tif", pixels, **TILES))
    network: Callable[[torch.Tensor], Any] = lambda images: {"sum": images.float().cumsum(-1).cumsum(-2)[:, :2]}  # noqa: E731
    results = []
    for image in (torch.from_numpy(pixels).permute(2, 0, 1), windows.pixels()):
        whole = torch.zeros(2, *shape)

        def finish(name: str, block: torch.Tensor, top: int, left: int, whole: torch.Tensor = whole) -> None:
            whole[:, top : top + block.shape[1], left : left + block.shape[2]] = block

        slide(network, image, 48, 40, finish, batch=2)
        results.append(whole)
    assert torch.equal(*results)


# ---- windows to train on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images that show something in a quarter, with masks and depth whose numbers tell where a pixel is."""
    places = np.arange(200 * 160, dtype=np.float32).reshape(200, 160) + 1
    for number in range(4):
        image = np.full((200, 160, 3), 230, np.uint8)
        image[100:, 80:] = np.random.default_rng(number).integers(0, 256, (100, 80, 3))
        mask = np.zeros((200, 160), np.uint8)
        mask[100:, 80:] = 1
        form = TILES if number % 2 else {"rowsperstrip": 16, "compression": "zlib"}
        tiff(tmp_path / f"images/{number}.tif", image, **form)
        if number < 3:
            tiff(tmp_path / f"masks/{number}.tif", mask, photometric="minisblack", **TILES)
        else:
            Image.fromarray(mask).save(tmp_path / f"masks/{number}.png")
        (tmp_path / "depth").mkdir(exist_ok=True)
        np.save(tmp_path / f"depth/{number}.npy", places)
    (tmp_path / "classes.yaml").write_text("classes: [back, thing]\n")
    (tmp_path / "depth.yaml").write_text("kind: inverse_relative\n")
    return tmp_path


def test_labelled_windows_are_crops(folder: Path) -> None:
    """Image, mask and depth alike, never empty, others in each epoch, the same for the same numbers."""
    source = open_labelled(folder, "train", val_ratio=0.0)
    windows = WindowSource(source, 5, (32, 48), seed=1)  # type: ignore[arg-type]
    assert len(windows) == 20
    assert windows.classes == ("back", "thing")
    assert len({windows.identity(index) for index in range(20)}) == 20
    places = set()
    for index in range(20):
        whole = source.read(index // 5)
        for epoch in (0, 1):
            found, again = windows.read(index, epoch), windows.read(index, epoch)
            assert found.depth is not None and found.labels is not None and whole.labels is not None
            top, left = divmod(int(found.depth[0, 0]) - 1, 160)
            places.add((index // 5, top, left))
            part = slice(top, top + 32), slice(left, left + 48)
            assert np.array_equal(found.image, whole.image[part])
            assert np.array_equal(found.labels, whole.labels[part])
            assert found.labels.any()
            assert np.array_equal(found.image, again.image)
            assert found.name == whole.name
    assert len(places) > 30


def test_a_damaged_tile_has_no_labels(folder: Path) -> None:
    damage(folder / "images/1.tif", 17)  # row 3, column 2 of 4 x 5 tiles
    source = open_labelled(folder, "train", val_ratio=0.0)
    found = WindowSource(source, 1, (400, 400)).read(1)  # type: ignore[arg-type]
    assert found.labels is not None and found.depth is not None
    assert (found.labels[192:, 64:96] == 255).all() and (found.labels == 255).sum() == 8 * 32
    assert np.isnan(found.depth).sum() == 8 * 32


def test_damaged_tiles_of_a_run_are_listed_once(folder: Path, tmp_path: Path) -> None:
    """Each tile of an image or a target, by whichever process, with unknown targets there; none before a run begins."""
    damage(folder / "images/1.tif", 17)
    damage(folder / "masks/0.tif", 3)
    source = open_labelled(folder, "train", val_ratio=0.0)
    sources = [WindowSource(source, 2, (400, 400)) for _ in range(2)]  # type: ignore[arg-type]
    labels = sources[0].read(0).labels
    assert labels is not None and (labels == 255).sum() == 64 * 32
    assert not sources[0].damaged.report()
    (tmp_path / "tiles").write_text("of an earlier run\n")
    for number, one in enumerate(sources):
        one.damaged.begin(tmp_path / "tiles", empty=not number)
        for index in range(8):
            one.read(index)
    expected = f"2 damaged tiles, whose pixels were masked, in 2 files: {folder}/images/1.tif, {folder}/masks/0.tif; "
    assert sources[0].damaged.report() == f"{expected}{tmp_path}/tiles lists their places"
    assert {tuple(json.loads(line)[1:]) for line in (tmp_path / "tiles").read_text().splitlines()} == {
        (192, 64, 8, 32), (0, 96, 64, 32)
    }  # fmt: skip


def in_json(root: Path, numbers: np.ndarray) -> None:
    """Write the objects of a map of numbers as COCO's run-length codes, and one polygon beside the first of them."""
    root.mkdir(exist_ok=True)
    objects = [encode(numbers == n) for n in np.unique(numbers)[1:]]
    ring = [[float(x) for point in ((70.3, 90.1), (97.9, 120.4), (60.2, 141.7)) for x in point]]
    rows = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1], "segmentation": one}
        for n, one in enumerate([*objects, ring], 1)
    ]
    image = {"id": 1, "file_name": "0.tif", "height": 200, "width": 160}
    categories = [{"id": 1, "name": "thing", "isthing": 1}]
    text = json.dumps({"images": [image], "annotations": rows, "categories": categories})
    (root / "instances.json").write_text(text)


@pytest.mark.parametrize("form", ["json", "tiff", "png"])
def test_objects_in_windows_are_crops(form: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of a whole image are never made where a JSON file or a tiled map holds the objects."""
    numbers = np.zeros((200, 160), np.uint16)
    for number, (top, left) in enumerate(((100, 80), (130, 90), (160, 120), (105, 140)), 1):
        numbers[top : top + 20, left : left + 17] = number
    for kept in ("images", "masks"):
        for path in (folder / kept).glob("[123].*"):
            path.unlink()
    shutil.rmtree(folder / "depth")
    (folder / "depth.yaml").unlink()
    if form == "json":
        shutil.rmtree(folder / "masks")
        (folder / "classes.yaml").unlink()
        in_json(folder, numbers)
    else:
        (folder / "classes.yaml").write_text("classes: [back, thing]\nthings: [thing]\n")
        (folder / "instances").mkdir()
        if form == "tiff":
            tiff(folder / "instances/0.tif", numbers, photometric="minisblack", **TILES)
        else:
            Image.fromarray(numbers).save(folder / "instances/0.png")
    source = open_labelled(folder, "all", targets=("masks",))
    whole = source.read(0).segments
    assert whole is not None and len(whole.masks) >= 5
    if form == "tiff":
        monkeypatch.setattr("dense.data.labelled.segments.read_mask", None)
        monkeypatch.setattr("dense.data.windows.read_mask", None)
    for index in range(12):
        targets = Targets(source, 0)  # type: ignore[arg-type]
        box, pixels = random_window(targets.path, targets.windows, (40, 56), (index,))
        top, left, tall, wide = box
        found = targets.read(box, pixels).segments
        masks = whole.masks[:, top : top + tall, left : left + wide]
        seen = masks.flatten(1).any(1)
        assert found is not None and torch.equal(found.masks, masks[seen])
        assert torch.equal(found.classes, whole.classes[seen]) and torch.equal(found.crowd, whole.crowd[seen])


def test_damage_is_known_of_other_channels(folder: Path) -> None:
    """Also where the number of channels decides how a file is opened."""
    (folder / "images/0.tif").unlink()
    values = np.random.default_rng(0).integers(0, 256, (200, 160, 2), dtype=np.uint8)
    path = tiff(folder / "images/0.tif", values, photometric="minisblack", planarconfig="contig", **TILES)
    damage(path, 0)
    for other in "123":
        next((folder / "images").glob(f"{other}.*")).unlink()
    source = open_labelled(folder, "train", val_ratio=0.0, reading=Reading.of(None, 2), targets=("labels",))
    found = WindowSource(source, 1, (400, 400)).read(0).labels  # type: ignore[arg-type]
    assert found is not None and (found == 255).sum() == 64 * 32


def test_problems_of_windows_are_found_before_training(folder: Path) -> None:
    tiff(folder / "masks/2.tif", np.zeros((64, 64), np.uint8), photometric="minisblack")
    (folder / "images/0.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"(?s)0.tif is damaged.*masks/2.tif has 64x64 pixels"):
        DenseData(str(folder), crop_size=32, windows=3, val_ratio=0.0)
    with pytest.raises(ValueError, match=r"data.windows needs data.crop_size"):
        DenseData(str(folder), windows=3)
    with pytest.raises(ValueError, match=r"data.windows=0: expected at least 1"):
        DenseData(str(folder), crop_size=32, windows=0)
    with pytest.raises(ValueError, match=r"data.resize=64 with data.windows=3: windows keep their pixels"):
        DenseData(str(folder), crop_size=32, windows=3, resize=64)


def test_unlabelled_windows(folder: Path) -> None:
    images = WindowImages(open_images(folder / "images"), 4, (40, 40), seed=2)
    assert len(images) == 16
    assert images.read(5).shape == (40, 40, 3)
    assert np.array_equal(images.read(5, 3), images.read(5, 3))
    assert not np.array_equal(images.read(5, 3), images.read(5, 4))
    assert not any(is_empty(images.read(index)) for index in range(16))


def test_background_is_empty() -> None:
    """Even with noise; a hundredth of other pixels is not."""
    window = np.full((100, 100, 3), 230, np.uint8)
    window += np.random.default_rng(0).integers(0, 8, window.shape, dtype=np.uint8)
    assert is_empty(window)
    window[0, :99] = 0
    assert is_empty(window)
    window[0] = 0
    window[1, 0] = 0
    assert not is_empty(window)
