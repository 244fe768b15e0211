"""Several tensors in one file that is whole or absent, whoever is killed while writing it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
