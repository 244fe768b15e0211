"""Layouts of image retrieval: database, queries, and which images of the database each query should find."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dense.data.image import ImageError, list_images, read_image, what_is_there
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.unlabelled import FolderImages
from dense.suggest import did_you_mean

Indices = NDArray[np.int64]


class Item(NamedTuple):
    """An image, or the box of it that is compared."""

    path: str
    box: tuple[float, ...] | None = None  # left, top, right, bottom
    reading: Reading = PHOTOGRAPHS

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels (H, W, C), or raise ImageError."""
        image = read_image(self.path, reading=self.reading)
        if self.box is None:
            return image
        left, top, right, bottom = (max(round(side), 0) for side in self.box)
        if not (cropped := image[top:bottom, left:right]).size:
            size = f"{image.shape[0]}x{image.shape[1]}"
            raise ImageError(f"{self.path}: the box {self.box} holds no pixel of the image, {size}")
        return cropped


@dataclass(frozen=True)
class RetrievalSet:
    """What is searched, and by what.

    Args:
        truth: (level, query) -> places in the database that are positive, and those that are ignored; a place in both
            is ignored.
        levels: of difficulty, each with its own truth; "" where there is one.
        trapezoids: whether the published scores integrate precision by trapezoids.
        classes: their number, in a folder of classes.
    """

    source: str
    database: tuple[Item, ...]
    queries: tuple[Item, ...]
    truth: Callable[[str, int], tuple[Indices, Indices]]
    levels: tuple[str, ...] = ("",)
    trapezoids: bool = True
    classes: int = 0


def open_retrieval(
    root: str | Path,
    layout: str = "folder",
    *,
    query_crop: bool = True,
    distractors: str | Path | None = None,
    reading: Reading = PHOTOGRAPHS,
) -> RetrievalSet:
    """Open images in one of `LAYOUTS`; distractors: a folder of images that join the database and match no query."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of images: {root}")
    if layout.startswith("r"):
        opened = _landmarks(root, layout, query_crop)
    else:
        opened = (_folder if layout == "folder" else _copies)(root, reading)
    if distractors is None:
        return opened
    more = other_images(distractors, opened, "a distractor")
    return replace(opened, database=opened.database + more)


def other_images(folder: str | Path, opened: RetrievalSet, what: str) -> tuple[Item, ...]:
    """Return the images of a folder, none of which is in the database or a query."""
    items = _listed(Path(folder), opened.database[0].reading)
    known = {Path(item.path).resolve() for item in (*opened.database, *opened.queries)}
    if shared := [item.path for item in items if Path(item.path).resolve() in known]:
        raise ValueError(
            f"{len(shared)} images of {folder} are also measured, such as {shared[0]}; {what} must be another image"
        )
    return items


def _listed(folder: Path, reading: Reading) -> tuple[Item, ...]:
    return tuple(Item(str(path), None, reading) for path in list_images(folder, reading=reading))


def _folder(root: Path, reading: Reading) -> RetrievalSet:
    parts = [part for part in ("query", "gallery") if (root / part).is_dir()]
    if len(parts) == 1:
        raise FileNotFoundError(f"{root} has {parts[0]}/ alone; expected query/ and gallery/, or one folder per class")
    opened = [FolderImages(root / part, reading=reading) for part in parts[::-1] or [""]]
    items = [tuple(Item(source.name(i), None, reading) for i in range(len(source))) for source in opened]
    names = []
    for source in opened:
        if source.labels is None:
            raise ValueError(f"the images of {source.root} have no classes; expected {source.root}/CLASS/image.jpg")
        names.append(np.array([source.classes[i] if i >= 0 else "" for i in source.labels]))
    if len(classes := set(names[0]) - {""}) < 2:
        raise ValueError(f"{opened[0].root} has a single class, {', '.join(classes)}; expected two or more")
    truth = partial(_same_class, names[0], names[-1], not parts)
    return RetrievalSet(str(root), items[0], items[-1], truth, trapezoids=False, classes=len(classes))


def _same_class(
    database: NDArray[Any], queries: NDArray[Any], itself: bool, _: str, query: int
) -> tuple[Indices, Indices]:
    """`itself`: the query is part of the database, and ignored there."""
    same = np.flatnonzero(database == queries[query]) if queries[query] else np.zeros(0, np.int64)
    return same, np.array([query] if itself else [], np.int64)


def _copies(root: Path, reading: Reading) -> RetrievalSet:
    if missing := [part for part in ("original", "strong") if not (root / part).is_dir()]:
        raise FileNotFoundError(f"{root} lacks {missing[0]}/; expected original/ and strong/. {what_is_there(root)}")
    database, queries = (_listed(root / part, reading) for part in ("original", "strong"))
    originals, copies = (np.array([Path(item.path).stem[:-2] for item in items]) for items in (database, queries))
    return RetrievalSet(str(root), database, queries, partial(_same_class, originals, copies, False))


RULES = {  # level -> lists of the ground truth that are positive, and that are ignored
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def _landmarks(root: Path, layout: str, query_crop: bool) -> RetrievalSet:
    path = root / f"gnd_{layout}.pkl"
    if not path.is_file():
        raise FileNotFoundError(f"no ground truth {path}; expected the published file. {what_is_there(root)}")
    found = read_plain_pickle(path)
    try:
        names, asked, entries = ([*found[key]] for key in ("imlist", "qimlist", "gnd"))
        lists = [{key: np.array(entry[key], np.int64) for key in ("easy", "hard", "junk")} for entry in entries]
        boxes = [tuple(map(float, entry["bbx"])) for entry in entries]
        if len(asked) != len(entries) or any(len(box) != 4 for box in boxes):
            raise ValueError(f"{len(asked)} queries and {len(entries)} entries, of which each needs a box of 4 numbers")
        if out := [v for lst in lists for part in lst.values() for v in part if not 0 <= v < len(names)]:
            raise ValueError(f"index {out[0]}, where imlist has {len(names)} images")
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is no ground truth of the revisited Oxford or Paris ({type(error).__name__}: {error}); expected "
            "imlist, qimlist and, in gnd, bbx, easy, hard and junk for each query"
        ) from error
    there = {p.name for p in (root / "jpg").iterdir()} if (root / "jpg").is_dir() else set()
    if absent := [name for name in (*names, *asked) if f"{name}.jpg" not in there]:
        raise FileNotFoundError(
            f"{root / 'jpg'} lacks {len(absent)} of the {len(names) + len(asked)} images that {path.name} lists, "
            f"such as {absent[0]}.jpg"
        )

    def truth(level: str, query: int) -> tuple[Indices, Indices]:
        positive, ignored = (np.concatenate([lists[query][key] for key in keys]) for keys in RULES[level])
        return positive, ignored

    database = tuple(Item(str(root / "jpg" / f"{name}.jpg")) for name in names)
    queries = tuple(
        Item(str(root / "jpg" / f"{name}.jpg"), box if query_crop else None)
        for name, box in zip(asked, boxes, strict=True)
    )
    return RetrievalSet(str(root), database, queries, truth, tuple(RULES))


LAYOUTS = ("folder", "roxford5k", "rparis6k", "copydays")


class _Kind:
    """Stands for numpy.dtype while a pickle is read: whole numbers, floating point and bool."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[<>=|]?([iu][1248]|f[248]|b1)", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])

    def values(self, data: bytes | str) -> list[Any]:
        whole = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote text
        return np.frombuffer(whole, self.dtype).tolist()


class _Array(list[Any]):
    """Stands for numpy.ndarray: its values, flat."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        self[:] = state[2].values(state[4])


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Kind, data: bytes | str) -> Any:
    return kind.values(data)[0]


def _from_buffer(data: bytes, kind: _Kind, *_: object) -> _Array:
    return _Array(kind.values(data))


def _encode(text: str, *_: object) -> bytes:
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


class _Plain(pickle.Unpickler):
    """Numpy's constructors are replaced by the functions above; every other name is refused, so that nothing runs."""

    ALLOWED: ClassVar = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("_codecs", "encode"): _encode,
        **{(builtins, "bytes"): _no_bytes for builtins in ("builtins", "__builtin__")},
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numbers, text, lists and dicts are read")
        return self.ALLOWED[module, name]


def read_plain_pickle(path: str | Path) -> Any:
    """Return the numbers, text, lists, dicts and arrays (as flat lists) of a pickle; one with more is refused."""
    with Path(path).open("rb") as file:
        try:
            return _Plain(file, encoding="latin1").load()
        except Exception as error:  # damaged bytes raise nearly anything
            raise ValueError(f"{path} is not read: {error or type(error).__name__}") from error
