"""Features of many images as one Parquet table: a row per image or per patch, in parts that are joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dense.backbone.extract import need
from dense.files import replacing
from heads.features import Features

Per = Literal["image", "patch"]


class Table:
    """Rows of features, written in parts of some images each, which `join` makes one file.

    Columns of an image: name, path, height, width and per layer N class_N (with a class token) and mean_N, the
    mean of its patches. Columns of a patch: name, path, height, width of the image, row, column on its grid and per
    layer patch_N. Features are lists of float16. A part is a row group, so that a reader takes a table piece by piece.
    """

    def __init__(self, path: Path, per: Per = "image") -> None:
        self.path, self.per = path, per
        self.arrow = need("pyarrow")
        self.parquet = need("pyarrow.parquet")
        self.parts = path.with_name(f".{path.name}.parts")
        self._waiting: list[Any] = []

    def add(self, name: str, path: str, features: Features) -> None:
        """Take the rows of an image (a batch of one)."""
        columns: dict[str, Any] = {}
        for number, (layer, maps) in enumerate(zip(features.layers, features.maps, strict=True)):
            if self.per == "patch":
                columns[f"patch_{layer}"] = maps[0].flatten(1).T
            else:
                if features.has_class_token and features.prefix[number].shape[1]:
                    columns[f"class_{layer}"] = features.prefix[number][0, :1]
                columns[f"mean_{layer}"] = maps[0].flatten(1).mean(1)[None]
        height, width = features.image_size
        rows = len(next(iter(columns.values())))
        known: dict[str, Any] = {
            "name": [name] * rows, "path": [path] * rows,
            "height": np.full(rows, height, np.int32), "width": np.full(rows, width, np.int32),
        }  # fmt: skip
        if self.per == "patch":
            across = features.maps[0].shape[-1]
            known["row"], known["column"] = (n.astype(np.int32) for n in np.divmod(np.arange(rows), across))
        arrow = self.arrow
        lists = {
            column: arrow.FixedSizeListArray.from_arrays(
                arrow.array(values.cpu().float().numpy().astype(np.float16).ravel()), values.shape[1]
            )
            for column, values in columns.items()
        }
        self._waiting.append(arrow.table(known | lists))

    def write_part(self, number: int) -> None:
        """Write the rows since the last part."""
        if self._waiting:
            rows = self.arrow.concat_tables(self._waiting)
            with replacing(self.parts / f"{number:08d}.parquet", rows.nbytes) as file:
                self.parquet.write_table(rows, file, row_group_size=len(rows))
            self._waiting.clear()
        else:
            (self.parts / f"{number:08d}.parquet").unlink(missing_ok=True)

    def join(self, numbers: Iterable[int], facts: dict[str, Any]) -> None:
        """Write the table from its parts, a row group each, with these facts as its metadata; remove the parts."""
        parts = [path for n in numbers if (path := self.parts / f"{n:08d}.parquet").is_file()]
        schema = self.parquet.read_schema(parts[0]).with_metadata({"dense": json.dumps(facts)})
        with (
            replacing(self.path, sum(path.stat().st_size for path in parts)) as file,
            self.parquet.ParquetWriter(file, schema) as table,
        ):
            for path in parts:
                rows = self.parquet.read_table(path).cast(schema)
                table.write_table(rows, row_group_size=len(rows))
        shutil.rmtree(self.parts)
