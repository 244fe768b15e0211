"""Tiny runs for tests: a ViT of width 16 on embedded scenes of 32 pixels."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dense.cli import main

CONFIG: dict[str, Any] = {
    "model": {
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "arguments": {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2},
            "drop_path": 0.2,
        },
        "head": {"out_dim": 32, "hidden_dim": 32, "bottleneck_dim": 8},
        "teacher": {"momentum": 0.9},
        "optim": {"warmup_epochs": 0.5, "freeze_last_layer_epochs": 0.5, "lr": 0.01},
        "health": {"every": 2},
        "steps": 12,
    },
    "data": {
        "root": "scenes:train",
        "scenes": 32,
        "scene_size": 32,
        "batch_size": 4,
        "workers": 0,
        "views": {
            "class_path": "pretrain.views.MultiCrop",
            "init_args": {"global_size": 32, "local_size": 16, "local_crops": 2},
        },
    },
    "trainer": {"accelerator": "cpu", "precision": "32-true"},
    "checkpoint": {"every_minutes": 0, "every_steps": 3},
}


def write_config(folder: Path, **changes: Any) -> Path:
    """CONFIG with changes ({"data.workers": 2}) as a YAML file in `folder`."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config-of-test.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(config: Path, output: Path, *extra: str) -> list[str]:
    """`dense pretrain` in a process of its own."""
    return [sys.executable, "-m", "dense", "pretrain", "--config", str(config), "--output", str(output), *extra]


def environment(**extra: str) -> dict[str, str]:
    """One thread a process, whatever else runs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


class Done(NamedTuple):
    """How a run in this process ended."""

    returncode: int
    stdout: str
    stderr: str


def run(config: Path, output: Path, *extra: str) -> Done:
    """Run to the end in this process, on one thread as `command` does."""
    out, err = io.StringIO(), io.StringIO()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            status = main(command(config, output, *extra)[3:])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    return Done(status, out.getvalue(), err.getvalue())


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint that is a tensor of the model."""
    checkpoint = torch.load(output / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def optimizer_state(output: Path) -> list[torch.Tensor]:
    """The optimiser's tensors."""
    state = torch.load(output / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return [t for index in sorted(state) for t in state[index].values() if isinstance(t, torch.Tensor)]
