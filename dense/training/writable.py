"""Whether results can be written, found out before the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def check_writable(folder: Path, needed: int = 0) -> None:
    """Make sure that `needed` bytes can be written to `folder`, which need not exist yet and is not made here: what fails later
    leaves nothing behind."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        probe = there / f".probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror or error}; choose another --output") from None
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, checkpoints need about {needed / 1e9:.1f} GB; free some room or choose another --output"
        )
