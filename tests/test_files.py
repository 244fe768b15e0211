"""Files that are written whole, and folders that belong to one run at a time."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dense import files
from dense.files import RunFolder, check_free, check_writable, megabytes, replacing, write

HOLDER = """
import os, sys, time
from pathlib import Path
from dense.files import RunFolder
with RunFolder(Path(sys.argv[1]), "train"):
    if os.fork() == 0:
        print("held", flush=True)  # the child, which has let go of the lock by now
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_complete_or_the_previous_one(tmp_path: Path) -> None:
    """Whatever happens while it is written; its mode is that of any other file."""
    path = write(tmp_path / "sub/a.txt", "before")
    for error in (ValueError("wrong"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(path) as file:
            file.write_text("half")
            raise error
        assert path.read_text() == "before"
    with replacing(path) as file:
        file.write_text("after")
        file.chmod(0o600)
        file.with_name("b.txt").write_text("beside it")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert names(tmp_path) == ["other", "sub/a.txt", "sub/b.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), RuntimeError("writer: No space left on device")])
def test_a_full_disk_names_the_path_and_the_room(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MB, the needed room rounded up, so that nothing needs 0.0."""
    usage = shutil.disk_usage(tmp_path)._replace(free=49_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    write(tmp_path / "a.npz", b"")
    expected = r"a.npz: the disk is full, with 0.0 MB free where it takes 0.2 MB; the previous a.npz is intact"
    with pytest.raises(OSError, match=expected), replacing(tmp_path / "a.npz", 120_000):
        raise error
    with pytest.raises(OSError, match=r"0.0 MB free, checkpoints need about 0.1 MB"):
        check_writable(tmp_path, 50_000)
    assert names(tmp_path) == ["a.npz"]
    assert megabytes(1_234_567_890) == "1,234.5 MB"


def test_other_errors_name_the_file(tmp_path: Path) -> None:
    """Not the temporary one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").touch()
    with pytest.raises(OSError, match=r"cannot write .*/a/b/c.txt"):
        write(tmp_path / "a/b/c.txt", "x")
    with pytest.raises(OSError, match=r"cannot write .*/a: "):
        write(tmp_path / "a", "x")


def test_other_settings_are_refused_or_replace_what_was_written(tmp_path: Path) -> None:
    """The same ones go on; what others put into the folder stays, and so does what lies outside."""
    out, outside = tmp_path / "out", write(tmp_path / "outside.txt", "mine")
    write(out / "mine.txt", "mine")
    for name in ("a", "b"):  # other files with the same settings
        with RunFolder(out, "predict", {"model": outside, "resize": None}):
            write(out / f"sub/{name}.png", b"")
    with RunFolder(out, "track", {"size": 4}):  # another verb
        write(out / "tracked.json", "{}")
    changed = r"settings \(resize: 64 now, None then\); choose another --output, or let --overwrite remove it"
    with pytest.raises(ValueError, match=changed), RunFolder(out, "predict", {"model": outside, "resize": 64}):
        pass
    with (out / ".dense-predict.jsonl").open("a") as lines:
        lines.write('"../outside.txt"\n')
    with RunFolder(out, "predict", {"model": outside, "resize": 64}, overwrite=True):
        write(out / "c.png", b"")
    assert names(tmp_path) == [
        "out/.dense-predict.jsonl", "out/.dense-track.jsonl", "out/c.png", "out/mine.txt", "out/tracked.json",
        "outside.txt",
    ]  # fmt: skip
    assert not (out / "sub").exists()


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Not even the folders of its output."""
    with pytest.raises(ValueError, match="wrong"), RunFolder(tmp_path / "a/b", "predict", {}):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_reports_what_is_kept(tmp_path: Path) -> None:
    """Unless a message is there already."""
    expected = r"1 files in .* are kept, and the same command makes all of them again"
    with pytest.raises(KeyboardInterrupt, match=expected), RunFolder(tmp_path, "predict", {}):
        write(tmp_path / "a", "x")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"^from step 3$"), RunFolder(tmp_path, "train"):
        raise KeyboardInterrupt("from step 3")


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the process; a kill lets go of the folder, although a child that it forked is left."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        busy = rf"is in use: dense train, process {holder.pid} on .*, since 20"
        with pytest.raises(OSError, match=busy), RunFolder(tmp_path, "train"):
            pass
        with pytest.raises(OSError, match=busy):
            check_free(tmp_path)
        monkeypatch.setenv("LOCAL_RANK", "1")
        check_free(tmp_path)  # a further process of the same run
        monkeypatch.delenv("LOCAL_RANK")
        holder.kill()
        holder.wait()
        check_free(tmp_path)
        with RunFolder(tmp_path, "train"):
            assert (tmp_path / files.LOCK).exists()
        assert list(tmp_path.iterdir()) == []
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()
