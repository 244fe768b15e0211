"""Write the kept images as a list of files or as WebDataset shards, both of which pretraining reads."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dense.console import progress
from dense.curate.filters import Preparation
from dense.curate.pool import Pool, png
from dense.curate.report import Decisions

Form = Literal["list", "shards"]
PER_SHARD = 10_000
RESULTS = ("images.txt", "pictures.txt", "edited", "shards")  # the second is the former name of the first


def resolve_form(pool: Pool, form: Form | None) -> Form:
    """Return the given form, or a list if every image is a file, else shards."""
    if form is not None and form not in get_args(Form):
        raise ValueError(f"form={form!r}: expected list or shards")
    if form == "list" and not pool.in_files:
        raise ValueError("a list can only name files, and the pool holds shards or scenes; write shards")
    return form or ("list" if pool.in_files else "shards")


def check_output(pools: Sequence[Pool | None], output: Path) -> None:
    """Raise if the results would replace images of the pools, or files that no earlier curation wrote."""
    places = {name: (output / name).resolve() for name in RESULTS}
    for pool in pools:
        folders = set() if pool is None else pool.folders | {Path(root).resolve() for root in pool.roots}
        for name, place in places.items():
            if any(folder.is_relative_to(place) for folder in folders):
                raise ValueError(f"{output / name} is among the images and would be replaced; choose another output")
    if not (output / "report.json").is_file() and (found := [name for name, place in places.items() if place.exists()]):
        raise FileExistsError(f"{output / found[0]} exists and is of no earlier curation; choose another output")


def write_images(decisions: Decisions, prepare: Preparation, output: Path, form: Form) -> dict[str, Any]:
    """Write images.txt, with changed images in edited/, or shards/; results of an earlier run are replaced."""
    for name in (*RESULTS, *(f"{name}.partial" for name in RESULTS)):
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
    return write_list(decisions, prepare, output) if form == "list" else write_shards(decisions, prepare, output)


def write_list(decisions: Decisions, prepare: Preparation, output: Path) -> dict[str, Any]:
    """Write one path per line."""
    partial, changes, edited = output / "images.txt.partial", output / "edited.partial", 0
    with partial.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        for index in progress(decisions.kept.tolist(), "list"):
            path = Path(decisions.pool.name(index)).absolute()
            if index in decisions.embeddings.edits:
                path = Path("edited") / f"{index:012d}.png"
                changes.mkdir(exist_ok=True)
                (changes / path.name).write_bytes(png(edited_image(decisions, prepare, index)))
                edited += 1
            if set("\t\r\n") & set(str(path)):
                raise ValueError(f"{str(path)!r} cannot be written to a list of one path per line; write shards")
            lines.write(f"{path}\n")
    if edited:
        changes.replace(output / "edited")
    partial.replace(output / "images.txt")
    return {"list": "images.txt", "images": len(decisions.kept), "edited": edited}


def write_shards(decisions: Decisions, prepare: Preparation, output: Path) -> dict[str, Any]:
    """Write tar files of up to PER_SHARD images, with the original bytes unless the image was edited."""
    partial, count = output / "shards.partial", 0
    partial.mkdir(parents=True)
    kept = decisions.kept.tolist()
    members = progress(_members(decisions, prepare), "shards", len(kept))
    for start in range(0, len(kept), PER_SHARD):
        with tarfile.open(partial / f"{count:06d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for _ in kept[start : start + PER_SHARD]:
                name, data = next(members)
                info = tarfile.TarInfo(name)  # its time is 0, so the same images give the same file
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        count += 1
    next(members, None)
    partial.replace(output / "shards")
    edited = sum(index in decisions.embeddings.edits for index in kept)
    return {"shards": "shards", "images": len(kept), "files": count, "edited": edited}


def _members(decisions: Decisions, prepare: Preparation) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every kept image."""
    for index in decisions.kept.tolist():
        if index in decisions.embeddings.edits:
            data, extension = png(edited_image(decisions, prepare, index)), ".png"
        else:
            data, extension = decisions.pool.original(index)
        yield f"{index:012d}{extension}", data


def edited_image(decisions: Decisions, prepare: Preparation, index: int) -> Any:
    """Return an image with its edits, computed again."""
    prepared = prepare(decisions.pool, index)
    if prepared.image is None:
        name = decisions.pool.name(index)
        now = f"{prepared.state} ({prepared.reason})"
        raise ValueError(f"{name} was usable before and is now {now}; check whether a file or a filter has changed")
    return prepared.image
