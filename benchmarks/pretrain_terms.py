"""Time and memory of a training step by the terms of its objective, against DINO alone.

Every way trains the same network on the same crops: DINO alone, then with one more thing each. Figures are medians of paired
steps, alternating; the ratio is to DINO alone in the same round. Memory is that of a process of its own at its peak, beyond
what was resident before the step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import timm
import torch
from _claims import record
from _measure import peak_memory
from torch import Tensor

from pretrain.data import Batch
from pretrain.module import DINO
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import BackboneOptions, GramOptions, HeadOptions, IBOTOptions, KoLeoOptions, TeacherOptions

SIZES = (224, 96)  # global, local


class Step(DINO):
    """The module without a trainer."""

    trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=1)  # type: ignore[assignment]

    def prepare(self, batch: int) -> None:
        """What a trainer would have set up."""
        self.schedules, self._total_batch = self.plan(10_000, batch), batch
        self.optimizer = build_optimizer("adamw", parameter_groups(self.student))
        set_hyperparameters(self.optimizer, 5e-4, 0.04)
        self.terms.train()
        for term in self._terms:
            term.before_step(0, self.backbone)

    def step(self, batch: Batch) -> float:
        """One optimiser step; returns the loss."""
        outputs = self.run_networks(batch, 1, 0)
        loss = torch.stack([term.weight(1) * term(outputs) for term in self._terms]).sum()
        loss.backward()
        clip_gradients_(self.student.parameters(), 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for term in self._terms:
            term.after_step()
        self.teacher.after_step(self.student, 0.996)
        return float(loss.detach())


def ways(prototypes: int) -> dict[str, dict[str, Any]]:
    """Options of every way; larger Gram crops are asked for by name."""
    head = HeadOptions(prototypes)
    teacher = TeacherOptions()
    sinkhorn = replace(teacher, centering="sinkhorn")
    ibot, own = IBOTOptions(1.0), IBOTOptions(1.0, head)
    koleo = KoLeoOptions(0.1)
    everything = {"head": head, "teacher": sinkhorn, "ibot": own, "koleo": koleo}
    return {
        "DINO": {"head": head},
        "+ Sinkhorn": {"head": head, "teacher": sinkhorn},
        "+ KoLeo": {"head": head, "koleo": koleo},
        "+ iBOT, shared head": {"head": head, "ibot": ibot},
        "+ iBOT, own head": {"head": head, "ibot": own},
        "+ Gram": {"head": head, "gram": GramOptions(2.0, start=1)},
        "+ Gram, crops x 2": {"head": head, "gram": GramOptions(2.0, start=1)},
        "DINOv2": everything,
        "DINOv3, Gram x 2": everything | {"gram": GramOptions(2.0, start=1)},
    }


def build(way: str, options: argparse.Namespace) -> tuple[Step, Batch]:
    """A module and its crops."""
    arguments = {"depth": options.depth, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    module = Step(BackboneOptions("vit_small_patch16_224", arguments, 0.0), **ways(options.prototypes)[way])
    module.prepare(options.batch)
    module.teacher.train()
    generator = torch.Generator().manual_seed(0)

    def crops(*sizes: int) -> list[Tensor]:
        return [torch.randint(0, 256, (options.batch, 3, s, s), dtype=torch.uint8, generator=generator) for s in sizes]

    views = crops(*[SIZES[0]] * 2, *[SIZES[1]] * options.local_crops)
    gram = crops(*[2 * SIZES[0]] * 2) if "x 2" in way else []
    return module, Batch(views, torch.arange(options.batch), torch.zeros(0), gram)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the ViT-S/16")
    parser.add_argument("--local-crops", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        module, batch = build(options.memory, options)
        print(peak_memory(lambda: module.step(batch)))
        return
    print(
        f"ViT-S/16 of {options.depth} blocks, batch {options.batch}, 2x{SIZES[0]} + {options.local_crops}x{SIZES[1]}, "
        f"K {options.prototypes}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
    )
    names = list(ways(options.prototypes))
    built = {way: build(way, options) for way in names}
    times: dict[str, list[float]] = {way: [] for way in names}
    for repeat in range(options.repeats + 1):  # the first warms up
        for way, (module, batch) in built.items():
            start = time.perf_counter()
            module.step(batch)
            if repeat:
                times[way].append(time.perf_counter() - start)
    given = [f"--{k.replace('_', '-')}={v}" for k, v in vars(options).items() if k not in ("memory", "repeats")]
    memory = {}
    for way in names:
        done = subprocess.run(
            [sys.executable, __file__, *given, "--memory", way], capture_output=True, text=True, check=True
        )
        memory[way] = float(done.stdout.split()[-1])
    print(f"{'way':<22} {'median s':>9} {'/ DINO':>7} {'peak MB':>8} {'/ DINO':>7}")
    for way in names:
        ratio = statistics.median(a / b for a, b in zip(times[way], times["DINO"], strict=True))
        more = memory[way] / memory["DINO"]
        median, alone = statistics.median(times[way]), statistics.median(times["DINO"])
        print(f"{way:<22} {median:>9.3f} {ratio:>7.2f} {memory[way]:>8.0f} {more:>7.2f}")
        if way != "DINO":
            record(
                f"a step of {way.removeprefix('+ ')}, memory x {more:.2f}",
                peer="DINO alone",
                ours=f"{median:.2f} s",
                theirs=f"{alone:.2f} s",
                ratio=alone / median,
            )


if __name__ == "__main__":
    main()
