"""Which image belongs to which targets: by patterns of paths, or by a list in a text file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dense.data.image import EXTENSIONS, extensions, walk, what_is_there
from dense.data.labelled.files import FileSource
from dense.data.labelled.layouts import WHAT, Layout
from dense.data.labelled.reading import DEPTH_EXTENSIONS
from dense.data.labelled.sample import DataError
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.store import Names
from dense.data.values import one_per_image, stem_of

ANY = ".*"  # the ending of a pattern that stands for any extension that can be read
Row = tuple[str, ...]  # one path per pattern of the layout, empty where there is no file


def pair(
    root: Path,
    layout: Layout,
    split: str,
    *,
    ids: str | Path | None = None,
    partial: bool = False,
    reading: Reading = PHOTOGRAPHS,
) -> FileSource:
    """Return the samples of a split, in the order of their ids or of the list; missing files become problems."""
    title = f"{layout.name} {split}"
    if not root.is_dir():
        wanted = " and ".join(pattern for _, pattern in layout.patterns)
        raise FileNotFoundError(f"{title}: expected a folder with {wanted}, but {what_is_there(root)}")
    problems: list[str] = []
    if ids is None and layout.ids is None:
        rows = list(_by_pattern(root, layout, split, partial, problems, reading))
    else:
        rows = list(_by_list(root, layout, split, ids, partial, problems, reading))
    if not rows:
        raise DataError(f"{title}: no samples in {root}", *problems)
    columns = {what: Names(row[place] for row in rows) for place, (what, _) in enumerate(layout.patterns)}
    return FileSource(
        title,
        columns["image"],
        columns.get("labels"),
        columns.get("depth"),
        layout.label_format,
        layout.depth_format,
        partial,
        problems=Names(problems),
        clean=columns.get("clean"),
        segments=columns.get("segments"),
        segment_format=layout.segment_format,
        reading=reading,
    )


# ---- every file that matches the patterns


def _by_pattern(
    root: Path, layout: Layout, split: str, partial: bool, problems: list[str], reading: Reading
) -> Iterator[Row]:
    value = layout.splits[split]
    files = {what: find(root, layout, pattern, value, what, problems, reading) for what, pattern in layout.patterns}
    if not files["image"]:
        raise FileNotFoundError(_no_images(root, layout, layout.image, value))
    for id in sorted({id for by_id in files.values() for id in by_id}):
        row = tuple(by_id.get(id, "") for by_id in files.values())
        if not row[0]:
            what, path = next((what, by_id[id]) for what, by_id in files.items() if id in by_id)
            problems.append(f"{path} is a {WHAT[what]} without an image {_fill(layout.image, value, id)}")
            continue
        expected = {what: _fill(pattern, value, id) for what, pattern in layout.patterns}
        problems += _missing(row, expected, partial)
        yield row


def find(
    root: Path,
    layout: Layout,
    pattern: str,
    split: str,
    what: str,
    problems: list[str],
    reading: Reading = PHOTOGRAPHS,
) -> dict[str, str]:
    """Return id -> path of every file that matches a pattern; two files with one id are a problem."""
    before, after = pattern.replace("{split}", split).split("{id}")
    base, _, prefix = before.rpartition("/")
    folder = next((root / f / base for f in layout.folders if (root / f / base).is_dir()), None)
    found: dict[str, str] = {}
    if folder is None:
        return found
    # JPEG depth is found here, and refused with a reason when it is read
    image = what in ("image", "clean")
    known = frozenset((*DEPTH_EXTENSIONS, ".jpg", ".jpeg")) if what == "depth" else EXTENSIONS
    paths: Iterable[str] = walk(folder, extensions=extensions(reading) if image else known)
    if image and reading.channels:
        whole = one_per_image((str(folder / path) for path in paths), reading)
        paths = [Path(path).relative_to(folder).as_posix() for path in whole]
    for path in paths:
        stem = stem_of(Path(path), reading).as_posix() if image and reading.channels else path.rpartition(".")[0]
        stem = stem.removesuffix(".ome")
        id = stem if after == ANY else path.removesuffix(after)
        if (after != ANY and not path.endswith(after)) or not id.startswith(prefix):
            continue
        id = id[len(prefix) :]
        if id in found:
            problems.append(f"{folder / path} and {found[id]} are two {WHAT[what]}s of one sample, {id}; keep one")
        else:
            found[id] = str(folder / path)
    return found


def _no_images(root: Path, layout: Layout, pattern: str, split: str) -> str:
    folders = [f for f in layout.folders if (root / f).is_dir()]
    there = what_is_there((root / folders[-1] / pattern.replace("{split}", split)).parent)
    wanted = " or ".join(str(Path(f) / pattern.replace("{split}", split)) for f in layout.folders[:3])
    return f"{layout.name}: no images such as {wanted} in {root}; {there}"


# ---- the samples that a text file lists


def _by_list(
    root: Path,
    layout: Layout,
    split: str,
    ids: str | Path | None,
    partial: bool,
    problems: list[str],
    reading: Reading,
) -> Iterator[Row]:
    value = layout.splits[split]
    path = Path(ids) if ids is not None else Path(_locate(root, layout, _fill(layout.ids or "", value)))
    if not path.is_file():
        there = what_is_there(path.parent)
        raise FileNotFoundError(f"{layout.name}: {path} is not there; it lists the samples of {split}. {there}")
    files = {
        what: find(root, layout, pattern, value, what, [], reading) if pattern.endswith(ANY) else None
        for what, pattern in layout.patterns
    }
    lines: dict[str, int] = {}
    for number, columns in _lines(path, layout.columns):
        first = columns[layout.columns[0]]
        if first in lines:
            problems.append(f"{path}, line {number}: {first} was listed before, in line {lines[first]}; keep one")
            continue
        lines[first] = number
        expected = {what: _fill(pattern, value, **columns) for what, pattern in layout.patterns}
        row = tuple(
            _locate(root, layout, relative)
            if (by_id := files[what]) is None
            else by_id.get(first) or by_id.get(first.rpartition(".")[0], "")
            for what, relative in expected.items()
        )
        row = tuple(path if path and Path(path).is_file() else "" for path in row)
        if not row[0]:
            problems.append(f"{path}, line {number}: no image {root / expected['image']}")
            continue
        problems += _missing(row, expected, partial)
        yield row


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the columns of each line; lines with a column "None" are dropped, as KITTI has them."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            parts = [line.strip()] if len(columns) == 1 else line.split()
            if not line.strip() or "None" in parts:
                continue
            if len(parts) not in (len(columns), len(columns) - 1):  # the last, the focal length, may be missing
                raise ValueError(f"{path}, line {number}: {line.strip()!r}: expected {' '.join(columns)}")
            yield number, dict(zip(columns, (part.lstrip("/") for part in parts), strict=False))


def _locate(root: Path, layout: Layout, relative: str) -> str:
    """Return where a file is, or else where it was expected first."""
    places = [root / folder / relative for folder in layout.folders]
    return str(next((place for place in places if place.exists()), places[0]))


def _missing(row: Row, expected: Mapping[str, str], partial: bool) -> list[str]:
    """Return the problems of a sample with missing targets."""
    missing = [what for what, path in zip(expected, row, strict=True) if not path]
    if not partial:
        return [f"{row[0]} has no {WHAT[what]} {expected[what]}" for what in missing]
    if missing and len(missing) == len(row) - 1:
        return [f"{row[0]} has neither of its targets, {' and '.join(expected[what] for what in missing)}"]
    return []


def _fill(pattern: str, split: str, id: str = "", **columns: str) -> str:
    for name, value in {"split": split, "id": id, **columns}.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern
