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
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dense.ranks import ALONE, Ranks

PARTIAL = ".partial"  # the suffix of a folder in which a file is written until it is complete
LOCK = ".lock"
JOINING = ".joining.lock"
GRACE = 2.0  # seconds in which the first process of a run notes that the others may enter
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of file systems that have none


class InUse(OSError):
    """A run has the folder."""


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
            note(path.with_name(file.name))
    except Exception as error:
        size = max(size, sum(file.stat().st_size for file in partial.glob("*")))
        shutil.rmtree(partial, ignore_errors=True)  # before the room is measured
        raise _named(error, path, size) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def note(path: Path) -> None:
    """List a file that was written for the run whose folder it is in."""
    if run := _running.get():
        run.note(path)


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
    ends. The settings are in a hidden file of the folder, with the names of the files that were written, and while the
    run is not complete with what was made of each of its items, see `dense.items`.

    settings: what a later run must have in common with this one; None for a verb that compares them itself.
    again: what the same command does after a signal stopped this one.
    ranks: this process and the others of its run, which enter the folder too; each has a record of its own.
    key: what the items depend on; those of another key are made again.
    """

    def __init__(
        self,
        folder: Path,
        verb: str,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        again: str = "makes all of them again",
        ranks: Ranks = ALONE,
        key: str = "",
    ) -> None:
        self.folder, self.verb, self.again, self.overwrite = folder, verb, again, overwrite
        self.settings = None if settings is None else {name: _plain(value) for name, value in settings.items()}
        self.ranks, self.key = ranks, key
        self.record = folder / f".dense-{verb}{f'-{ranks.rank}' if ranks.rank else ''}.jsonl"
        self.written = 0
        self._listed: set[str] = set()

    def __enter__(self) -> RunFolder:
        check_writable(self.folder)
        with contextlib.ExitStack() as undo:
            undo.enter_context(hold(self.folder, f"dense {self.verb}", self.ranks, self._remove))
            self._compare()
            self._token = _running.set(self)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _running.reset(self._token)
        if isinstance(error, KeyboardInterrupt) and not error.args:
            error.args = (f"{self.written} files in {self.folder} are kept, and the same command {self.again}",)
        self._undo.close()

    # ---- records: a line of settings, then names of files, and what was made of items

    def _records(self) -> Iterator[tuple[Path, dict[str, Any], list[str], list[dict[str, Any]]]]:
        """Yield path, settings, names of files and items of the records of all processes."""
        main = self.folder / f".dense-{self.verb}.jsonl"
        for path in (main, *sorted(self.folder.glob(f".dense-{self.verb}-*.jsonl"))):
            if not (lines := _lines(path)):
                continue
            settings = lines.pop(0) if isinstance(lines[0], dict) and "item" not in lines[0] else {}
            names = [line for line in lines if isinstance(line, str)]
            yield path, settings, names, [line for line in lines if isinstance(line, dict)]

    def _remove(self) -> None:
        """With `overwrite`, remove what another run wrote; one that was stopped and has the same settings continues."""
        for path, _, names, items in list(self._records()) if self.overwrite else ():
            if not any(item["key"] == self.key for item in items):
                for name in names:
                    remove(self.folder, name)
                path.unlink()

    def _compare(self) -> None:
        """Raise for a folder of another run of this verb."""
        for path, then, names, _ in self._records():
            now = self.settings or {}
            changed = [
                f"{name}: {now[name]} now, {then[name]} then" for name in now if then.get(name, now[name]) != now[name]
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds what dense {self.verb} wrote with other settings ({'; '.join(changed)}); "
                    "choose another --output, or let --overwrite remove it"
                )
            if path == self.record:
                self._listed = set(names)

    def note(self, path: Path) -> None:
        """List a file that was written, for `overwrite`."""
        self.written += 1
        name = os.path.relpath(path, self.folder)
        if self.settings is None or name in self._listed or name.startswith(os.pardir):
            return
        self._add(name)
        self._listed.add(name)

    def _add(self, line: Any) -> None:
        text = json.dumps(line) + "\n"
        with self.record.open("ab+") as lines:
            if not lines.tell():
                text = json.dumps(self.settings or {}) + "\n" + text
            else:
                lines.seek(-1, os.SEEK_END)
                text = text if lines.read(1) == b"\n" else "\n" + text  # after a line that a killed process began
            lines.write(text.encode())

    def add_item(self, name: str, version: str, facts: Any) -> None:
        """Record what was made of an item."""
        self._add({"item": name, "key": self.key, "version": version, "facts": facts})

    def items(self) -> Iterator[dict[str, Any]]:
        """Yield what all processes recorded of items, unless it was made otherwise."""
        for _, _, _, items in self._records():
            yield from (item for item in items if item["key"] == self.key)

    @contextlib.contextmanager
    def one_process(self) -> Iterator[None]:
        """Let the processes of a run into this block one after the other."""
        if self.ranks.world == 1:
            yield
            return
        import fcntl

        handle = os.open(self.folder / JOINING, os.O_RDWR | os.O_CREAT, 0o666)
        _locks.add(handle)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            _locks.discard(handle)
            os.close(handle)

    def close_items(self) -> None:
        """Join the records of all processes to one without items, as the results are complete."""
        records = list(self._records())
        listed = {name for _, _, names, _ in records for name in names} | self._listed
        names = sorted(name for name in listed if (self.folder / name).exists())
        main = self.folder / f".dense-{self.verb}.jsonl"
        if self.settings is not None and names:
            partial = main.with_suffix(PARTIAL)
            partial.write_text("".join(json.dumps(line) + "\n" for line in (self.settings, *names)))
            partial.replace(main)
        for path, *_ in records:
            if path != main or self.settings is None or not names:
                path.unlink()
        (self.folder / JOINING).unlink(missing_ok=True)


def _lines(path: Path) -> list[Any]:
    """Return the lines of a record but those that a killed process did not finish; none if there is no record."""
    found: list[Any] = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


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
def hold(folder: Path, who: str, ranks: Ranks = ALONE, prepare: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Lock a folder, which is created, for one run; raise while another run has it.

    Several processes of one run share the lock. The first of them calls `prepare` while it alone has it. Afterwards the
    lock's file is removed, and so are the folders that it made and that stayed empty.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        words = f"{who}, process {os.getpid()} on {socket.gethostname()}, since {started}"
        handle = _enter(folder, words, ranks, prepare)
        try:
            yield
        finally:
            if ranks.world == 1 or _locked(handle, alone=True):
                (folder / LOCK).unlink(missing_ok=True)
            _locks.discard(handle)
            os.close(handle)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _enter(folder: Path, words: str, ranks: Ranks, prepare: Callable[[], object]) -> int:
    """Return a descriptor that holds the lock of a folder, shared with other processes of the run."""
    end = time.monotonic() + GRACE
    while True:
        try:
            handle = _lock(folder)
        except InUse:
            if ranks.world == 1:
                raise
            with contextlib.suppress(InUse):
                handle = _lock(folder, alone=False)
                if _holder(handle).endswith(f"\n{ranks.run}"):
                    return handle
                _locks.discard(handle)
                os.close(handle)
            if not _holder(folder / LOCK).endswith(f"\n{ranks.run}") and time.monotonic() > end:
                raise
            time.sleep(0.02)  # the first process of this run may just be preparing the folder
            continue
        os.ftruncate(handle, 0)
        os.pwrite(handle, (words + (f"\n{ranks.run}" if ranks.world > 1 else "")).encode(), 0)
        prepare()
        if ranks.world == 1 or _locked(handle, alone=False):
            return handle
        _locks.discard(handle)  # another process came in between
        os.close(handle)


def _holder(file: int | Path) -> str:
    """Return the text of a lock's file."""
    try:
        data = file.read_bytes() if isinstance(file, Path) else os.pread(file, 2000, 0)
    except OSError:
        return ""
    return data.decode(errors="replace")


def check_free(folder: Path) -> None:
    """Raise while a run has the folder, except in the further processes of that run."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    if (folder / LOCK).is_file() and all(os.environ.get(rank, "0") == "0" for rank in ranks):
        handle = _lock(folder)
        _locks.discard(handle)
        os.close(handle)


def _lock(folder: Path, alone: bool = True) -> int:
    """Return a descriptor that holds the lock of a folder; raise if a run has it, naming that run."""
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(handle, alone):
                raise BlockingIOError
        except BlockingIOError:
            holder = _holder(handle).partition("\n")[0] or "another run"
            os.close(handle)
            raise InUse(
                f"{folder} is in use: {holder}; wait until it has ended, stop it, or choose another --output"
            ) from None
        except OSError:
            os.close(handle)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):  # else the last holder has just removed it
                _locks.add(handle)
                return handle
        os.close(handle)


def _locked(handle: int, alone: bool) -> bool:
    """Take a lock, alone or with others, and return whether it was free, which it is on file systems without locks."""
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _close_locks() -> None:
    """Let go of the locks in a process that was forked, so that they end with their own process."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)
