"""Verbs in several processes, as torchrun and SLURM start them: two give what one gives, file for file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dense.data.scenes import render
from dense.files import RunFolder, write
from dense.items import Items
from dense.media.video import VideoWriter
from dense.ranks import ALONE, Ranks, ranks
from tests.cli.test_evaluate import BACKBONE
from tests.curate.pools import VERB
from tests.data.scientific_files import labelled
from tests.predict.models import model, queries
from tests.runs import call, in_processes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of two sizes, two of which cannot be read, and a video."""
    root = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(40, 50), (40, 50), (61, 33), (40, 50), (40, 50)]):
        path = root / f"{'deep' if number == 3 else '.'}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(render(3, number, size).image).save(path)
    (root / "0b.png").write_bytes(b"no image")
    (root / "z.jpg").write_bytes(b"")
    writer = VideoWriter(root / "film.mp4", 10)
    for number in range(3):
        writer.add(render(4, number, (32, 48)).image)
    writer.close()
    return root


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of two tasks."""
    folder = tmp_path_factory.mktemp("models")
    model("depth", "labels").save_pretrained(folder / "joint")
    queries().save_pretrained(folder / "instance")
    return {name: folder / name for name in ("joint", "instance")}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, the hidden ones too, but embeddings."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "embeddings" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def equal(argv: list[str], tmp_path: Path, option: str = "--output") -> dict[str, bytes]:
    """Run a verb in one process and in two, compare all files and return them."""
    one, two = tmp_path / "one", tmp_path / "two"
    done = call([*argv, option, str(one)])
    assert done.returncode == 0, done.stderr
    started = in_processes([*argv, option, str(two)], tmp_path)
    found = contents(one)
    assert list(contents(two)) == list(found)
    assert [name for name, data in contents(two).items() if data != found[name]] == []
    outputs = [process.output for process in started]
    said = sum("has ended its share" in output for output in outputs)
    assert said + outputs.count("") == 1  # the second says nothing if the first has joined the results by then
    return found


@pytest.mark.parametrize("task", ["joint", "instance"])
def test_predict(task: str, images: Path, saved: dict[str, Path], tmp_path: Path) -> None:
    found = equal(["predict", str(saved[task]), str(images)], tmp_path)
    assert "film_predicted.mp4" in found
    assert len([name for name in found if name.endswith("overlay.png")]) == 5
    if task == "instance":
        ids = [image["file_name"] for image in json.loads(found["instances.json"])["images"]]
        assert ids == ["0.png", "1.png", "2.png", "4.png", "deep/3.png"]


@pytest.mark.parametrize("method", ["tokencut", "kmeans", "cocluster"])
def test_discover(method: str, images: Path, tmp_path: Path) -> None:
    count = ["--count", "3"] if method == "cocluster" else []
    found = equal(
        ["discover", str(images), *BACKBONE, "--size", "32", "--method", method, "--batch", "2", *count], tmp_path
    )
    content = json.loads(found["annotations.json"])
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5]
    assert {"sheet.png", "film_discovered.mp4"} < set(found)


def test_discover_similarity(images: Path, tmp_path: Path) -> None:
    argv = ["discover", *(str(images / f"{n}.png") for n in (0, 1, 2)), *BACKBONE, "--size", "32"]
    assert "sheet.png" in equal([*argv, "--method", "similarity", "--point", "5,5"], tmp_path)


def test_segment(images: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[:20] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = equal(
        ["segment", str(images), "--like", f"{images / '0.png'}={tmp_path / 'mask.png'}", *BACKBONE, "--resize", "48"],
        tmp_path,
    )
    assert "model/model.safetensors" in found


def test_features(images: Path, tmp_path: Path) -> None:
    found = equal(["features", str(images), *BACKBONE, "--pca"], tmp_path)
    assert list(json.loads(found["features.json"])["images"]) == [f"{n}.npz" for n in (0, 1, 2, 4, 3)]


def test_curate(images: Path, tmp_path: Path) -> None:
    found = equal(["curate", str(images), "--part", "2", "--batch", "2", *VERB], tmp_path)
    assert "images.txt" in found
    embedded = [sorted(p.name for p in (tmp_path / n / "embeddings").rglob("*.part")) for n in ("one", "two")]
    assert embedded[0] == embedded[1]


def test_the_last_process_joins_and_a_missing_one_is_named(
    images: Path, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process waits for another; the same command makes what is missing, with any number of processes."""
    argv = ["predict", str(saved["instance"]), str(images), "--output"]
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    done = call([*argv, str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    assert "process 0 of 3 has ended its share; 5 of 8 are still to be done, by process 1, 2" in done.stdout
    assert not (tmp_path / "two/instances.json").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.png")}
    monkeypatch.setenv("SLURM_PROCID", "1")  # 1 and 2 were killed, and there are two processes now
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    call([*argv, str(tmp_path / "two")])
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert "wrote predictions for 6 of 8" in call([*argv, str(tmp_path / "two")]).stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name)
    call([*argv, str(tmp_path / "one")])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("verb", ["features", "discover"])
def test_a_channel_that_changed_is_read_again(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of one file per channel is made again, whichever of its files has changed."""
    images = labelled(tmp_path, 3, names=["dapi", "actin"], white=4000) / "images"
    argv = [verb, str(images), *BACKBONE, "--channels", "dapi", "actin", "--levels", "0", "4095"]
    argv += ["--method", "kmeans", "--size", "32"] if verb == "discover" else []
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert call([*argv, "--output", str(tmp_path / "out")]).returncode == 0
    tifffile.imwrite(images / "cell0_actin.tif", np.full((48, 64), 4000, np.uint16))
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name)
    for folder in ("out", "new"):
        assert call([*argv, "--output", str(tmp_path / folder)]).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_what_a_killed_process_left_is_continued(tmp_path: Path) -> None:
    """An item counts once its line is whole, its file and the settings are unchanged, and its group is complete."""
    names, versions = list("abcdef"), ["1"] * 6

    def opened(key: str = "k", **options: Any) -> RunFolder:
        return RunFolder(tmp_path, "predict", {"size": 1}, key=key, **options)

    with opened() as run:
        items = Items(names, run, versions, group=2)
        for index in (0, 1, 2, 4):
            items.done(index, {"n": index})
    record = tmp_path / ".dense-predict.jsonl"
    record.write_text(record.read_text() + '\n{"item": "f", "ke')
    with opened() as run:
        items = Items(names, run, versions, group=2)
        assert items.todo == [2, 3, 4, 5]
        items.done(5, {"n": 5})
        with items.joining() as found:
            assert found is None
        assert Items(names, run, ["1", "2", *versions[2:]]).todo == [1, 3]
        items.done(3, {"n": 3})
        with items.joining() as found:
            assert found == [{"n": n} for n in range(6)]
    assert not record.exists()  # complete, and no file was written
    with opened() as run:
        Items(names, run).done(0)
        write(tmp_path / "a.png", "x")
    with opened(key="other") as run:
        assert Items(names, run).todo == list(range(6))
    with opened(overwrite=True) as run:  # the same settings: continues
        assert Items(names, run).todo == [1, 2, 3, 4, 5]
    with opened(key="other", overwrite=True):
        assert not (tmp_path / "a.png").exists()


HOLDER = """
import sys
from pathlib import Path
from dense.files import RunFolder
from dense.ranks import ranks
with RunFolder(Path(sys.argv[1]), "predict", {}, ranks=ranks()):
    print("in", flush=True)
    sys.stdin.readline()
"""


def test_the_lock_admits_the_processes_of_one_run(tmp_path: Path) -> None:
    """Another run, alone or of several processes, is refused until all of them have ended."""
    folder = tmp_path / "out"

    def hold(rank: int, run: str = "a") -> subprocess.Popen[str]:
        variables = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": run}
        command = [sys.executable, "-c", HOLDER, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=variables, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    held = [hold(0), hold(1)]
    try:
        assert [one.stdout.readline() for one in held if one.stdout] == ["in\n", "in\n"]
        with pytest.raises(OSError, match="is in use: dense predict, process"), RunFolder(folder, "predict", {}):
            pass
        held[0].communicate("\n")
        with pytest.raises(OSError, match="is in use"), RunFolder(folder, "predict", {}):
            pass
        other = hold(0, "b")
        assert "is in use: dense predict" in other.communicate()[1]
        held[1].communicate("\n")
        with RunFolder(folder, "predict", {}):
            pass
        assert not list(folder.rglob("*"))
    finally:
        for one in held:
            one.kill()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ALONE),
        ({"WORLD_SIZE": "4"}, ALONE),  # Lightning sets it alone
        ({"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        ({"RANK": "2", "WORLD_SIZE": "4", "MASTER_PORT": "9"}, Ranks(2, 4, "MASTER_PORT=9 4 processes")),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Ranks(1, 2, "2 processes")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, ALONE),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, ALONE),
    ],
)
def test_processes_are_those_of_the_environment(variables: dict[str, str], expected: Ranks) -> None:
    assert ranks(variables) == expected


@pytest.mark.parametrize("given", [("4", "4"), ("-1", "2"), ("x", "2")])
def test_a_wrong_number_of_a_process_is_named(given: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"RANK={given[0]} WORLD_SIZE={given[1]}: expected"):
        ranks(dict(zip(("RANK", "WORLD_SIZE"), given, strict=True)))
    with pytest.raises(ValueError, match="RANK=1 without WORLD_SIZE"):
        ranks({"RANK": "1"})
