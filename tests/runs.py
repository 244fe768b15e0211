"""The command line in this process, and what runs leave behind, for tests of every verb."""

from __future__ import annotations

import atexit
import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import yaml

from dense.cli import main, process
from dense.training import precision


class Done(NamedTuple):
    """How a run in this process ended."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run on one thread and in fp32, whatever is faster at that moment, so that two runs can be equal; restore the
    random state and the environment, in which a distributed strategy notes its rank."""
    threads, state, variables = torch.get_num_threads(), torch.get_rng_state(), dict(os.environ)
    torch.set_num_threads(1)
    try:
        with patch.object(precision, "MARGIN", 0.0):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        os.environ.clear()
        os.environ.update(variables)


def call(argv: Sequence[str]) -> Done:
    """Run `dense ARGV` in this process."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with alone(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            status = main(argv)
    except SystemExit as end:
        status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


SERVER = multiprocessing.get_context("forkserver")  # imports once, and has no thread that a fork would lose
SERVER.set_forkserver_preload(["dense.tasks.run", "pretrain.run", "dense.curate"])


class Forked(SERVER.Process):  # type: ignore[name-defined, misc]
    """`dense ARGV` for a test that kills it, forked from a process that has imported everything already.

    It leads a group of processes of its own and writes to files in `folder`. first: what it calls before the verb, a
    function of a module.
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, first: Callable[[], object] | None = None, **variables: str
    ) -> None:
        super().__init__()
        self.argv, self.folder, self.first = list(argv), folder, first
        self.variables, self.place = {**os.environ, **variables}, Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def run(self) -> None:
        os.setsid()
        multiprocessing.set_start_method(None, force=True)  # loader workers start as everywhere, not by the server
        atexit._clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for stream, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(self.folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            setattr(sys, name, os.fdopen(stream, "w", buffering=1, closefd=False))
        os.environ.clear()
        os.environ.update(self.variables)
        os.chdir(self.place)
        sys.argv = ["dense", *self.argv]
        with alone():
            if self.first is not None:
                self.first()
            process()

    def status(self, number: signal.Signals | None = None) -> int | None:
        """Send a signal, if one is given; wait for the end and return the status, that of a signal negative."""
        if number is not None and self.pid is not None:
            os.kill(self.pid, number)
        self.join(120)
        return self.exitcode

    @property
    def output(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()


def in_processes(argv: Sequence[str], folder: Path, count: int = 2) -> list[Forked]:
    """Run `dense ARGV` in `count` processes, started as torchrun starts them; return them when all have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    started = [
        Forked(argv, folder / f"rank{rank}", **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)
    ]
    for one in started:
        assert one.status() == 0, one.errors
    return started


def environment(**extra: str) -> dict[str, str]:
    """One thread a process, whatever else runs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def write_config(config: Mapping[str, Any], folder: Path, **changes: Any) -> Path:
    """A config with changes ({"data.workers": 2}) as a YAML file in `folder`."""
    config = yaml.safe_load(yaml.safe_dump(dict(config)))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place: Any = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config-of-test.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint that is a tensor of the model."""
    checkpoint = torch.load(output / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def optimizer_state(output: Path) -> list[torch.Tensor]:
    """The optimiser's tensors."""
    state = torch.load(output / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return [t for index in sorted(state) for t in state[index].values() if isinstance(t, torch.Tensor)]


def assert_same(a: Path, b: Path) -> None:
    """Equal weights and optimiser state of two runs, bit for bit."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert all(torch.equal(x, y) for x, y in zip(optimizer_state(a), optimizer_state(b), strict=True))
