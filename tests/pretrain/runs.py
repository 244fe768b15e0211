"""Tiny pretraining runs for tests: a ViT of width 16 on embedded scenes of 32 pixels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests import runs
from tests.runs import Done, Forked

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
    return runs.write_config(CONFIG, folder, **changes)


def command(config: Path, output: Path, *extra: str) -> list[str]:
    """`dense pretrain` in a process of its own."""
    return [sys.executable, "-m", "dense", "pretrain", "--config", str(config), "--output", str(output), *extra]


def run(config: Path, output: Path, *extra: str) -> Done:
    """Run to the end in this process, on one thread as `command` does."""
    return runs.call(command(config, output, *extra)[3:])


def start(config: Path, output: Path) -> Forked:
    """Start it in a process that can be killed."""
    return Forked(command(config, output)[3:], output.parent)
