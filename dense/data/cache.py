"""Several tensors in one file that is whole or absent, whoever is killed while writing it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dense.data.labelled.sample import Identity, Progress

MAGIC = b"dense-records-1\n"
LENGTHS = struct.Struct("<QII")  # bytes of the file, bytes of the description, CRC of all that follows
ALIGN = 64
PARTIAL = ".partial"
ABANDONED = 3600.0  # seconds after which a partial file has no writer any more
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}  # of features
STORED = DTYPES | {"uint8": torch.uint8}


class DamagedRecord(ValueError):
    """A file that is no record, or not whole."""


def write_record(path: Path, tensors: Sequence[Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, all bfloat16, float16, float32 or uint8, and plain facts about them.

    The file appears under its name when it is complete, so readers see the old one or the new one, and of several
    writers the last one's.
    """
    tensors = [tensor.detach().cpu().contiguous() for tensor in tensors]
    description = {
        "facts": dict(facts),
        "tensors": [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors],
    }
    text = json.dumps(description).encode()
    start = len(MAGIC) + LENGTHS.size
    text += b" " * (-(start + len(text)) % ALIGN)
    parts = [text]
    for tensor in tensors:
        data = tensor.view(-1).view(torch.uint8).numpy().tobytes()
        parts += [data, bytes(-len(data) % ALIGN)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    size = start + sum(map(len, parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(MAGIC + LENGTHS.pack(size, len(text), checksum))
            file.writelines(parts)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_record(path: Path, verify: bool = True) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors, mapped from the file (writing to them changes memory alone), and the facts.

    FileNotFoundError if there is none; DamagedRecord if it is cut short or, with `verify`, if a byte has changed.
    """
    found = path.stat().st_size
    start = len(MAGIC) + LENGTHS.size
    try:  # torch's mapping keeps no file open, so any number of records may be in use
        memory = torch.from_file(str(path), shared=False, size=found, dtype=torch.uint8) if found else torch.empty(0)
    except RuntimeError as error:
        raise DamagedRecord(f"{path} cannot be mapped ({error})") from None
    head = bytes(memory[:start].numpy())
    if len(head) < start or not head.startswith(MAGIC):
        raise DamagedRecord(f"{path} is not a record of this version")
    size, length, checksum = LENGTHS.unpack(head[len(MAGIC) :])
    if found != size or size < start + length:
        raise DamagedRecord(f"{path} has {found} bytes of {size}")
    if verify and zlib.crc32(memory[start:].numpy().data) != checksum:
        raise DamagedRecord(f"{path} has changed since it was written")
    try:
        description = json.loads(bytes(memory[start : start + length].numpy()))
        return list(_tensors(memory, start + length, description["tensors"])), description["facts"]
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedRecord(f"{path} cannot be understood ({error})") from None


def _tensors(memory: Tensor, offset: int, described: Sequence[tuple[str, list[int]]]) -> Iterator[Tensor]:
    for name, shape in described:
        dtype = STORED[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        yield memory[offset : offset + size].view(dtype).view(shape)
        offset += size + -size % ALIGN


def sweep(folder: Path) -> int:
    """Remove what killed writers left behind long ago; how many files."""
    removed = 0
    for path in folder.rglob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another process may sweep too
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
                removed += 1
    return removed


Compute = Callable[[Tensor], Sequence[Tensor]]  # B, 3, H, W uint8 -> tensors of B images each
Load = Callable[[int], Tensor]  # number of an image in what was asked for -> 3, H, W uint8


class FeatureCache:
    """``cache.fetch(identities, load)``: what `compute` makes of images, from disk where it is known.

    A record holds the tensors of one image: the maps of several layers, say, then their prefix tokens; images may
    differ in size. Records lie in a folder of their own for every `key`, which must name all that features depend on:
    the weights (see `weights_digest`), the spec, layers, norm, precision, and how images are prepared. A record whose
    image has changed since, that is cut short or has a wrong checksum counts as absent and is replaced.

    Any number of processes may read and write at once, and be killed: a record is there as a whole or not at all.

    copies: varied versions of each image, when it is augmented; `copy` chooses one and must decide how it is varied
    dtype: in which tensors are stored
    verify: compare checksums whenever a record is read, at about a millisecond for a megabyte
    """

    def __init__(
        self,
        folder: str | Path,
        key: Mapping[str, Any],
        compute: Compute | None = None,
        *,
        copies: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        verify: bool = True,
    ) -> None:
        if copies < 1:
            raise ValueError(f"copies={copies}: expected at least 1")
        if dtype not in DTYPES.values():
            raise ValueError(f"dtype={dtype}: expected one of {', '.join(f'torch.{name}' for name in DTYPES)}")
        self.key = {**key, "dtype": str(dtype).removeprefix("torch.")}
        self.folder = Path(folder) / key_digest(self.key)
        self.compute, self.copies, self.dtype, self.verify = compute, copies, dtype, verify
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (about := self.folder / "key.json").exists():
            about.write_text(json.dumps(self.key, indent=1, sort_keys=True) + "\n")

    def path(self, identity: Identity, copy: int = 0) -> Path:
        """Where an image's record is or would be."""
        digest = hashlib.blake2b(f"{copy}\0{identity.name}".encode("utf-8", "surrogateescape"), digest_size=16)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.features"

    def get(self, identity: Identity, copy: int = 0) -> list[Tensor] | None:
        """The tensors of one image, mapped from the disk; None if they are absent, damaged or out of date."""
        self._check_copy(copy)
        try:
            tensors, facts = read_record(self.path(identity, copy), self.verify)
        except (FileNotFoundError, DamagedRecord):
            return None
        known = facts.get("name") == identity.name and facts.get("version") == identity.version
        return tensors if known else None

    def put(self, identity: Identity, tensors: Sequence[Tensor], copy: int = 0) -> None:
        """Keep the tensors of one image, without their batch axis."""
        self._check_copy(copy)
        stored = [tensor.to(self.dtype) for tensor in tensors]
        size = sum(tensor.nbytes for tensor in stored)
        if shutil.disk_usage(self.folder).free < 2 * size:
            raise OSError(f"no room for features in {self.folder}: a record takes {size / 1e6:.1f} MB; free some space")
        facts = {"name": identity.name, "version": identity.version, "copy": copy}
        write_record(self.path(identity, copy), stored, facts)

    def fetch(
        self, identities: Sequence[Identity], load: Load, copy: int = 0, batch_size: int = 8
    ) -> list[list[Tensor]]:
        """The tensors of each image; those that are not known are computed, by batches of one size, and kept."""
        found = [self.get(identity, copy) for identity in identities]
        missing = [number for number, tensors in enumerate(found) if tensors is None]
        for numbers, tensors in self._computed(missing, load, batch_size):
            for place, number in enumerate(numbers):
                # as they will be read: in the same precision, and no views of the batch
                found[number] = [tensor[place].to("cpu", self.dtype, copy=True) for tensor in tensors]
                self.put(identities[number], found[number] or [], copy)
        return [tensors for tensors in found if tensors is not None]

    def fill(
        self,
        identities: Sequence[Identity],
        load: Callable[[int, int], Tensor],
        *,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> int:
        """Compute whatever is not known yet, of all copies, and check what is; how many records were computed.

        load: number of an image and of a copy -> 3, H, W uint8. The features of the whole set take
        ``len(identities) * copies`` records; a first record that shows there is no room for them raises at once.
        """
        sweep(self.folder)
        total, done, computed = len(identities) * self.copies, 0, 0
        for copy in range(self.copies):
            missing = (number for number, identity in enumerate(identities) if self.get(identity, copy) is None)
            while block := list(islice(missing, 8 * batch_size)):
                for numbers, tensors in self._computed(block, lambda n, copy=copy: load(n, copy), batch_size):  # type: ignore[misc]
                    if not computed:
                        self._check_room(tensors, total)
                    for place, number in enumerate(numbers):
                        self.put(identities[number], [tensor[place] for tensor in tensors], copy)
                    computed += len(numbers)
                done = copy * len(identities) + block[-1] + 1
                if progress is not None:
                    progress(done, total)
        if progress is not None and done < total:
            progress(total, total)
        return computed

    def _computed(
        self, numbers: Sequence[int], load: Load, batch_size: int
    ) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
        """Features of images by batches, each of images of one size."""
        if numbers and self.compute is None:
            raise RuntimeError(f"{len(numbers)} images have no features in {self.folder} and compute is None")
        for start in range(0, len(numbers), 4 * batch_size):  # a few at once, so that sizes can be sorted
            sizes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
            for number in numbers[start : start + 4 * batch_size]:
                image = load(number)
                sizes.setdefault(image.shape, []).append((number, image))
            for same in sizes.values():
                for first in range(0, len(same), batch_size):
                    batch = same[first : first + batch_size]
                    assert self.compute is not None
                    with torch.no_grad():
                        tensors = self.compute(torch.stack([image for _, image in batch]))
                    yield [number for number, _ in batch], tensors

    def _check_room(self, tensors: Sequence[Tensor], total: int) -> None:
        needed = total * sum(tensor[0].numel() for tensor in tensors) * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"features of {total} images take up to {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB "
                "free; use fewer layers, fewer copies, a smaller size, or another folder"
            )

    def _check_copy(self, copy: int) -> None:
        if not 0 <= copy < self.copies:
            raise ValueError(f"copy={copy}: expected 0 to {self.copies - 1}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compute": None}  # workers read


def key_digest(key: Mapping[str, Any]) -> str:
    """16 characters that change with any of a key's plain data."""
    try:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key must be plain data (text, numbers, lists, dicts): {error}") from None
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """32 characters that change with any name, shape, type or byte of a state dict."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def prune(folder: str | Path, keep: Sequence[FeatureCache] = ()) -> int:
    """Remove the records of all keys but those of `keep`, for they never go by themselves; how many bytes."""
    kept, freed = {cache.folder.resolve() for cache in keep}, 0
    for about in Path(folder).glob("*/key.json"):
        if about.parent.resolve() not in kept:
            freed += sum(path.stat().st_size for path in about.parent.rglob("*") if path.is_file())
            shutil.rmtree(about.parent)
    return freed
