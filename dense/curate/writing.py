"""What stays, as a list of files or as WebDataset shards, which a pretraining reads as they are."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dense.console import progress
from dense.curate.decisions import Curation
from dense.curate.filters import Preparation
from dense.curate.pool import Pool, png

Form = Literal["list", "shards"]
PER_SHARD = 10_000
RESULTS = ("pictures.txt", "edited", "shards")


def form_of(pool: Pool, form: Form | None) -> Form:
    """The form that is asked for, or the one that fits."""
    if form is not None and form not in get_args(Form):
        raise ValueError(f"form={form!r}: expected list or shards")
    if form == "list" and not pool.in_files:
        raise ValueError("a list can only name files, and the pool holds shards or scenes; write shards")
    return form or ("list" if pool.in_files else "shards")


def check_apart(pools: Sequence[Pool | None], output: Path) -> None:
    """Raise where a result would take the place of images that are read, or of what is no result of a curation."""
    places = {name: (output / name).resolve() for name in RESULTS}
    for pool in pools:
        found = set() if pool is None else pool.folders | {Path(root).resolve() for root in pool.roots}
        for name, place in places.items():
            if any(folder.is_relative_to(place) for folder in found):
                raise ValueError(f"{output / name} is among the images and would be replaced; choose another output")
    if not (output / "report.json").is_file() and (there := [name for name, place in places.items() if place.exists()]):
        raise FileExistsError(f"{output / there[0]} is there and of no earlier curation; choose another output")


def write_images(done: Curation, prepare: Preparation, output: Path, form: Form) -> dict[str, Any]:
    """images.txt, with changed images in edited/, or shards/; what was there of an earlier run is replaced."""
    for name in (*RESULTS, *(f"{name}.partial" for name in RESULTS)):
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
    return write_list(done, prepare, output) if form == "list" else write_shards(done, prepare, output)


def write_list(done: Curation, prepare: Preparation, output: Path) -> dict[str, Any]:
    """One path a line."""
    partial, changes, edited = output / "pictures.txt.partial", output / "edited.partial", 0
    with partial.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        for index in progress(done.kept.tolist(), "list"):
            path = Path(done.pool.name(index)).absolute()
            if index in done.found.edits:
                path = Path("edited") / f"{index:012d}.png"
                changes.mkdir(exist_ok=True)
                (changes / path.name).write_bytes(png(changed(done, prepare, index)))
                edited += 1
            if set("\t\r\n") & set(str(path)):
                raise ValueError(f"{str(path)!r} cannot stand in a list, one path a line; write shards")
            lines.write(f"{path}\n")
    if edited:
        changes.replace(output / "edited")
    partial.replace(output / "pictures.txt")
    return {"list": "pictures.txt", "pictures": len(done.kept), "edited": edited}


def write_shards(done: Curation, prepare: Preparation, output: Path, most: int = PER_SHARD) -> dict[str, Any]:
    """Tar files of up to `most` images, whose bytes are those of the originals unless they were changed."""
    partial, count = output / "shards.partial", 0
    partial.mkdir(parents=True)
    kept = done.kept.tolist()
    members = progress(files(done, prepare), "shards", len(kept))
    for start in range(0, len(kept), most):
        with tarfile.open(partial / f"{count:06d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for _ in kept[start : start + most]:
                name, data = next(members)
                info = tarfile.TarInfo(name)  # whose time is 0: the same images make the same file
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        count += 1
    next(members, None)
    partial.replace(output / "shards")
    return {
        "shards": "shards",
        "pictures": len(kept),
        "files": count,
        "edited": sum(i in done.found.edits for i in kept),
    }


def files(done: Curation, prepare: Preparation) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image that stays."""
    for index in done.kept.tolist():
        if index in done.found.edits:
            data, ending = png(changed(done, prepare, index)), ".png"
        else:
            data, ending = done.pool.original(index)
        yield f"{index:012d}{ending}", data


def changed(done: Curation, prepare: Preparation, index: int) -> Any:
    """An image with its edits, made anew."""
    found = prepare(done.pool, index)
    if found.image is None:
        raise ValueError(
            f"{done.pool.name(index)} is now {found.state} ({found.words}) and was not; did a file or a filter change?"
        )
    return found.image
