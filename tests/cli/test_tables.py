"""`dense features` as Parquet tables and zarr stores: the numbers of the .npz files, written in parts and joined."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.cli import features
from dense.data.scenes import render
from tests.cli.test_evaluate import BACKBONE
from tests.cli.test_many_machines import equal
from tests.runs import call, in_processes


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images, two of them of one name and one that cannot be read."""
    root = tmp_path / "images"
    for number in range(6):
        path = root / f"{number % 3}/{number if number else 'a'}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(0, number, (32, 40)).image).save(path)
    Image.fromarray(render(0, 7, (40, 32)).image).save(root / "1/a.png")
    (root / "0/bad.png").write_bytes(b"no")
    return root


@pytest.mark.parametrize("per", ["image", "patch"])
def test_rows_are_those_of_the_maps(per: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(features, "GROUP", 3)
    table = tmp_path / "tables/all.parquet"
    argv = ["features", str(images), *BACKBONE, "--output", str(tmp_path / "out"), "--layers", "1,3"]
    done = call([*argv, "--table", str(table), "--per", per])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in table.parent.iterdir()] == ["all.parquet"]
    rows = parquet.read_table(table)
    facts = json.loads(rows.schema.metadata[b"dense"])
    assert facts["layers"] == [1, 3] and facts["backbone"]["patch"] == 8
    names = list(json.loads((tmp_path / "out/features.json").read_text())["images"])
    assert list(dict.fromkeys(rows["name"].to_pylist())) == [name.removesuffix(".npz") for name in names]
    assert len(names) == 7 and "a_2.npz" in names
    assert parquet.ParquetFile(table).num_row_groups == 3
    data = rows.to_pydict()
    start = 0
    for name in names:
        saved = np.load(tmp_path / "out" / name)
        for layer in (1, 3):
            maps = saved[f"map_{layer}"]  # C, h, w
            if per == "image":
                assert np.array_equal(data[f"class_{layer}"][start], saved[f"prefix_{layer}"][0].astype(np.float16))
                mean = maps.reshape(len(maps), -1).mean(1)
                assert np.allclose(data[f"mean_{layer}"][start], mean, rtol=2e-3, atol=1e-4)
                continue
            for place in range(maps[0].size):
                row, column = data["row"][start + place], data["column"][start + place]
                found = np.array(data[f"patch_{layer}"][start + place], np.float16)
                assert np.array_equal(found, maps[:, row, column].astype(np.float16))
        assert (data["height"][start], data["width"][start]) == ((40, 32) if name == "a_2.npz" else (32, 40))
        assert Path(data["path"][start]).is_file()
        start += 1 if per == "image" else maps[0].size
    assert start == rows.num_rows


def test_two_processes_give_one_table(images: Path, tmp_path: Path) -> None:
    """File for file; parts of a process that was killed are made again."""
    pytest.importorskip("pyarrow")
    tables = [tmp_path / f"{name}.parquet" for name in ("one", "two")]
    argv = ["features", *map(str, [images] * 20), *BACKBONE, "--format", "none"]  # several groups
    assert call([*argv, "--output", str(tmp_path / "one"), "--table", str(tables[0])]).returncode == 0
    parts = tables[1].with_name(".two.parquet.parts")
    parts.mkdir()
    (parts / "00000001.parquet").write_bytes(b"half")
    in_processes([*argv, "--output", str(tmp_path / "two"), "--table", str(tables[1])], tmp_path)
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert not parts.exists()


def test_a_store_holds_the_maps(images: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    argv = ["features", str(images), *BACKBONE, "--layers", "last"]
    found = equal([*argv, "--format", "zarr"], tmp_path)
    assert "features.zarr/a/map_3/zarr.json" in found
    assert call([*argv, "--output", str(tmp_path / "npz")]).returncode == 0
    store = zarr.open_group(str(tmp_path / "two/features.zarr"), mode="r")
    assert store.attrs["layers"] == [3]
    for name in json.loads(found["features.json"])["images"]:
        saved = np.load(tmp_path / f"npz/{name}.npz")
        for key in saved.files:
            assert np.array_equal(store[name][key][...], saved[key])


def test_a_missing_package_is_named(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, options in (("pyarrow", ["--table", str(tmp_path / "t.parquet")]), ("zarr", ["--format", "zarr"])):
        monkeypatch.setitem(sys.modules, package, None)
        done = call(["features", str(images), *BACKBONE, "--output", str(tmp_path / "out"), *options])
        assert done.returncode == 1
        assert f"{package} is missing" in done.stderr and "pip install 'dino-dense[tables]'" in done.stderr
    done = call(["features", str(images), *BACKBONE, "--output", str(tmp_path / "out"), "--table", "t.csv"])
    assert "t.csv: expected a name that ends in .parquet" in done.stderr
