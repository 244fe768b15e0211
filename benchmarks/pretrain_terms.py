"""Time and memory of a training step by the terms of its objective, against DINO alone.

All variants train the same network on the same crops: DINO alone, then with one addition each. Numbers are medians of
paired steps, alternating; the ratio is to DINO alone in the same round. Memory is the peak of a process of its own,
beyond what was resident before the step.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import timm
import torch
from _claims import record
from _measure import alternate, arguments, last_number, median_ratio, peak_memory
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
        """Set up what a trainer would."""
        self.schedules, self._total_batch = self.plan(10_000, batch), batch
        self.optimizer = build_optimizer("adamw", parameter_groups(self.student))
        set_hyperparameters(self.optimizer, 5e-4, 0.04)
        self.terms.train()
        for term in self._terms:
            term.before_step(0, self.backbone)

    def step(self, batch: Batch) -> float:
        """Run one optimiser step and return the loss."""
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
    """Return the options of every variant; the name asks for larger Gram crops."""
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
    """Return a module and its crops."""
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
    parser = arguments(__doc__)
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
        f"K {options.prototypes}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"timm {timm.__version__}"
    )
    names = list(ways(options.prototypes))
    built = {way: build(way, options) for way in names}
    runs = [partial(module.step, batch) for module, batch in built.values()]
    times = dict(zip(built, alternate(runs, options.repeats, warm_up=1), strict=True))
    given = [f"--{k.replace('_', '-')}={v}" for k, v in vars(options).items() if k not in ("memory", "repeats")]
    memory = {way: last_number(__file__, *given, "--memory", way) for way in names}
    print(f"{'way':<22} {'median s':>9} {'/ DINO':>7} {'peak MB':>8} {'/ DINO':>7}")
    for way in names:
        ratio = median_ratio(times[way], times["DINO"])
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
