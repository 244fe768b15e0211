"""The command line in this process, and what runs leave behind, for tests of every verb."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dense.cli import main


class Done(NamedTuple):
    """How a run in this process ended."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run on one thread, and restore the random state and the environment, in which a distributed strategy notes its
    rank."""
    threads, state, variables = torch.get_num_threads(), torch.get_rng_state(), dict(os.environ)
    torch.set_num_threads(1)
    try:
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
