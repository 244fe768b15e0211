"""Where predicted maps go block by block: into memory, or to disk as tiled TIFF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.data.labelled.sample import IGNORE
from dense.data.labelled.segments import encode_part
from dense.data.large import Box
from dense.files import PARTIAL, replacing, write
from dense.media.draw import label_picture, palette, write_picture
from dense.model.inference import ROWS, bands
from dense.model.tiles import Joined, Numbered, enlarged, nearest
from dense.predict.objects import COLOURS, as_colours, category_of, of_colours
from dense.predict.predictions import Depth, Restoration, Segmentation
from heads.features import Size
from heads.memory import as_logarithms
from heads.outputs import DepthKind

TILE = 512  # side of the tiles of written predictions
OVERVIEW = 1024  # longest side of the picture of a large prediction


class Sink:
    """Receives mean maps block by block and keeps per pixel what a prediction holds: one number, or label and score.

    shares: classes have positive scores, not logits
    """

    def __init__(self, size: tuple[int, int], shares: bool = False) -> None:
        self.size, self.shares = size, shares
        self.values: dict[str, Any] = {}

    def __call__(self, name: str, block: Tensor, top: int, left: int) -> None:
        if name == "labels":
            block = as_logarithms({name: block})[name] if self.shares else block
            score, label = block.max(0)  # h, w
            self.put("labels", label.to(torch.uint8), top, left)
            self.put("scores", (score - block.logsumexp(0)).exp_(), top, left)
        elif name == "restored":
            self.put(name, (block.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0), top, left)
        else:
            self.put(name, block[0], top, left)

    def put(self, name: str, block: Tensor, top: int, left: int) -> None:
        """Keep the values (h, w) or (h, w, 3) of a block."""
        if name not in self.values:
            self.values[name] = torch.empty((*self.size, *block.shape[2:]), dtype=block.dtype, device="cpu")
        self.values[name][top : top + block.shape[0], left : left + block.shape[1]] = block.cpu()

    def resized(self, into: Sink) -> None:
        """Give the values at another size to another sink: labels by nearest neighbour, the rest bilinearly."""
        for name, values in self.values.items():
            if name == "labels":
                rows, columns = (
                    ((torch.arange(new) + 0.5) * (old / new)).long()
                    for old, new in zip(self.size, into.size, strict=True)
                )
                for top in range(0, into.size[0], ROWS):
                    into.put(name, values[rows[top : top + ROWS]][:, columns], top, 0)
            else:
                bands(values[None], into.size, lambda band, top, name=name: into.put(name, band[0], top, 0))


class TiledSink(Sink):
    """Keeps values on disk beside STEM, uncompressed, until `write` makes tiled TIFF files of them.

    log: depth is a logarithm, and is written in metres
    """

    def __init__(self, size: tuple[int, int], stem: Path, shares: bool = False, log: bool = False) -> None:
        super().__init__(size, shares)
        self.stem, self.log = stem, log
        self.folder = stem.with_name(f".{stem.name}{PARTIAL}")

    def __enter__(self) -> TiledSink:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, name: str, block: Tensor, top: int, left: int) -> None:
        if name == "scores":
            block = (block * 255 + 0.5).to(torch.uint8)
        if name == "depth" and self.log:
            block = block.exp()
        values = block.cpu().numpy()
        new = name not in self.values
        if new:
            self.values[name] = (values.dtype, (*self.size, *values.shape[2:]))
        # a map per block, since pages of a map count as resident memory until it is closed
        self._map(name, "w+" if new else "r+")[top : top + len(values), left : left + values.shape[1]] = values

    def put_objects(self, objects: Sequence[Joined], size: Size, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Keep the numbers of objects, found at a `size`, 1 for the best; return COCO's annotations of them.

        ids: of the classes, see `category_of`
        """
        self.values["instances"] = (np.min_scalar_type(max(len(objects), 256)), self.size)  # 16 bits, or 32
        self._map("instances", "w+")
        annotations = []
        for number, one in reversed(list(enumerate(objects, 1))):  # the more certain lies above
            if (found := enlarged(one, size, self.size)) is None:
                continue
            top, left, whole = found
            bottom, right = top + whole.shape[0], left + whole.shape[1]
            self._map("instances", "r+")[top:bottom, left:right][whole] = number
            category = category_of(one.label, ids)
            fields = {"category_id": category, "bbox": [left, top, right - left, bottom - top]}
            fields |= {"area": int(whole.sum()), "segmentation": encode_part(whole, top, left, self.size)}
            annotations.append(fields | {"score": round(one.score, 6), "iscrowd": 0})
        return annotations[::-1]

    def put_tile(self, size: Size) -> Callable[[Tensor, Tensor, int, int], None]:
        """Return what keeps the numbers of tiles' segments, see `number_partitions`, of an image shrunk to `size`."""
        self.values["tiles"] = (np.dtype(np.int32), size)
        self._map("tiles", "w+")

        def put(numbers: Tensor, where: Tensor, top: int, left: int) -> None:
            place = self._map("tiles", "r+")[top : top + where.shape[0], left : left + where.shape[1]]
            place[where.numpy()] = numbers[where].numpy()

        return put

    def put_segments(self, numbered: Numbered, damaged: Sequence[Box], ids: Sequence[int]) -> list[dict[str, Any]]:
        """Keep the panoptic segments of the tiles that were put; return COCO's segments_info of them.

        Boxes in `damaged` have no segment. ids: of the classes, see `category_of`
        """
        size = self.values["tiles"][1]
        seen = np.zeros(len(numbered.classes) + 1, bool)  # the last is none
        for top in range(0, size[0], ROWS):
            seen[numbered.objects.numpy()[self._map("tiles")[top : top + ROWS]]] = True
        numbered = numbered.only(torch.from_numpy(np.flatnonzero(seen[:-1])))
        objects, count = numbered.objects.numpy(), len(numbered.classes)
        areas, last = np.zeros(count, np.int64), np.zeros((2, count), np.int64)
        first = np.full_like(last, max(self.size))  # row and column
        rows, columns = nearest(size, self.size)
        self.values["panoptic"] = (np.dtype(np.uint8), (*self.size, 3))
        self._map("panoptic", "w+")
        for top in range(0, self.size[0], ROWS):
            places = rows[top : top + ROWS]
            band = objects[self._map("tiles")[places[0] : places[-1] + 1][places - places[0]][:, columns]]
            for y, x, height, width in damaged:
                band[max(y - top, 0) : max(y + height - top, 0), x : x + width] = -1
            self._map("panoptic", "r+")[top : top + len(band)] = as_colours(band + 1)
            where = np.nonzero(band >= 0)
            found = band[where]
            areas += np.bincount(found, minlength=count)
            for axis, at in enumerate((where[0] + top, where[1])):
                np.minimum.at(first[axis], found, at)
                np.maximum.at(last[axis], found, at + 1)
        del self.values["tiles"]
        (self.folder / "tiles").unlink()
        sides = last - first
        return [
            {
                "id": k + 1, "category_id": category_of(int(numbered.classes[k]), ids),
                "bbox": [int(first[1, k]), int(first[0, k]), int(sides[1, k]), int(sides[0, k])], "area": int(areas[k]),
                "score": round(float(numbered.scores[k]), 6), "iscrowd": 0,
            }
            for k in np.flatnonzero(areas).tolist()
        ]  # fmt: skip

    def _map(self, name: str, mode: Any = "r") -> NDArray[Any]:
        dtype, shape = self.values[name]
        return np.memmap(self.folder / name, dtype, mode, shape=shape)

    def write(
        self, damaged: Sequence[Box], classes: tuple[str, ...], kind: str | None, overview: bool = True
    ) -> list[Path]:
        """Write STEM_labels.tif, ... and STEM_overview.png; pixels of the boxes in `damaged` are masked and listed."""
        masked = {"labels": IGNORE, "depth": np.nan}
        for name in self.values:
            for top, left, height, width in damaged:
                self._map(name, "r+")[top : top + height, left : left + width] = masked.get(name, 0)
        paths = []
        for name in self.values:
            paths.append(Path(f"{self.stem}_{name}.tif"))
            self._write_tiff(name, paths[-1], len(classes))
        if "depth" in self.values:
            unit = Depth.of(np.zeros((1, 1), np.float32), _kind(kind)).unit
            paths.append(write(f"{self.stem}_depth.json", json.dumps({"kind": kind, "unit": unit}) + "\n"))
        if damaged:
            rows = [dict(zip(("top", "left", "height", "width"), box, strict=True)) for box in damaged]
            paths.append(write(f"{self.stem}_damaged.json", json.dumps(rows) + "\n"))
        if overview:
            paths.append(Path(f"{self.stem}_overview.png"))
            write_picture(paths[-1], self._overview(classes, kind))
        return paths

    def _write_tiff(self, name: str, path: Path, classes: int) -> None:
        import tifffile

        dtype, shape = self.values[name]
        colours: dict[str, Any] = {"photometric": "rgb" if shape[2:] == (3,) else "minisblack"}
        colours |= {"planarconfig": "contig"} if shape[2:] not in ((), (3,)) else {}
        if name == "labels":
            table = np.zeros((256, 3), np.uint16)
            table[:classes] = palette(classes).astype(np.uint16) * 257
            colours = {"photometric": "palette", "colormap": table.T}
        size = int(np.prod(shape)) * dtype.itemsize
        with replacing(path) as file, tifffile.TiffWriter(file, bigtiff=size > 4e9) as tiff:
            tiff.write(
                self._tiles(name), shape=shape, dtype=dtype, tile=(TILE, TILE), compression="zlib", metadata=None,
                software=False, maxworkers=1, **colours,
            )  # fmt: skip

    def _tiles(self, name: str) -> Iterator[NDArray[Any]]:
        (height, width), rest = self.size, self.values[name][1][2:]
        for top in range(0, height, TILE):
            band = self._map(name)[top : top + TILE]
            for left in range(0, width, TILE):
                tile = np.zeros((TILE, TILE, *rest), band.dtype)
                part = band[:, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile
            del band, part

    def _overview(self, classes: tuple[str, ...], kind: str | None) -> NDArray[np.uint8]:
        step = -(-max(self.size) // OVERVIEW)
        small = {name: np.array(self._map(name)[::step, ::step]) for name in self.values}
        if "restored" in small:
            return Restoration(small["restored"]).picture()
        if self.values.keys() & {"instances", "panoptic"}:
            numbers = of_colours(small["panoptic"]) if "panoptic" in small else small["instances"].astype(np.int64)
            return label_picture(np.where(numbers > 0, (numbers - 1) % COLOURS, COLOURS), COLOURS)
        if "labels" in small:
            return Segmentation(small["labels"], small["scores"], classes).picture()
        return Depth.of(small["depth"], _kind(kind)).picture()


def _kind(kind: str | None) -> DepthKind:
    assert kind in ("metric", "inverse_relative", "log")
    return kind  # type: ignore[return-value]
