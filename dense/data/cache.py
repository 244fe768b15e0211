"""Features of a frozen backbone on disk: one safetensors file per image, which is complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dense.data.labelled.sample import Identity, Progress
from dense.files import PARTIAL, free_room, megabytes, replacing, write

BLOCK = 4096  # bytes whose sum enters the checksum
ABANDONED = 3600.0  # seconds after which the writer of a partial record is taken to be dead


class DamagedRecord(ValueError):
    """A file that is not a record, is incomplete, or has changed since it was written."""


def write_record(path: Path, tensors: Sequence[Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, and facts about them in plain data, to one safetensors file.

    The file gets its name once it is complete, so that a reader finds the previous file or the new one. Of several
    writers the last one wins.
    """
    stored = {
        str(number): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for number, tensor in enumerate(tensors)
    }
    text = json.dumps(dict(facts))
    with replacing(path, sum(tensor.nbytes for tensor in stored.values())) as file:
        save_file(stored, file, {"facts": text, "checksum": _checksum(text, stored.values())})


def read_record(path: Path, verify: bool = True) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a record.

    The tensors are mapped from the file; writing to them changes memory alone. Raises FileNotFoundError if there is
    no file, and DamagedRecord if it cannot be used; `verify` compares the checksum too, for which all bytes are read.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
        facts = json.loads(metadata["facts"])
        whole = not verify or metadata["checksum"] == _checksum(metadata["facts"], tensors)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises several kinds of errors on damaged bytes
        raise DamagedRecord(f"{path} cannot be read ({error})") from None
    if not whole:
        raise DamagedRecord(f"{path} has changed since it was written")
    return tensors, facts


def _checksum(text: str, tensors: Iterable[Tensor]) -> str:
    """Return 8 characters that change with the facts, and with the type, shape or any byte of a tensor.

    The CRC is one of sums of blocks, since a CRC of all bytes would take longer than everything else about reading.
    """
    checksum = zlib.crc32(text.encode())
    for tensor in tensors:
        data = tensor.view(-1).view(torch.uint8).numpy()
        end = data.size // BLOCK * BLOCK
        sums = data[:end].view(np.uint64).reshape(-1, BLOCK // 8).sum(1)
        for part in (f"{tensor.dtype} {tuple(tensor.shape)}".encode(), sums.tobytes(), data[end:].tobytes()):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def sweep(folder: Path) -> int:
    """Remove partial records that killed writers left behind; return how many."""
    removed = 0
    for path in list(folder.rglob(f"*{PARTIAL}")):
        with contextlib.suppress(OSError):  # another process may sweep too
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()  # a former version wrote partial files
                removed += 1
    return removed


Compute = Callable[[Tensor], Sequence[Tensor]]  # B, 3, H, W uint8 -> tensors with batch axis B


class FeatureCache:
    """Features that `compute` returns: ``cache.fill(identities, load)`` stores, ``cache.get(identity)`` reads them.

    A record holds the tensors of one image: for instance the maps of several layers, then their prefix tokens. Images
    may differ in size. Each `key` has a folder of its own below `folder`, and must name everything that features depend
    on: the weights (see `weights_digest`), the spec, layers, norm, precision, and how images are prepared. A record
    counts as absent, and is replaced, if its image has changed, if it is damaged, or if an earlier version wrote it.

    Any number of processes may read and write at once, and may be killed.

    compute: may be None in processes that only read
    copies: augmented versions of each image; the number of a copy must determine how the image is augmented
    dtype: floating-point type in which features are stored
    """

    def __init__(
        self,
        folder: str | Path,
        key: Mapping[str, Any],
        compute: Compute | None = None,
        *,
        copies: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if copies < 1:
            raise ValueError(f"copies={copies}: expected at least 1")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype}: expected torch.bfloat16, torch.float16 or torch.float32")
        self.key = {**key, "dtype": str(dtype).removeprefix("torch.")}
        self.folder = Path(folder) / key_digest(self.key)
        self.compute, self.copies, self.dtype = compute, copies, dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (about := self.folder / "key.json").exists():
            write(about, json.dumps(self.key, indent=1, sort_keys=True) + "\n")

    def path(self, identity: Identity, copy: int = 0) -> Path:
        """Return where the record of an image is, or would be."""
        digest = hashlib.blake2b(f"{copy}\0{identity.name}".encode("utf-8", "surrogateescape"), digest_size=16)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.features"

    def get(self, identity: Identity, copy: int = 0) -> list[Tensor] | None:
        """Return the tensors of one image, mapped from the file; None if they are absent, damaged or out of date."""
        self._check_copy(copy)
        try:
            tensors, facts = read_record(self.path(identity, copy))
        except (FileNotFoundError, DamagedRecord):
            return None
        current = facts.get("name") == identity.name and facts.get("version") == identity.version
        return tensors if current else None

    def stored(self, identity: Identity, copy: int = 0) -> list[Tensor]:
        """Return the tensors of one image, of a cache that was filled."""
        tensors = self.get(identity, copy)
        if tensors is None:
            raise RuntimeError(
                f"the features of {identity.name} in {self.folder} were damaged, the image changed during training, or "
                "not all machines share this folder; run the same command again"
            )
        return tensors

    def put(self, identity: Identity, tensors: Sequence[Tensor], copy: int = 0) -> None:
        """Store the tensors of one image, without a batch axis."""
        self._check_copy(copy)
        stored = [tensor.to(self.dtype) for tensor in tensors]
        size, free = sum(tensor.nbytes for tensor in stored), free_room(self.folder)
        if free < 2 * size:
            raise OSError(
                f"no room for features in {self.folder}: a record takes {megabytes(size, up=True)} and "
                f"{megabytes(free)} are free; free some space"
            )
        write_record(
            self.path(identity, copy), stored, {"name": identity.name, "version": identity.version, "copy": copy}
        )

    def fill(
        self,
        identities: Sequence[Identity],
        load: Callable[[int, int], Tensor],
        *,
        batch_size: int = 8,
        progress: Progress | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> int:
        """Compute the features that are absent, of all copies; return how many records were computed.

        load: number of an image and of a copy -> 3, H, W uint8. All images take ``len(identities) * copies`` records;
        the first record shows whether there is room for them, and if not, raises OSError.
        share: (rank, world) of a process that fills the cache together with others. Each group of `batch_size`
        consecutive images belongs to one process and is always computed whole, since the last bits of features may
        depend on the rest of a batch: any number of processes, killed or not, write the same records.
        """
        sweep(self.folder)
        rank, world = share
        count, computed = len(identities), 0
        firsts = [(copy, first) for copy in range(self.copies) for first in range(0, count, batch_size)]
        for copy, first in firsts[rank::world]:
            group = range(first, min(first + batch_size, count))
            if missing := {number for number in group if self.get(identities[number], copy) is None}:
                for numbers, images in _by_size([(number, load(number, copy)) for number in group]):
                    if missing.isdisjoint(numbers):
                        continue
                    assert self.compute is not None, "a cache that only reads cannot be filled"
                    with torch.no_grad():
                        tensors = self.compute(images)
                    if not computed:
                        self._check_room(tensors, count * self.copies)
                    for place, number in enumerate(numbers):
                        if number in missing:
                            self.put(identities[number], [tensor[place] for tensor in tensors], copy)
                            computed += 1
            if progress is not None:
                progress(copy * count + group[-1] + 1, count * self.copies)  # others are about as far
        return computed

    def _check_room(self, tensors: Sequence[Tensor], total: int) -> None:
        needed = total * sum(tensor[0].numel() for tensor in tensors) * self.dtype.itemsize
        free = free_room(self.folder)
        if needed > free:
            raise OSError(
                f"features of {total} images take up to {megabytes(needed, up=True)} and {self.folder} has "
                f"{megabytes(free)} free; use fewer layers, fewer copies, a smaller size, or another folder"
            )

    def _check_copy(self, copy: int) -> None:
        if not 0 <= copy < self.copies:
            raise ValueError(f"copy={copy}: expected 0 to {self.copies - 1}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compute": None}  # worker processes only read


def _by_size(images: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield numbered images in batches of one size each."""
    sizes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    for number, image in images:
        sizes.setdefault(image.shape, []).append((number, image))
    for same in sizes.values():
        numbers, several = zip(*same, strict=True)
        yield list(numbers), torch.stack(several)


def key_digest(key: Mapping[str, Any]) -> str:
    """Return 16 characters that change with any value of a key in plain data."""
    try:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key must be plain data (text, numbers, lists, dicts): {error}") from None
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return 32 characters that change with any name, shape, type or byte of a state dict."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
