"""Sources of images: folders, lists, shards and scenes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data.image import ImageError
from dense.data.shards import ShardImages
from dense.data.store import Names, Remember
from dense.data.unlabelled import FolderImages, ListImages, SceneImages, open_images


def png(value: int) -> bytes:
    """An image of one value."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, value: int) -> None:
    """The same in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    """A tar file with named contents."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# ---- folders


def test_a_flat_folder(tmp_path: Path) -> None:
    """Sorted by name, without labels; other and hidden files are left out."""
    for number in (3, 1, 2):
        write(tmp_path / f"{number}.PNG", number)
    write(tmp_path / "._1.png", 0)
    (tmp_path / "notes.txt").touch()
    images = open_images(tmp_path)
    assert isinstance(images, FolderImages)
    assert len(images) == 3
    assert images.labels is None
    assert [int(images.read(i).max()) for i in range(3)] == [1, 2, 3]
    assert images.read(0).shape == (4, 5, 3)
    assert images.name(2) == str(tmp_path / "3.PNG")


def test_folders_are_classes(tmp_path: Path) -> None:
    """The first folder names the class, however deep an image lies; an image in the root has none."""
    for name in ("dog/a.png", "cat/deep/er/b.png", "cat/c.png", "zebra/d.png", "e.png"):
        write(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    images = FolderImages(str(tmp_path))
    assert images.classes == ("cat", "dog", "zebra")
    assert images.labels is not None
    by_name = {Path(images.name(i)).name[0]: int(images.labels[i]) for i in range(5)}
    assert by_name == {"a": 1, "b": 0, "c": 0, "d": 2, "e": -1}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """A data set made of links works; a link to a folder above ends."""
    write(tmp_path / "elsewhere/a.png", 1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "nowhere.png")
    images = FolderImages(root)
    assert [Path(images.name(i)).name for i in range(len(images))] == ["broken.png", "a.png"]
    with pytest.raises(ImageError, match="no such image"):
        images.read(0)


def test_wrong_folders(tmp_path: Path) -> None:
    """Missing, empty, or an image instead of a folder."""
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a folder of images"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "within").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*looked there and in the folders within"):
        open_images(tmp_path)
    write(tmp_path / "one.png", 1)
    with pytest.raises(ValueError, match=r"one\.png is one image"):
        open_images(tmp_path / "one.png")


def test_odd_names(tmp_path: Path) -> None:
    """Spaces, other alphabets, and bytes that are no UTF-8."""
    for name in ("a b.png", "Füße 犬.png"):
        write(tmp_path / name, 7)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")).write_bytes(png(7))
    images = FolderImages(tmp_path)
    assert len(images) == 3
    assert all(images.read(i).max() == 7 for i in range(3))


# ---- lists


def test_a_list(tmp_path: Path) -> None:
    """Paths relative to the list, absolute ones as they are, labels behind a tab; blank lines do not count."""
    write(tmp_path / "in/a b.png", 1)
    write(tmp_path / "c.png", 2)
    (tmp_path / "list.txt").write_text(f"in/a b.png\t4\n\n{tmp_path}/c.png\r\nmissing.png\t0")
    images = open_images(str(tmp_path / "list.txt"))
    assert isinstance(images, ListImages)
    assert [int(images.read(i).max()) for i in range(2)] == [1, 2]
    assert images.labels is not None
    assert images.labels.tolist() == [4, -1, 0]
    with pytest.raises(ImageError, match="no such image"):
        images.read(2)
    (tmp_path / "list.txt").write_text("c.png\n")
    assert open_images(tmp_path / "list.txt").labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("x.png\ny.png\n", r"none of its first 2 images exists, for instance .*x.png; paths are relative"),
        ("c.png\tcat\n", r"line 1: label 'cat' is not a whole number"),
    ],
)
def test_wrong_lists(text: str, message: str, tmp_path: Path) -> None:
    """Each with its own message."""
    write(tmp_path / "c.png", 1)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_images(tmp_path / "list.txt")


# ---- shards


def test_shards(tmp_path: Path) -> None:
    """Images in their order, labels from .cls files on either side of them, other members ignored."""
    bomb = pickle.dumps(os.getcwd)
    tar(tmp_path / "s-0.tar", ("a/1.cls", b"5\n"), ("a/1.png", png(1)), ("a/1.pkl", bomb), ("b/1.PNG", png(2)))
    tar(tmp_path / "s-1.tar", ("2.png", png(3)), ("2.seg.png", png(9)), ("2.cls", b"6"), ("3.json", b"{}"))
    for source in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{0..1}.tar"):
        images = open_images(source)
        assert isinstance(images, ShardImages)
        assert [int(images.read(i).max()) for i in (2, 0, 1)] == [3, 1, 2]
        assert images.labels is not None
        assert images.labels.tolist() == [5, -1, 6]
    assert images.name(2) == f"{tmp_path}/s-1.tar:2.png"
    assert len(open_images(tmp_path / "s-1.tar")) == 1
    assert open_images(tar(tmp_path / "plain.tar", ("1.png", png(1)))).labels is None


def test_long_names_and_many_members(tmp_path: Path) -> None:
    """Offsets are right where headers take several blocks."""
    names = [f"{'long/' * 30}{i:04d}.png" for i in range(300)]
    images = open_images(tar(tmp_path / "x.tar", *((name, png(i % 256)) for i, name in enumerate(names))))
    assert len(images) == 300
    assert all(images.read(i).max() == i % 256 for i in (299, 0, 150))
    assert images.name(299).endswith(names[299])


def test_damaged_shards(tmp_path: Path) -> None:
    """A truncated shard gives its complete images; other and compressed files raise an error with the reason."""
    whole = tar(tmp_path / "x.tar", ("1.png", png(1)), ("2.png", b"not an image"), ("3.png", png(3)))
    images = open_images(whole)
    with pytest.raises(ImageError, match=r"x\.tar:2\.png is not an image"):
        images.read(1)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: 512 * 5 + 40])
    with pytest.warns(UserWarning, match=r"cut\.tar is damaged or truncated"):
        cut = open_images(tmp_path / "cut.tar")
    assert cut.read(0).max() == 1
    tar(tmp_path / "packed.tar", ("1.png", png(1)), mode="w:gz")
    (tmp_path / "text.tar").write_text("no tar file" * 100)
    for name in ("packed.tar", "text.tar"):
        with pytest.raises(ValueError, match=f"{name} is not an uncompressed tar file"):
            open_images(tmp_path / name)
    (tmp_path / "nothing.tar").touch()
    with pytest.raises((FileNotFoundError, ValueError)):
        open_images(tmp_path / "nothing.tar")
    with pytest.raises(FileNotFoundError, match=r"1 of the tar files .*absent"):
        open_images(tmp_path / "{x,absent}.tar")
    with pytest.raises(FileNotFoundError, match=r"no images in the 1 tar file.*0001\.jpg"):
        open_images(tar(tmp_path / "other.tar", ("1.json", b"{}")))
    with pytest.raises(ValueError, match=r"bad\.tar:1\.cls holds b'cat', expected a whole number"):
        open_images(tar(tmp_path / "bad.tar", ("1.png", png(1)), ("1.cls", b"cat")))


def test_a_shard_that_vanishes(tmp_path: Path) -> None:
    """Its images raise ImageError."""
    path = tar(tmp_path / "x.tar", ("1.png", png(1)))
    images = open_images(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"x\.tar:1\.png cannot be read"):
        images.read(0)


# ---- scenes


def test_scenes() -> None:
    """Embedded images by split, length and size, with labels."""
    images = open_images("scenes:val", length=6, size=32, seed=3)
    assert isinstance(images, SceneImages)
    assert len(images) == 6
    assert images.read(5).shape == (32, 32, 3)
    assert not np.array_equal(images.read(0), images.read(1))
    assert images.labels is not None
    assert images.labels.shape == (6,)
    assert "scenes:val" in images.name(0)
    with pytest.raises(ValueError, match="split is 'trian'"):
        open_images("scenes:trian")


def test_remembered_scenes() -> None:
    """The same images; the second time without rendering."""
    plain, kept = (open_images("scenes:train", length=4, size=24, remember=r) for r in (False, True))
    assert isinstance(kept, SceneImages)
    first = kept.read(2).copy()
    assert np.array_equal(first, plain.read(2))
    kept.scenes.seed = 9
    assert np.array_equal(kept.read(2), first)
    assert not np.array_equal(kept.read(1), plain.read(1))
    assert np.array_equal(pickle.loads(pickle.dumps(plain)).read(2), first)


def _fill(memory: Remember) -> None:
    memory.get(1, lambda: np.full((3,), 7, np.uint8))


def test_memory_is_shared_by_forked_processes() -> None:
    """An array that a worker computed is there for the others."""
    memory = Remember(4, (3,))
    process = multiprocessing.get_context("fork").Process(target=_fill, args=(memory,))
    process.start()
    process.join()
    assert memory.get(1, lambda: np.zeros(3, np.uint8)).tolist() == [7, 7, 7]
    assert memory.get(2, lambda: np.ones(3, np.uint8)).tolist() == [1, 1, 1]
    assert pickle.loads(pickle.dumps(memory)).get(1, lambda: np.zeros(3, np.uint8)).tolist() == [0, 0, 0]


# ---- memory


def test_names_take_no_more_than_their_bytes() -> None:
    """A hundred thousand names: no object each, neither in memory nor when sent to a worker, nor after use."""
    wanted = [f"train/n{i % 1000:08d}/n{i:012d}.JPEG" for i in range(100_000)]
    size = sum(map(len, wanted))
    tracemalloc.start()
    names = Names(wanted)
    held, _ = tracemalloc.get_traced_memory()
    assert held < 1.05 * (size + 8 * len(wanted))
    assert all(names[i] == wanted[i] for i in range(0, 100_000, 7))
    assert tracemalloc.get_traced_memory()[0] < held + 10_000
    tracemalloc.stop()
    assert len(pickle.dumps(names)) < 1.05 * (size + 8 * len(wanted))
    assert names[-1] == wanted[-1]
    assert names[3:6] == wanted[3:6]
    with pytest.raises(IndexError):
        names[100_000]
    assert not Names([])


def test_sources_hold_no_lists(tmp_path: Path) -> None:
    """Workers get arrays: there are no long lists among the attributes."""
    for i in range(300):
        write(tmp_path / f"{i % 3}/{i}.png", 1)
    for source in (tmp_path, tar(tmp_path / "x.tar", *((f"{i}.png", b"") for i in range(300)))):
        images = FolderImages(source) if source.is_dir() else open_images(source)
        for name, value in vars(images).items():
            assert not isinstance(value, list | dict | set), name
            assert not isinstance(value, tuple) or len(value) <= 3, name
