"""`dense curate` from end to end: what it drops, keeps and writes, and how it continues."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks._planted import COPIES
from dense.cli.curate import SETTINGS, parser
from dense.curate import Settings, embeddings
from dense.curate.images import Form
from dense.curate.settings import CHOICES
from dense.data.cache import read_record
from dense.data.shards import ShardImages
from dense.data.unlabelled import ListImages, open_images
from dense.evaluate.classification.features import READOUTS
from pretrain.data import PretrainData
from tests.curate.pools import VERB, folder, save, scene
from tests.runs import Forked, call

ROOT = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("DENSE_REAL", ROOT / "nowhere")) / "photos"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Save twelve scenes, copies of three, a mirrored test image, and unusable images."""
    root = folder(tmp_path / "pool", range(12))
    save(root / "large/000.png", COPIES["twice the size"](scene(0)))
    save(root / "small/001.jpg", COPIES["half the size"](scene(1)))
    save(root / "other/002.jpg", scene(2), quality=40)
    save(root / "leak.png", COPIES["mirrored"](scene(100)))
    save(root / "blank.png", np.full((64, 64, 3), 200, np.uint8))
    save(root / "tiny.png", scene(3, 16))
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return root


def curate(*arguments: Any) -> dict[str, Any]:
    """Return the report of a successful run."""
    words = [str(argument) for argument in arguments]
    done = call(["curate", *words, *VERB])
    assert done.returncode == 0, done.stderr
    return json.loads((Path(words[words.index("--output") + 1]) / "report.json").read_text())


def lines(output: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of dropped.jsonl by file name."""
    found = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    return {Path(line["picture"]).name: line for line in found}


def contents(output: Path) -> dict[str, bytes]:
    """Return all files but embeddings."""
    found = [path for path in sorted(output.rglob("*")) if path.is_file() and "embeddings" not in path.parts]
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def test_a_pool_becomes_a_list(pool: Path, tmp_path: Path) -> None:
    """Each dropped image has its reason; the largest copy is kept; pretraining reads the list."""
    tests = folder(tmp_path / "tests", range(100, 104))
    report = curate(pool, "--held-out", tests, "--output", tmp_path / "out")
    counts = {name: number for name, number in report["counts"].items() if number}
    assert counts == {
        "images": 19, "kept": 12, "unreadable": 1, "too small": 1, "blank": 1, "held out": 1, "duplicate": 3,
    }  # fmt: skip
    dropped = lines(tmp_path / "out")
    assert {name: line["why"] for name, line in dropped.items()} == {
        "000.png": "duplicate", "001.jpg": "duplicate", "002.jpg": "duplicate", "leak.png": "held out",
        "blank.png": "blank", "tiny.png": "too small", "bad.jpg": "unreadable",
    }  # fmt: skip
    assert dropped["000.png"]["of"] == str(pool / "large/000.png")
    assert dropped["leak.png"]["of"] == str(tests / "100.png")
    assert dropped["leak.png"]["bits"] <= 2
    assert "damaged" in dropped["bad.jpg"]["words"] or "not an image" in dropped["bad.jpg"]["words"]
    kept = open_images(tmp_path / "out/images.txt")
    assert isinstance(kept, ListImages)
    assert len(kept) == 12
    assert {Path(kept.name(i)).parent.name for i in range(12)} == {"pool", "large"}
    assert len(PretrainData(str(tmp_path / "out/images.txt"), workers=0).dataset[0].views) > 0
    page = (tmp_path / "out/sheet.html").read_text()
    assert page.count("<figure>") == 2 * 4
    assert "Held-out images in the pool" in page
    assert "http" not in page


def test_crops_are_held_out_in_both_directions(tmp_path: Path) -> None:
    """A crop of a held-out image, and an image of which a crop is held out; the sheet shows the parts, others stay."""
    root = folder(tmp_path / "pool", range(6))
    large = [scene(number, 160) for number in (50, 51, 52)]
    save(root / "crop.png", large[0][10:140, 20:155])
    save(root / "original.png", large[1])
    tests = folder(tmp_path / "tests", range(100, 102))
    save(tests / "whole.png", large[0])
    save(tests / "part.png", np.ascontiguousarray(large[1][:130, :135, :][:, ::-1]))
    save(tests / "other.png", large[2])
    asked = (root, "--held-out", tests, "--output", tmp_path / "out")
    loose = ("--held-out-threshold", "0")
    done = call(["curate", *map(str, asked), *VERB, *loose])
    assert done.returncode == 0, done.stderr
    dropped = lines(tmp_path / "out")
    assert {name: Path(line["of"]).name for name, line in dropped.items()} == {
        "crop.png": "whole.png", "original.png": "part.png",
    }  # fmt: skip
    assert all(line["correlation"] > 0.9 for line in dropped.values())
    assert [dropped[name]["mirrored"] for name in ("crop.png", "original.png")] == [False, True]
    page = (tmp_path / "out/sheet.html").read_text()
    assert len(re.findall(r"<figcaption>whole.png: cosine .*?, \d+ bits, correlation \d.\d+<", page)) == 1
    assert len(re.findall(r"<figcaption>part.png: cosine .*?, correlation \d.\d+, mirrored<", page)) == 1
    assert call(["curate", *map(str, asked), *VERB, *loose, "--agreement", "0"]).returncode == 1  # all are near


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs photographs: DENSE_REAL=FOLDER with photos/")
def test_crops_of_photographs_are_held_out_and_look_alikes_stay(tmp_path: Path) -> None:
    """Of forty photographs of related animals, ten have a crop among the others, in either direction."""
    files = sorted(PHOTOS.glob("*.jpg"))[150:190]
    for number, file in enumerate(files):
        image = np.asarray(Image.open(file).convert("RGB"))
        whole, part = ("pool", "tests") if number % 2 else ("tests", "pool")
        save(tmp_path / whole / file.name, image)
        if number < 10:
            name = "cropped to 90 %" if number % 4 < 2 else "cropped to 80 %"
            save(tmp_path / part / file.name, COPIES[name](image), quality=80)
    arguments = [
        "curate",
        str(tmp_path / "pool"),
        "--held-out",
        str(tmp_path / "tests"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = call([*arguments, *VERB, "--held-out-threshold", "0"])
    assert done.returncode == 0, done.stderr
    dropped = lines(tmp_path / "out")
    assert {name: Path(line["of"]).name for name, line in dropped.items()} == {f.name: f.name for f in files[:10]}


def test_shards_hold_the_bytes_of_the_files(pool: Path, tmp_path: Path) -> None:
    """Shards can be a source again, whose copies are found in another source."""
    curate(pool, "--form", "shards", "--output", tmp_path / "out")
    kept = open_images(tmp_path / "out/shards")
    assert isinstance(kept, ShardImages)
    dropped = {line["picture"] for line in lines(tmp_path / "out").values()}
    files = [p for p in sorted(map(str, pool.rglob("*.*"))) if p not in dropped]
    assert sorted(kept.data(i) for i in range(len(kept))) == sorted(Path(p).read_bytes() for p in files)
    more = folder(tmp_path / "more", range(10, 14))
    report = curate(tmp_path / "out/shards", more, "--output", tmp_path / "again")
    assert report["counts"]["duplicate"] == 2
    assert report["kept of"] == {str(tmp_path / "out/shards"): 13, str(more): 2}
    done = call(["curate", str(tmp_path / "out/shards"), "--form", "list", "--output", str(tmp_path / "x"), *VERB])
    assert done.returncode == 1
    assert "write shards" in done.stderr
    assert not (tmp_path / "x").exists()


def test_the_same_seed_writes_the_same(pool: Path, tmp_path: Path) -> None:
    """Byte for byte, also over the results of an earlier run; another seed samples other images."""
    like = folder(tmp_path / "like", range(3))
    asked = [pool, "--like", like, "--clusters", 2, "--per-query", 1]
    for name in ("a", "b", "b"):
        curate(*asked, "--output", tmp_path / name)
    ours, theirs = (contents(tmp_path / name) for name in "ab")
    assert set(ours) == {"images.txt", "report.json", "dropped.jsonl", "sheet.html"}
    assert ours == theirs
    found = {
        curate(*asked, "--output", tmp_path / "c", "--seed", s) and contents(tmp_path / "c")["images.txt"]
        for s in (1, 2, 3)
    }
    assert found - {ours["images.txt"]}


def test_edits_are_written(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blurred and replaced images become new files; the report counts them by filter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = "def grey(p, name): return p[..., :1].repeat(3, 2) if '005' in name else '006' not in name"
    (tmp_path / "filters_of_verb.py").write_text(code)
    (tmp_path / "boxes.json").write_text(
        json.dumps({"pool/004.png": [[5, 5, 60, 60]], "pool/absent.png": [[0, 0, 1, 1]]})
    )
    report = curate("pool", "--filter", "filters_of_verb:grey", "--blur-boxes", "boxes.json", "--output", "out")
    assert report["filters"] == {
        "blur": {"dropped": 0, "changed": 1},
        "filters_of_verb:grey": {"dropped": 1, "changed": 1},
    }
    assert report["boxes of no image"] == 1
    kept = open_images("out/images.txt")
    edited = [kept.read(i) for i in range(len(kept)) if "edited" in kept.name(i)]
    assert len(edited) == 2
    assert sum((image == image[..., :1]).all() for image in edited) == 1
    assert not any((image == scene(number)).all() for image in edited for number in (4, 5))
    (tmp_path / "boxes.json").write_text(json.dumps({"absent.png": [[0, 0, 1, 1]]}))
    done = call(["curate", "pool", "--blur-boxes", "boxes.json", "--output", "out", *VERB])
    assert "no image with boxes is in the pool" in done.stderr


def test_retrieval_of_a_curated_set(pool: Path, tmp_path: Path) -> None:
    """The nearest images are kept; with --with-curated the copies in the pool are dropped."""
    like = folder(tmp_path / "like", range(5, 7))
    report = curate(pool, "--like", like, "--retrieve", "nearest", "--per-query", 1, "--output", tmp_path / "a")
    assert report["retrieval"] == "nearest"
    assert (tmp_path / "a/images.txt").read_text().split() == [str(pool / "005.png"), str(pool / "006.png")]
    report = curate(
        pool, "--like", like, "--with-curated", "--retrieve", "nearest", "--per-query", 1, "--output", tmp_path / "b"
    )
    assert report["kept of"][str(like)] == 2
    assert {name for name, line in lines(tmp_path / "b").items() if line["why"] == "duplicate"} >= {
        "005.png",
        "006.png",
    }
    report = curate(pool, "--like", like, "--retrieve", "nearest", "--per-query", 100, "--output", tmp_path / "c")
    assert report["counts"]["not retrieved"] == 0


def test_a_total_is_shared_between_sources(tmp_path: Path) -> None:
    """Shares are as equal as the sources allow."""
    pools = [
        folder(tmp_path / "a", range(8)),
        folder(tmp_path / "b", range(20, 22)),
        folder(tmp_path / "c", range(30, 36)),
    ]
    report = curate(*pools, "--total", 8, "--output", tmp_path / "out")
    assert list(report["kept of"].values()) == [3, 2, 3]
    assert report["counts"]["over the total"] == 8


@pytest.mark.parametrize(("threshold", "agreement", "alone"), [(0.3, 0, True), (1.0, 0, False), (0.3, 0.7, False)])
def test_many_duplicates_by_cosine_alone_cause_a_warning(
    threshold: float, agreement: float, alone: bool, tmp_path: Path
) -> None:
    """Different scenes that only a low threshold makes duplicates; a copy by hash, or by pixels, does not count."""
    root = folder(tmp_path / "pool", range(12))
    save(root / "small/001.jpg", COPIES["half the size"](scene(1)))
    options = ["--threshold", str(threshold), "--agreement", str(agreement)]
    done = call(["curate", str(root), "--output", str(tmp_path / "out"), *VERB, *options])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    missed, all_ = report["duplicates that hashes miss"], report["counts"]["duplicate"]
    assert missed == all_ - 1
    assert (missed > 13 / 5) == alone == ("more than a fifth of the pool" in done.stdout)
    assert (f"{all_} duplicate ({missed} of them missed by hashes)" in done.stdout) == alone
    assert ("raise --threshold 0.3" in done.stdout) == alone


def test_a_total_of_one_source_is_a_sample(tmp_path: Path) -> None:
    """The first images of a source may be of its first classes only, so the seed decides which are kept."""
    root = folder(tmp_path / "pool", range(16))
    found = []
    for seed in (0, 1):
        curate(root, "--total", 6, "--seed", seed, "--output", tmp_path / "out")
        found.append([Path(line).stem for line in (tmp_path / "out/images.txt").read_text().splitlines()])
    assert [len(names) for names in found] == [6, 6]
    assert all(names == sorted(names) != [f"{n:03d}" for n in range(6)] for names in found)
    assert found[0] != found[1]


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such folder, list or shards: nowhere"),
        (["empty"], "no images in"),
        (["bad"], "none of 2 images is usable: 2 unreadable"),
        (["pool", "--like", "bad"], "none of 2 curated images is usable"),
        (["pool", "--held-out", "bad"], "none of 2 held-out images is usable"),
        (["pool", "--held-out", "pool"], "none of 3 images is kept: 3 held out"),
        (["pool", "--like", "pool", "pool"], "pool is named twice"),
        (["pool", "--held-out", "pool", "--held-out-crops", "2"], "crops of 2.0"),
        (["pool", "--with-curated"], "--with-curated needs --like"),
        (["pool", "--threshold", "7"], "threshold=7.0: expected 0 to 1"),
        (["pool", "--filter", "json:lods"], "Did you mean loads"),
        (["pool", "--blur-boxes", "none.json"], "no such file: none.json"),
        (["pool", "--crop", "64"], "does not fit"),
        (["pool", "--treshold", "0.9"], "Did you mean --threshold"),
        (["pool", "--part", "0"], "part 0"),
    ],
)
def test_errors_are_one_line(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "pool", range(3))
    (tmp_path / "empty").mkdir()
    for name in ("bad/a.png", "bad/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no")
    done = call(["curate", *arguments[:1], "--output", "out", *VERB, *arguments[1:]])
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_only_own_results_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the pool and foreign folders are never replaced."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "pool", range(3))
    folder(tmp_path / "mine/shards", range(3, 6))
    curate("pool", "--form", "shards", "--output", "out")
    before = contents(tmp_path)
    listed = tmp_path / "elsewhere.txt"
    listed.write_text("mine/shards/003.png\n")
    for asked, output, words in (
        ("out/shards", "out", "out/shards is among the images"),
        ("out/shards/000000.tar", "out", "out/shards is among the images"),
        ("mine", "mine", "mine/shards is among the images"),
        ("elsewhere.txt", "mine", "mine/shards is among the images"),
        ("pool", "mine", "mine/shards exists and is of no earlier curation"),
    ):
        done = call(["curate", asked, "--form", "shards", "--output", output, *VERB])
        assert done.returncode == 1
        assert words in done.stderr
    assert contents(tmp_path) == before | {"elsewhere.txt": listed.read_bytes()}


def test_random_initialisation_is_reported(tmp_path: Path) -> None:
    root = folder(tmp_path / "pool", range(3))
    backbone = ["--backbone", "vit_tiny_patch16_224", "--set", "img_size=48", "--set", "depth=1"]
    done = call(["curate", str(root), "--output", str(tmp_path / "out"), *VERB, *backbone])
    assert done.returncode == 0, done.stderr
    assert "the weights are random" in done.stdout


def test_a_missing_faiss_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    done = call(["curate", str(folder(tmp_path / "pool", range(2))), "--output", str(tmp_path / "out"), *VERB])
    assert done.returncode == 1
    assert "pip install 'dino-dense[curate]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_only_damaged_parts_and_changed_images_are_embedded_again(tmp_path: Path) -> None:
    root, output = folder(tmp_path / "pool", range(9)), tmp_path / "out"
    curate(root, "--part", 3, "--output", output)
    parts = sorted(output.glob("embeddings/*/*.part"))
    assert len(parts) == 3
    before = contents(output)
    times = [part.stat().st_mtime_ns for part in parts]
    parts[0].write_bytes(parts[0].read_bytes()[:-9])
    curate(root, "--part", 3, "--output", output)
    assert contents(output) == before
    assert [part.stat().st_mtime_ns == t for part, t in zip(parts, times, strict=True)] == [False, True, True]
    save(root / "008.png", COPIES["twice the size"](scene(1)))
    assert curate(root, "--part", 3, "--output", output)["counts"]["duplicate"] == 1


def test_a_killed_run_continues(tmp_path: Path) -> None:
    """After SIGKILL the same command reuses complete parts and ends like a run that was never stopped."""
    root, output = folder(tmp_path / "pool", range(16)), tmp_path / "killed"
    arguments = ["curate", str(root), "--part", "1", "--batch", "1", *VERB]
    process = Forked([*arguments, "--output", str(output)], tmp_path)
    while len(parts := list(output.glob("embeddings/*/*.part"))) < 2 and process.is_alive():
        time.sleep(0.001)
    assert process.status(signal.SIGKILL) == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (output / "report.json").exists()
    times = {part: part.stat().st_mtime_ns for part in parts}
    for name in ("killed", "whole"):
        done = call([*arguments, "--output", str(tmp_path / name)])
        assert done.returncode == 0, done.stderr
    assert {part: part.stat().st_mtime_ns for part in parts} == times
    assert contents(output) == contents(tmp_path / "whole")


def test_a_part_is_continued_where_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted part has been saved after each period; what follows equals a run that was never interrupted."""
    monkeypatch.setattr(embeddings, "SAVED_EVERY", 0)
    root, embedded, stop = folder(tmp_path / "pool", range(11)), list[int](), {3}
    save(root / "001.png", scene(1, 16))  # too small
    (root / "006.png").write_bytes(b"no")
    embed = embeddings.Embedder._embed

    def interrupted(self: Any, batch: Any) -> Any:
        if len(embedded) in stop:
            stop.clear()
            raise KeyboardInterrupt
        embedded.append(len(batch))
        return embed(self, batch)

    monkeypatch.setattr(embeddings.Embedder, "_embed", interrupted)
    arguments = ["curate", str(root), "--part", "9", "--batch", "2", *VERB]
    assert call([*arguments, "--output", str(tmp_path / "a")]).returncode == 130
    assert embedded == [2, 2, 2]
    assert call([*arguments, "--output", str(tmp_path / "a")]).returncode == 0
    assert embedded == [2, 2, 2, 2, 1, 2]
    assert call([*arguments, "--output", str(tmp_path / "b")]).returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    ours, theirs = ([read_record(p) for p in sorted((tmp_path / name).rglob("*.part"))] for name in "ab")
    assert len(ours) == 2
    for (tensors, facts), (others, same) in zip(ours, theirs, strict=True):
        assert facts == same
        assert all(map(torch.equal, tensors, others))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the processes of Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    """Workers end with the main process, also if it cannot end them."""
    root, options = folder(tmp_path / "pool", range(40)), ["--batch", "1", "--part", "1", "--workers", "2"]
    process = Forked(["curate", str(root), *VERB, *options, "--output", str(tmp_path / "out")], tmp_path)
    most = 0
    while not list(tmp_path.glob("out/embeddings/*/*.part")) and process.is_alive():
        time.sleep(0.01)
        most = max(most, len(running(process.pid)))
    assert process.status(number) != 0
    assert most == 3
    deadline = time.monotonic() + 10
    while (left := running(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def running(group: int) -> list[str]:
    """Return the processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] if int(of_group) == group and state not in "ZX" else []
    return found


def test_workers_change_nothing(pool: Path, tmp_path: Path) -> None:
    """The number of worker processes does not change the result."""
    for workers in ("0", "1"):
        done = call(["curate", str(pool), "--output", str(tmp_path / workers), *VERB, "--workers", workers])
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "0") == contents(tmp_path / "1")


def test_the_parser_knows_every_setting() -> None:
    """Literal defaults and choices of the parser are those of the code, which it does not import."""
    actions = {action.dest: action for action in parser()._actions}
    for name, value in asdict(Settings()).items():
        assert actions[name].default == value, name
        known = get_args(CHOICES[name]) if name in CHOICES else None
        assert actions[name].choices == known, name
    assert actions["readout"].choices == READOUTS
    assert actions["form"].choices == get_args(Form)
    assert [*SETTINGS, "seed"] == [field.name for field in fields(Settings)]


# ---- docs


def test_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and code run unchanged but for the backbone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    page = (ROOT / "docs/curate.md").read_text()
    pool = re.findall(r"^dense curate (\w+) ", page, re.M)[0]
    for name, numbers in {
        pool: range(6),
        "MORE": range(10, 14),
        "CURATED": range(20, 22),
        "TEST": range(30, 32),
    }.items():
        folder(tmp_path / name, numbers)
    (tmp_path / "boxes.json").write_text(json.dumps({f"{pool}/000.png": [[1, 1, 30, 30]]}))
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, re.S)
    (tmp_path / "my_filters.py").write_text(
        next(text for language, text in blocks if language == "python" and "def safe" in text)
    )
    commands = [
        line
        for language, text in blocks
        if not language
        for line in re.sub(r"\\\n\s*", "", text).splitlines()
        if line.startswith("dense curate")
    ]
    assert len(commands) >= 4
    for line in commands:
        words = shlex.split(line.replace("dino_vits16 --weights FILE", "scenes_tiny"))[1:]
        scenes = ["--scenes", "8", "--scene-size", "48"] if "scenes:train" in words else []
        done = call([*words, "--workers", "0", "--resize", "48", "--crop", "48", "--min-side", "32", *scenes])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for language, text in blocks:
        if language == "python" and "def safe" not in text:
            exec(text.replace('"dino_vits16", weights="FILE"', '"scenes_tiny"'), {})
    shutil.rmtree(tmp_path / "curated")
