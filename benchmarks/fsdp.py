"""Memory per process of FSDP2 against DDP: a ViT pretrained by two processes with Lightning over gloo.

"state" is what remains between steps (weights, teacher, optimiser, without gradients) and is exact; "peak" is the
peak of resident memory of a process, beyond what was resident before the model was built. Both run the same steps on
the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
from _claims import record, versioned
from _measure import arguments, resident
from torch import Tensor

from pretrain.data import PretrainData
from pretrain.module import DINO
from pretrain.recipe import BackboneOptions, HeadOptions
from pretrain.sharding import local
from pretrain.views import MultiCrop

WAYS = ("ddp", "fsdp2")


class Clock(pl.Callback):
    """Measures the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def train(way: str, options: argparse.Namespace, folder: Path) -> None:
    """Run one process and write its numbers to `folder`."""
    before = resident("VmRSS")
    model = DINO(BackboneOptions(options.name, drop_path=0.0), HeadOptions(options.prototypes), steps=options.steps)
    data = PretrainData("scenes:train", MultiCrop(64, 32, 2), batch_size=2, workers=0, scenes=16, scene_size=64)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=way, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[clock], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    state: list[Tensor] = [local(parameter) for parameter in model.parameters()]
    for moments in trainer.optimizers[0].state.values():
        state += [local(value) for value in moments.values()]
    figures = {
        "state": sum(tensor.numel() * tensor.element_size() for tensor in state) / 2**20,
        "peak": resident("VmHWM") - before,
        "step": sorted(clock.seconds)[len(clock.seconds) // 2],
    }
    (folder / f"{way}-{trainer.global_rank}.json").write_text(json.dumps(figures))


def main() -> None:
    """Print the comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--name", default="vit_small_patch16_224")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        train(options.way, options, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", name]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        found = {way: [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in (0, 1)] for way in WAYS}
    worst = {way: {key: max(one[key] for one in figures) for key in figures[0]} for way, figures in found.items()}
    versions = f"{versioned('torch')}, {versioned('lightning')}"
    print(f"{options.name}, K {options.prototypes}, two processes over gloo, {versions}")
    for way in WAYS:
        state, peak, step = (worst[way][key] for key in ("state", "peak", "step"))
        print(f"{way:<6} state {state:>7.0f} MB   peak {peak:>7.0f} MB   step {step:.2f} s")
    for key, least in (("state", 1.9), ("peak", None)):
        ours, theirs = worst["fsdp2"][key], worst["ddp"][key]
        record(
            f"FSDP2, {key} memory of each of 2 processes, {options.name}", peer=f"DDP, {versioned('torch')}",
            ours=f"{ours:.0f} MB", theirs=f"{theirs:.0f} MB", ratio=theirs / ours, least=least,
        )  # fmt: skip


if __name__ == "__main__":
    main()
