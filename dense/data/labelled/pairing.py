"""Which image belongs to which mask and depth map: from patterns of paths, or from a list in a text file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dense.data.image import EXTENSIONS, walk, what_is_there
from dense.data.labelled.depth import DEPTH_EXTENSIONS
from dense.data.labelled.files import FileSource
from dense.data.labelled.layouts import Layout
from dense.data.labelled.sample import DataError
from dense.data.store import Names

ANY = ".*"  # at the end of a pattern: whatever extension can be read
WORDS = {"image": "picture", "labels": "mask", "depth": "depth map"}
Row = tuple[str, ...]  # image, labels, depth: a path, empty where there is none


def pair(root: Path, layout: Layout, split: str, *, ids: str | Path | None = None, partial: bool = False) -> FileSource:
    """The samples of a split, in the order of their ids or of the list; what is missing becomes a problem."""
    title = f"{layout.name} {split}"
    if not root.is_dir():
        wanted = " and ".join(pattern for _, pattern in layout.patterns)
        raise FileNotFoundError(f"{title}: expected a folder with {wanted}, but {what_is_there(root)}")
    problems: list[str] = []
    if ids is None and layout.ids is None:
        rows = list(_found(root, layout, split, partial, problems))
    else:
        rows = list(_listed(root, layout, split, ids, partial, problems))
    if not rows:
        raise DataError(f"{title}: no samples in {root}", *problems)
    columns = [what for what, _ in layout.patterns]
    images, labels, depth = (
        Names(row[columns.index(what)] for row in rows) if what in columns else None for what in WORDS
    )
    assert images is not None
    return FileSource(
        title, images, labels, depth, layout.label_format, layout.depth_format, partial, problems=Names(problems)
    )


# ---- every file that fits the patterns


def _found(root: Path, layout: Layout, split: str, partial: bool, problems: list[str]) -> Iterator[Row]:
    value = layout.splits[split]
    files = {what: find(root, layout, pattern, value, what, problems) for what, pattern in layout.patterns}
    if not files["image"]:
        raise FileNotFoundError(_nothing(root, layout, layout.image, value))
    for id in sorted({id for several in files.values() for id in several}):
        row = tuple(several.get(id, "") for several in files.values())
        if not row[0]:
            which, path = next((what, several[id]) for what, several in files.items() if id in several)
            problems.append(f"{path} is a {WORDS[which]} without an image {_fill(layout.image, value, id)}")
            continue
        wanted = {what: _fill(pattern, value, id) for what, pattern in layout.patterns}
        yield _judged(row, wanted, partial, problems)


def find(root: Path, layout: Layout, pattern: str, split: str, what: str, problems: list[str]) -> dict[str, str]:
    """Id -> path of every file that fits a pattern; two for one id are a problem."""
    before, after = pattern.replace("{split}", split).split("{id}")
    base, _, prefix = before.rpartition("/")
    folder = next((root / f / base for f in layout.folders if (root / f / base).is_dir()), None)
    found: dict[str, str] = {}
    if folder is None:
        return found
    extensions: Iterable[str] = EXTENSIONS
    if what == "depth":
        extensions = (*DEPTH_EXTENSIONS, ".jpg", ".jpeg")  # the last are refused with a reason, when they are read
    for path in walk(folder, extensions=frozenset(extensions)):
        stem = path.rpartition(".")[0]
        id = stem if after == ANY else path.removesuffix(after)
        if (after != ANY and not path.endswith(after)) or not id.startswith(prefix):
            continue
        id = id[len(prefix) :]
        if id in found:
            problems.append(f"{folder / path} and {found[id]} are two {WORDS[what]}s of one sample, {id}; keep one")
        else:
            found[id] = str(folder / path)
    return found


def _nothing(root: Path, layout: Layout, pattern: str, split: str) -> str:
    folders = [f for f in layout.folders if (root / f).is_dir()]
    there = what_is_there((root / folders[-1] / pattern.replace("{split}", split)).parent)
    wanted = " or ".join(str(Path(f) / pattern.replace("{split}", split)) for f in layout.folders[:3])
    return f"{layout.name}: no images such as {wanted} in {root}; {there}"


# ---- the samples that a text file lists


def _listed(
    root: Path, layout: Layout, split: str, ids: str | Path | None, partial: bool, problems: list[str]
) -> Iterator[Row]:
    value = layout.splits[split]
    path = Path(ids) if ids is not None else Path(_place(root, layout, _fill(layout.ids or "", value)))
    if not path.is_file():
        there = what_is_there(path.parent)
        raise FileNotFoundError(f"{layout.name}: {path} is not there; it lists the samples of {split}. {there}")
    files = {
        what: find(root, layout, pattern, value, what, []) if pattern.endswith(ANY) else None
        for what, pattern in layout.patterns
    }
    seen: dict[str, int] = {}
    for number, columns in _lines(path, layout.columns):
        first = columns[layout.columns[0]]
        if first in seen:
            problems.append(f"{path}, line {number}: {first} was listed before, in line {seen[first]}; keep one")
            continue
        seen[first] = number
        wanted = {what: _fill(pattern, value, **columns) for what, pattern in layout.patterns}
        row = tuple(
            _place(root, layout, relative)
            if (several := files[what]) is None
            else several.get(first) or several.get(first.rpartition(".")[0], "")
            for what, relative in wanted.items()
        )
        row = tuple(path if path and Path(path).is_file() else "" for path in row)
        if not row[0]:
            problems.append(f"{path}, line {number}: no image {root / wanted['image']}")
            continue
        yield _judged(row, wanted, partial, problems)


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and columns of each line; lines in which one is None are dropped, as KITTI has them."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            parts = [line.strip()] if len(columns) == 1 else line.split()
            if not line.strip() or "None" in parts:
                continue
            if len(parts) not in (len(columns), len(columns) - 1):  # the last, the focal length, may be lacking
                raise ValueError(f"{path}, line {number}: {line.strip()!r}: expected {' '.join(columns)}")
            yield number, dict(zip(columns, (part.lstrip("/") for part in parts), strict=False))


def _place(root: Path, layout: Layout, relative: str) -> str:
    """Where a file is, or would be."""
    places = [root / folder / relative for folder in layout.folders]
    return str(next((place for place in places if place.exists()), places[0]))


def _judged(row: Row, wanted: Mapping[str, str], partial: bool, problems: list[str]) -> Row:
    """The row itself; what it lacks becomes a problem."""
    lacking = [what for what, path in zip(wanted, row, strict=True) if not path]
    if lacking and not partial:
        problems += [f"{row[0]} has no {WORDS[what]} {wanted[what]}" for what in lacking]
    elif lacking and len(lacking) == len(row) - 1:
        problems.append(f"{row[0]} has neither of its targets, {' and '.join(wanted[what] for what in lacking)}")
    return row


def _fill(pattern: str, split: str, id: str = "", **columns: str) -> str:
    for name, value in {"split": split, "id": id, **columns}.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern
