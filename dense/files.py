"""Files of a run: written whole or not at all, in a folder that belongs to one run at a time and knows its settings."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # the suffix of a folder in which a file is written until it is complete
LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of file systems that have none

_running: ContextVar[RunFolder | None] = ContextVar("running", default=None)
_locks: set[int] = set()  # descriptors of held locks, which child processes must not keep alive


@contextlib.contextmanager
def replacing(path: str | Path, size: int = 0) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder beside `path`, which gets its name when the block has ended.

    A reader finds the previous file or the new one, whatever happens in between. size: bytes that the file needs, for
    the error of a full disk.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
        yield partial / path.name
        for file in sorted(partial.iterdir(), key=lambda file: file.name == path.name):  # what lies beside it first
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes files that only their owner can read
            file.replace(path.with_name(file.name))
            if run := _running.get():
                run.note(path.with_name(file.name))
    except Exception as error:
        size = max(size, sum(file.stat().st_size for file in partial.glob("*")))
        shutil.rmtree(partial, ignore_errors=True)  # before the room is measured
        raise _named(error, path, size) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(path: str | Path, content: str | bytes) -> Path:
    """Write text or bytes to a file that is complete or absent; return its path."""
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with replacing(path, len(data)) as file:
        file.write_bytes(data)
    return Path(path)


WRITERS = ("PytorchStreamWriter", "inline_container", "I/O error", "IoError")  # in errors of torch and safetensors


def _named(error: Exception, path: Path, size: int) -> Exception:
    """Return an error that names the file and, for a full disk, the room that there is and that it takes."""
    number, room = error.errno if isinstance(error, OSError) else None, free_room(path)
    kept = f"; the previous {path.name} is intact" if path.exists() else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or room < size:
        return OSError(
            f"cannot write {path}: the disk is full, with {megabytes(room)} free where it takes "
            f"{megabytes(size, up=True)}{kept}. Free some room and run the same command again"
        )
    if number is not None or any(word in str(error) for word in WRITERS):
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        return OSError(f"cannot write {path}: {reason}{kept}")
    return error


def free_room(path: Path) -> int:
    """Return the free bytes of the disk on which a path is, or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def megabytes(size: float, up: bool = False) -> str:
    """Return a number of bytes in MB, of which a tenth is the least: rounded down, or up where it is needed."""
    return f"{(math.ceil if up else math.floor)(size / 1e5) / 10:,.1f} MB"


def check_writable(folder: Path, needed: int = 0) -> None:
    """Raise unless `needed` bytes can be written to `folder`, which need not exist and is not created."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        probe = there / f".probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror or error}; choose another --output") from None
    free = free_room(there)
    if free < needed:
        raise OSError(
            f"{folder} has {megabytes(free)} free, checkpoints need about {megabytes(needed, up=True)}; free some room "
            "or choose another --output"
        )


class RunFolder:
    """``with RunFolder(folder, "predict", settings):`` the folder belongs to this run until the block ends.

    A second run raises meanwhile, and so does a later one of the same verb with other settings, unless `overwrite`
    removes what the verb wrote before. The lock is the kernel's, which releases it when the process ends, however it
    ends. The settings are in a hidden file of the folder, with the names of the files that were written.

    settings: what a later run must have in common with this one; None for a verb that compares them itself.
    again: what the same command does after a signal stopped this one.
    """

    def __init__(
        self,
        folder: Path,
        verb: str,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        again: str = "makes all of them again",
    ) -> None:
        self.folder, self.verb, self.again, self.overwrite = folder, verb, again, overwrite
        self.settings = None if settings is None else {name: _plain(value) for name, value in settings.items()}
        self.record = folder / f".dense-{verb}.jsonl"
        self.written = 0
        self._listed: set[str] = set()

    def __enter__(self) -> RunFolder:
        check_writable(self.folder)
        with contextlib.ExitStack() as undo:
            undo.enter_context(hold(self.folder, f"dense {self.verb}"))
            self._compare()
            self._token = _running.set(self)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _running.reset(self._token)
        if isinstance(error, KeyboardInterrupt) and not error.args:
            error.args = (f"{self.written} files in {self.folder} are kept, and the same command {self.again}",)
        self._undo.close()

    def _compare(self) -> None:
        """Raise for a folder of another run of this verb, or remove what that run wrote."""
        try:
            then, *names = map(json.loads, self.record.read_text().splitlines())
        except (OSError, ValueError):
            return
        if self.overwrite:
            for name in names:
                remove(self.folder, name)
            self.record.unlink()
            return
        now = self.settings or {}
        changed = [
            f"{name}: {now[name]} now, {then[name]} then" for name in now if then.get(name, now[name]) != now[name]
        ]
        if changed:
            raise ValueError(
                f"{self.folder} holds what dense {self.verb} wrote with other settings ({'; '.join(changed)}); choose "
                "another --output, or let --overwrite remove it"
            )
        self._listed = set(names)

    def note(self, path: Path) -> None:
        """List a file that was written, for `overwrite`."""
        self.written += 1
        name = os.path.relpath(path, self.folder)
        if self.settings is None or name in self._listed or name.startswith(os.pardir):
            return
        with self.record.open("a") as lines:
            if not lines.tell():
                lines.write(json.dumps(self.settings) + "\n")
            lines.write(json.dumps(name) + "\n")
        self._listed.add(name)


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; a path that exists is absolute."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | Path):
        return str(Path(value).resolve()) if value != "" and Path(value).exists() else str(value)
    return value


def remove(folder: Path, name: str) -> None:
    """Remove a file inside a folder, and the folders that are empty without it; anything else stays."""
    path = folder / name
    if not path.is_file() or not path.parent.resolve().is_relative_to(folder.resolve()):
        return
    path.unlink()
    for parent in path.parents:
        if parent == folder:
            return
        with contextlib.suppress(OSError):
            parent.rmdir()


@contextlib.contextmanager
def hold(folder: Path, who: str) -> Iterator[None]:
    """Lock a folder, which is created, for one run; raise while another run has it.

    Afterwards the lock's file is removed, and so are the folders that it made and that stayed empty.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(folder)
        try:
            os.ftruncate(handle, 0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(handle, f"{who}, process {os.getpid()} on {socket.gethostname()}, since {started}".encode())
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            _locks.discard(handle)
            os.close(handle)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_free(folder: Path) -> None:
    """Raise while a run has the folder, except in the further processes of that run."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    if (folder / LOCK).is_file() and all(os.environ.get(rank, "0") == "0" for rank in ranks):
        handle = _lock(folder)
        _locks.discard(handle)
        os.close(handle)


def _lock(folder: Path) -> int:
    """Return a descriptor that holds the lock of a folder; raise if a run has it, naming that run."""
    import fcntl

    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 500).decode(errors="replace") or "another run"
            os.close(handle)
            raise OSError(
                f"{folder} is in use: {holder}; wait until it has ended, stop it, or choose another --output"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):  # else the last holder has just removed it
                _locks.add(handle)
                return handle
        os.close(handle)


def _close_locks() -> None:
    """Let go of the locks in a process that was forked, so that they end with their own process."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)
