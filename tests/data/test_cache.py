"""The cache of features: correct, up to date, complete after a kill, and shared by processes that use it at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dense.data.cache import (
    DamagedRecord,
    FeatureCache,
    key_digest,
    read_record,
    sweep,
    weights_digest,
    write_record,
)
from dense.data.labelled.files import file_identity
from dense.data.labelled.sample import Identity
from tests.data.labelled_files import image_file

FORK = multiprocessing.get_context("fork")


class Counting:
    """Features that hold the mean of their image: a map and a prefix; counts images."""

    def __init__(self) -> None:
        self.images = 0
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.images += len(images)
        self.batches.append(tuple(images.shape))
        mean = images.float().mean((1, 2, 3))
        height, width = images.shape[2] // 4, images.shape[3] // 4
        return [mean[:, None, None, None].expand(-1, 5, height, width), mean[:, None, None].expand(-1, 2, 5)]


def image(number: int, size: tuple[int, int] = (8, 12)) -> Tensor:
    return torch.full((3, *size), number, dtype=torch.uint8)


def identities(count: int, version: str = "1") -> list[Identity]:
    return [Identity(f"image {i}", version) for i in range(count)]


def cache(folder: Path, weights: str = "w", **options: Any) -> FeatureCache:
    return FeatureCache(folder, {"weights": weights, "layers": [2, 5]}, Counting(), **options)


def computed(cache: FeatureCache) -> int:
    assert isinstance(cache.compute, Counting)
    return cache.compute.images


def features(
    subject: FeatureCache, images: Sequence[Identity], load: Callable[[int], Tensor] = image, batch_size: int = 8
) -> list[list[Tensor]]:
    """The tensors of each image, computed if they are absent."""
    subject.fill(images, lambda number, copy: load(number), batch_size=batch_size)
    found = [subject.get(identity) for identity in images]
    assert None not in found
    return [tensors for tensors in found if tensors is not None]


# ---- what is read is what was computed


def test_computed_once(tmp_path: Path) -> None:
    """The second time from disk, also by another process's cache; in bf16, with every shape."""
    first = cache(tmp_path)
    before = features(first, identities(5), image)
    second = cache(tmp_path)
    after = features(second, identities(5), image)
    assert (computed(first), computed(second)) == (5, 0)
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        assert [tuple(t.shape) for t in b] == [(5, 2, 3), (2, 5)]
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype == torch.bfloat16
            assert torch.equal(x, y)
            assert (y == number).all()


def test_sizes_may_differ(tmp_path: Path) -> None:
    """Batches hold one size each, records belong to their images."""
    sizes = [(8, 8), (8, 12), (8, 8), (16, 8), (8, 12), (8, 8)]
    subject = cache(tmp_path)
    result = features(subject, identities(6), lambda i: image(i, sizes[i]), batch_size=3)
    assert [tuple(r[0].shape[1:]) for r in result] == [(h // 4, w // 4) for h, w in sizes]
    assert [int(r[1][0, 0]) for r in result] == list(range(6))
    assert isinstance(subject.compute, Counting)
    assert max(shape[0] for shape in subject.compute.batches) == 2
    again = features(cache(tmp_path), identities(6), lambda i: image(i, sizes[i]))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(result, again, strict=True))


def test_fill_and_copies(tmp_path: Path) -> None:
    """A fixed number of varied copies; what is known is not stored again; progress ends at the end."""
    subject, calls = cache(tmp_path, copies=2), []
    subject.put(identities(9)[4], [torch.zeros(1)], copy=0)
    count = subject.fill(identities(9), lambda i, copy: image(i + 100 * copy), progress=lambda *n: calls.append(n))
    assert (count, computed(subject)) == (17, 18)  # a group is computed whole, and the record in it stays
    assert calls[-1] == (18, 18)
    assert calls == sorted(calls)
    for copy in range(2):
        result = subject.get(identities(9)[3], copy)
        assert result is not None
        assert (result[0] == 3 + 100 * copy).all()
    assert subject.fill(identities(9), lambda i, copy: image(0)) == 0
    with pytest.raises(ValueError, match="copy=2: expected 0 to 1"):
        subject.get(identities(1)[0], 2)


def test_features_may_be_written_to(tmp_path: Path) -> None:
    """In memory: the file stays."""
    subject = cache(tmp_path)
    features(subject, identities(1), image)
    for _ in range(2):
        result = subject.get(identities(1)[0])
        assert result is not None
        assert (result[0] == 0).all()
        result[0] += 1


def test_other_precisions(tmp_path: Path) -> None:
    """Named in the key, so that they do not mix."""
    for dtype in (torch.float32, torch.float16):
        assert features(cache(tmp_path, dtype=dtype), identities(1))[0][0].dtype == dtype
    assert len(list(tmp_path.glob("*/key.json"))) == 2
    with pytest.raises(ValueError, match=r"dtype=torch.int8: expected torch.bfloat16"):
        cache(tmp_path, dtype=torch.int8)


def test_workers_read(tmp_path: Path) -> None:
    """A pickled cache reads, without what computes features."""
    subject = cache(tmp_path)
    features(subject, identities(2))
    worker: FeatureCache = pickle.loads(pickle.dumps(subject))
    result = worker.get(identities(2)[1])
    assert result is not None
    assert (result[0] == 1).all()
    assert worker.compute is None


# ---- what is stale or damaged is computed again


def test_other_weights_are_another_cache(tmp_path: Path) -> None:
    """Any byte, name or shape of a state dict counts, and any fact of the key."""
    module = nn.Linear(3, 3)
    digests = [weights_digest(module.state_dict())]
    with torch.no_grad():
        module.weight[0, 0] = torch.nextafter(module.weight[0, 0], torch.tensor(2.0))
    digests.append(weights_digest(module.state_dict()))
    digests.append(weights_digest({f"x.{k}": v for k, v in module.state_dict().items()}))
    digests.append(weights_digest({k: v.half() for k, v in module.state_dict().items()}))
    digests.append(weights_digest({k: v[None] for k, v in module.state_dict().items()}))
    assert len(set(digests)) == 5
    assert digests[1] == weights_digest(dict(reversed(module.state_dict().items())))
    for number, digest in enumerate(digests):
        subject = cache(tmp_path, digest)
        features(subject, identities(1), image)
        assert computed(subject) == 1, number
    assert key_digest({"a": 1, "b": (2, 3)}) == key_digest({"b": [2, 3], "a": 1}) != key_digest({"a": 1, "b": [2]})
    with pytest.raises(ValueError, match="key must be plain data"):
        FeatureCache(tmp_path, {"model": module})


def test_a_changed_image_replaces_its_record(tmp_path: Path) -> None:
    """Known by size and time; no rubbish is left behind."""
    path = image_file(tmp_path / "a.png")
    subject = cache(tmp_path / "cache")
    features(subject, [file_identity(path)], image)
    image_file(path, size=(30, 30))
    assert subject.get(file_identity(path)) is None
    features(subject, [file_identity(path)], lambda _: image(9))
    assert (features(subject, [file_identity(path)], image)[0][0] == 9).all()
    os.utime(path, ns=(1, 1))
    assert subject.get(file_identity(path)) is None
    assert len(list((tmp_path / "cache").rglob("*.features"))) == 1


def damage(path: Path, how: str) -> None:
    """Spoil a record."""
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    elif how == "facts":
        data[data.index(b"version")] ^= 0x20
    elif how == "length":
        data[0] ^= 1
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "header":
        data = data[:7]
    elif how == "empty":
        data = bytearray()
    elif how == "longer":
        data += b"x"
    elif how == "bare":
        data = bytearray(save({"0": torch.zeros(5, 2, 3), "1": torch.zeros(2, 5)}))
    elif how == "former":  # the format of an earlier version: magic bytes, sizes, a checksum, JSON and tensors
        data = bytearray(b"dense-records-1\n" + struct.pack("<QII", 168, 40, 7) + b" " * 136)
    else:
        data = bytearray(b"something else entirely, and long enough to be looked at" * 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how",
    ["flipped", "facts", "length", "truncated", "header", "empty", "longer", "bare", "former", "foreign"],
)
def test_damaged_records(tmp_path: Path, how: str) -> None:
    """Detected, computed again and replaced."""
    subject = cache(tmp_path)
    features(subject, identities(3))
    path = subject.path(identities(3)[1])
    damage(path, how)
    with pytest.raises(DamagedRecord):
        read_record(path)
    assert subject.get(identities(3)[1]) is None
    result = features(subject, identities(3))
    assert computed(subject) == 6
    assert [int(r[0][0, 0, 0]) for r in result] == [0, 1, 2]
    assert len(list(tmp_path.rglob("*.features"))) == 3


def test_every_byte_counts(tmp_path: Path) -> None:
    """A record is refused whichever byte is changed, also within the blocks that the checksum sums."""
    write_record(tmp_path / "r", [torch.arange(6.0).view(2, 3), torch.zeros(0, 4)], {"name": "x"})
    data = (tmp_path / "r").read_bytes()
    assert torch.equal(read_record(tmp_path / "r")[0][0], torch.arange(6.0).view(2, 3))
    for place in range(len(data)):
        (tmp_path / "s").write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        with pytest.raises(DamagedRecord):
            read_record(tmp_path / "s")
    write_record(tmp_path / "r", [torch.arange(5000.0)], {})
    data = (tmp_path / "r").read_bytes()
    for place in (-20000, -10000, -1):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "s").write_bytes(changed)
        with pytest.raises(DamagedRecord, match="has changed since it was written"):
            read_record(tmp_path / "s")
    blocks = bytearray(data)
    blocks[-20000:-15904], blocks[-15904:-11808] = data[-15904:-11808], data[-20000:-15904]
    (tmp_path / "s").write_bytes(blocks)
    with pytest.raises(DamagedRecord, match="has changed since it was written"):
        read_record(tmp_path / "s")


# ---- kills and company


def write_forever(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads to wait for
    generator, subject = torch.Generator().manual_seed(seed), cache(folder)
    while True:
        number = int(torch.randint(4, (1,), generator=generator))
        subject.put(identities(4)[number], [torch.full((1_000_000,), float(number))])


def test_killed_while_writing(tmp_path: Path) -> None:
    """Two processes write the same records, and are killed; every record that is there is whole."""
    subject, seen = cache(tmp_path), 0
    for attempt in range(4):
        writers = [FORK.Process(target=write_forever, args=(tmp_path, attempt + 10 * i)) for i in range(2)]
        for writer in writers:
            writer.start()
        begin, before = time.monotonic(), seen
        while time.monotonic() < begin + 0.15 + 0.037 * attempt or (
            seen < before + 5 and time.monotonic() < begin + 20
        ):
            for number, identity in enumerate(identities(4)):
                if subject.path(identity).exists():
                    tensors, _ = read_record(subject.path(identity))
                    assert (tensors[0] == number).all()
                    seen += 1
        for writer in writers:
            writer.kill()
            writer.join()
    assert seen > 10
    for path in subject.folder.rglob("*.features"):
        read_record(path)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_and_die(folder: Path, monkey: Any) -> None:
    replace, done, subject = Path.replace, [], cache(folder)

    def third_time(path: Path, target: Path) -> Path:
        done.append(path)
        return die() if len(done) == 3 else replace(path, target)  # type: ignore[return-value]

    monkey.setattr(Path, "replace", third_time)
    subject.fill(identities(5), lambda i, copy: image(i))


def test_killed_before_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third record is complete but not yet in its place: it is computed again, and the rest is later swept away."""
    process = FORK.Process(target=fill_and_die, args=(tmp_path, monkeypatch))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    subject = cache(tmp_path)
    left = list(tmp_path.rglob("*.partial"))
    assert len(left) == 1
    assert sweep(tmp_path) == 0  # its writer might be alive
    (left[0] / ".tmp").touch()  # whatever the killed writer had begun
    former = subject.folder / "a.partial"
    former.touch()
    for path in (left[0], former):
        os.utime(path, (0, 0))
    assert subject.fill(identities(5), lambda i, copy: image(i)) == 3
    assert not list(tmp_path.rglob("*.partial"))


class Blending(Counting):
    """Features that depend on all images of a batch, as rounding makes them."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [tensor + images.float().mean() for tensor in super().__call__(images)]


def fill_share(folder: Path, rank: int, world: int, monkey: pytest.MonkeyPatch | None = None) -> int:
    """Fill one process's share of 21 images of two sizes; with `monkey`, be killed before the third record."""
    subject = FeatureCache(folder, {}, Blending(), copies=2)
    if monkey is not None:
        replace, done = Path.replace, []

        def third_time(path: Path, target: Path) -> Path:
            done.append(path)
            return die() if len(done) == 3 else replace(path, target)  # type: ignore[return-value]

        monkey.setattr(Path, "replace", third_time)
    load = lambda i, copy: image(i + 100 * copy, (8, 12 if i % 3 else 8))  # noqa: E731
    return subject.fill(identities(21), load, batch_size=4, share=(rank, world))


def records(folder: Path) -> dict[str, str]:
    """File name of each record -> its facts, and the type, shape and bytes of its tensors."""
    found = {}
    for path in folder.glob("*/*/*.features"):
        tensors, facts = read_record(path)
        found[str(path.relative_to(folder))] = f"{facts} {[(t.shape, t.view(torch.uint8).tolist()) for t in tensors]}"
    return found


def test_processes_that_share_the_work_write_what_one_writes(tmp_path: Path) -> None:
    """Disjoint shares, about equal; bit by bit the records of one process."""
    assert fill_share(tmp_path / "one", 0, 1) == 42
    counts = [fill_share(tmp_path / "three", rank, 3) for rank in range(3)]
    assert sum(counts) == 42
    assert max(counts) - min(counts) <= 8  # the last group of each copy holds one image
    assert records(tmp_path / "three") == records(tmp_path / "one")


def test_one_of_several_processes_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of processes complete the cache, with the records of a process that was never killed."""
    processes = [
        FORK.Process(target=fill_share, args=(tmp_path / "two", r, 2, (monkeypatch, None)[r])) for r in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]
    there = len(records(tmp_path / "two"))
    assert there == 2 + 18  # of the killed process, and the share of the other
    assert sum(fill_share(tmp_path / "two", rank, 3) for rank in range(3)) == 42 - there
    fill_share(tmp_path / "one", 0, 1)
    assert records(tmp_path / "two") == records(tmp_path / "one")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No partial file."""

    def fails(path: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_record(tmp_path / "r", [torch.zeros(3)], {})
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised at the first record of many, with both numbers."""
    usage = shutil.disk_usage(tmp_path)._replace(free=900)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"features of 100 images take up to 0.1 MB and .* free; use fewer layers"):
        cache(tmp_path).fill(identities(100), lambda i, copy: image(i))
    with pytest.raises(OSError, match="no room for features in"):
        cache(tmp_path).put(identities(1)[0], [torch.zeros(1000)])


def test_records_are_readable_as_other_files_are(tmp_path: Path) -> None:
    """A folder may be shared by users: permissions follow the umask."""
    write_record(tmp_path / "r", [torch.zeros(3)], {})
    (tmp_path / "other").touch()
    assert (tmp_path / "r").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_features_need_not_be_maps(tmp_path: Path) -> None:
    """Vectors and numbers are stored too."""

    def compute(images: Tensor) -> Sequence[Tensor]:
        return [torch.ones(len(images), 7), torch.arange(len(images)).float()]

    subject = FeatureCache(tmp_path, {}, compute)
    features(subject, identities(2), image)
    result = subject.get(identities(2)[1])
    assert result is not None
    assert (result[0].shape, float(result[1])) == ((7,), 1.0)
