"""Open COCO's JSON files, of instances or panoptic segments, and find what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from dense.console import say
from dense.data.image import what_is_there
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import DataError
from dense.data.labelled.segments import SegmentFormat
from dense.data.store import Names

LISTS = ("images", "annotations", "categories")
OF_ANNOTATIONS = ("id", "image_id", "category_id")
FIRST = 100  # annotations whose polygons tell pixels from fractions


def open_json(path: Path, *images: Path, pngs: Path | None = None, title: str = "coco") -> FileSource:
    """Return the images that a JSON file of COCO's format lists, with their segments, in its order.

    images: folders in which its file names are looked for; pngs: that of panoptic PNG files. An image without
    annotations is one without objects. What is wrong becomes problems of the source; categories are classes in the
    order of their ids.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{title}: no such file {path}; {what_is_there(path.parent)}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    missing = [k for k in LISTS if not isinstance(_get(content, k), list)]
    if missing:
        raise DataError(
            f"{path} has no list {missing[0]!r}; expected COCO's format with images, annotations, categories"
        )
    if odd := [k for k in LISTS if not all(isinstance(one, Mapping) for one in content[k])]:
        raise DataError(f"{path}: an entry of {odd[0]!r} is not an object of COCO's format")
    if _fractions(content["annotations"][:FIRST]):
        raise DataError(
            f"{path}: all coordinates of polygons are at most 1; expected pixels, not fractions of the image"
        )
    problems: list[str] = []
    panoptic = any("segments_info" in one for one in content["annotations"])
    classes, form = _categories(path, content["categories"], panoptic, problems)
    files: dict[Any, str] = {}
    taken: set[str] = set()
    listed = list(_with_ids(path, "images", content["images"], ("id",), problems))
    sizes: dict[Any, Any] = {one.get("id"): [one.get("height"), one.get("width")] for one in listed}
    for one in listed:
        places = [folder / str(one.get("file_name")) for folder in images]
        name = str(next((place for place in places if place.is_file()), places[0]))
        if one.get("id") in files:
            problems.append(f"{path}: {one['id']} is the id of two images, {files[one['id']]} and {name}")
        elif not Path(name).is_file():
            problems.append(f"{path}: no image {name}")
        elif normpath(name) in taken:
            problems.append(f"{path}: {name} is the file of two images; list it once, with all its annotations")
        else:
            files[one.get("id")] = name
            taken.add(normpath(name))
    read = _panoptic if panoptic else _instances
    annotations = list(_with_ids(path, "annotations", content["annotations"], OF_ANNOTATIONS, problems))
    names = {one.get("id"): str(one.get("file_name")) for one in listed}
    found = read(path, annotations, classes, names, pngs, problems)
    if not files:
        raise DataError(f"{title}: no images of {path} in {images[0]}", *problems)
    if panoptic and (bare := [name for id, name in files.items() if id not in found]):
        problems.append(f"{path} has no annotation of {len(bare)} images, such as {bare[0]}; each needs a PNG")

    def entry(id: Any) -> str:
        """Return what `SegmentFormat.read` takes: nothing for an image without a PNG."""
        if panoptic and id not in found:
            return ""
        return json.dumps(found[id] if panoptic else [sizes[id], *found.get(id, ())], separators=(",", ":"))

    return FileSource(
        title,
        Names(files.values()),
        problems=Names(problems),
        segments=Names(map(entry, files)),
        segment_format=form,
    )


def _fractions(annotations: list[dict[str, Any]]) -> bool:
    """Whether no polygon of annotations reaches beyond the first pixel."""
    drawn = [one["segmentation"] for one in annotations if isinstance(one.get("segmentation"), list)]
    numbers = [x for polygons in drawn for one in polygons if isinstance(one, list) for x in one]
    return len(drawn) > 1 and all(isinstance(x, int | float) and x <= 1 for x in numbers)


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _with_ids(
    path: Path, what: str, entries: list[dict[str, Any]], keys: Sequence[str], problems: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a list whose ids are single values."""
    for place, one in enumerate(entries):
        odd = next((key for key in keys if isinstance(one.get(key), list | Mapping)), None)
        if odd is None:
            yield one
        else:
            name = f"{what}[{place}]" if odd == "id" else f"annotation {one.get('id')}"
            problems.append(f"{path}: {odd} of {name} is {str(one[odd])[:40]}; expected a whole number")


def _categories(
    path: Path, categories: list[dict[str, Any]], panoptic: bool, problems: list[str]
) -> tuple[dict[Any, int], SegmentFormat]:
    """Return the class of each category id, and how segments are stored."""
    ids: list[Any] = [one.get("id") for one in categories]
    names: list[Any] = [str(one.get("name")) for one in categories]
    for what, values in (("id", ids), ("name", names)):
        problems += [
            f"{path}: two categories have the {what} {v!r}" for v in dict.fromkeys(values) if values.count(v) > 1
        ]
    if not categories or not all(isinstance(id, int) for id in ids):
        raise DataError(f"{path}: the ids of categories are {ids[:5]}; expected whole numbers")
    things = (_flag(one, "isthing", 1, f"category {one['id']}", path, problems) for one in categories)
    ordered = sorted(zip(ids, names, map(bool, things), strict=True))
    first, last = ordered[0][0], ordered[-1][0]
    if last - first + 1 > len(ordered):
        say(
            f"{path.name}: the category ids {first} to {last} have holes; the {len(ordered)} categories are classes "
            f"0 to {len(ordered) - 1} in the order of their ids"
        )
    found_ids, classes, are_things = zip(*ordered, strict=True)
    form = SegmentFormat("panoptic" if panoptic else "coco", classes, are_things, found_ids)
    return {id: place for place, (id, *_) in enumerate(ordered)}, form


def _flag(one: Mapping[str, Any], key: str, default: int, name: str, path: Path, problems: list[str]) -> int:
    """Return an entry that is 0 or 1."""
    value = one.get(key, default)
    if not isinstance(value, int) or value not in (0, 1):
        problems.append(f"{path}: {key} of {name} is {value!r}; expected 0 or 1")
        return default
    return int(value)


def _instances(
    path: Path, annotations: list[dict[str, Any]], classes: Mapping[Any, int], images: Mapping[Any, str], _: Any,
    problems: list[str],
) -> dict[Any, list[list[Any]]]:  # fmt: skip
    """Return image id -> [id, class, crowd, segmentation] of each annotation. images: file names by id."""
    found: dict[Any, list[list[Any]]] = {}
    seen: set[Any] = set()
    if bare := [one for one in annotations if one.get("id") is None]:
        image = images.get(bare[0].get("image_id"))
        problems.append(f"{path}: {len(bare)} annotations have no id, such as one of {image}; give each one of its own")
    for one in annotations:
        id, image, category = one.get("id"), one.get("image_id"), one.get("category_id")
        name = f"annotation {id} of {images.get(image)}"
        if id in seen and id is not None:
            problems.append(f"{path}: two annotations have the id {id}, also {name}; give each one of its own")
        elif image not in images:
            problems.append(f"{path}: annotation {id} is of image {image}, which is not listed under images")
        elif category not in classes:
            problems.append(f"{path}: {name} has the category {category}, which is not listed under categories")
        elif not one.get("segmentation"):
            problems.append(f"{path}: {name} has a box and no mask; remove it, or add its segmentation")
        else:
            crowd = _flag(one, "iscrowd", 0, name, path, problems)
            found.setdefault(image, []).append([id, classes[category], crowd, one["segmentation"]])
        seen.add(id)
    return found


def _panoptic(
    path: Path, annotations: list[dict[str, Any]], classes: Mapping[Any, int], images: Mapping[Any, str],
    pngs: Path | None, problems: list[str],
) -> dict[Any, dict[str, Any]]:  # fmt: skip
    """Return image id -> {"png": path, "segments": [[id, class, crowd], ...]}."""
    found: dict[Any, dict[str, Any]] = {}
    folder = pngs or (path.with_suffix("") if path.with_suffix("").is_dir() else path.parent)
    for one in annotations:
        image, png = one.get("image_id"), folder / str(one.get("file_name"))
        if image not in images:
            problems.append(f"{path}: {png.name} is of image {image}, which is not listed under images")
        elif image in found:
            problems.append(
                f"{path}: image {image} has two annotations, {Path(found[image]['png']).name} and {png.name}"
            )
        elif not png.is_file():
            problems.append(f"{path}: no file {png}")
        elif not _is_list(listed := one.get("segments_info")):
            problems.append(f"{path}: segments_info of {png.name} is {str(listed)[:40]}; expected a list of segments")
        else:
            segments = list(_segments(path, png, listed, classes, problems))
            found[image] = {"png": str(png), "segments": segments}
    return found


def _is_list(listed: Any) -> bool:
    return isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed)


def _segments(
    path: Path, png: Path, listed: Any, classes: Mapping[Any, int], problems: list[str]
) -> Iterator[list[int]]:
    seen: set[Any] = set()
    for one in listed:
        id, category = one.get("id"), one.get("category_id")
        if not isinstance(id, int):
            problems.append(f"{path}: a segment of {png.name} has the id {id!r}; expected a whole number")
            continue
        if id in seen:
            problems.append(f"{path}: two segments of {png.name} have the id {id}; give each one of its own")
        elif isinstance(category, list | Mapping) or category not in classes:
            problems.append(f"{path}: segment {id} of {png.name} has the category {category}, which is not listed")
        else:
            crowd = _flag(one, "iscrowd", 0, f"segment {id} of {png.name}", path, problems)
            yield [id, classes[category], crowd]
        seen.add(id)
