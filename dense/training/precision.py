"""The default precision of a training: what a probe of some milliseconds finds faster on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import yaml

from dense.training.checkpoints import LAST

Clock = Callable[[], float]

MARGIN = 0.8  # bf16 is chosen if it takes at most this part of the time in fp32
LONG = 0.003  # seconds of one pass that are measured well
BUDGET = 0.1  # seconds after which no further round begins
ROUNDS = 5


class Choice(NamedTuple):
    """A Lightning precision and the reason in words."""

    precision: str
    reason: str

    def __str__(self) -> str:
        return f"precision {self.precision}: {self.reason}"


def probe(width: int, tokens: int, device: torch.device, clock: Clock = time.perf_counter) -> Choice:
    """Time a projection of the network, `tokens` x `width` x `width`, forward and backward, in fp32 and in bf16.

    Rows are added up to `tokens` until a pass is long enough to be measured. A CPU, which may only emulate bf16,
    computes a part of the outputs. The global random state stays.
    """
    if device.type not in ("cpu", "cuda"):
        return Choice("32-true", f"bf16 is not tried on {device.type}")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice("32-true", "this device does not compute in bf16")
    generator = torch.Generator(device).manual_seed(0)
    outputs = min(width, 256) if device.type == "cpu" else width
    weight = torch.randn(outputs, width, device=device, generator=generator, requires_grad=True)

    def seconds(rows: torch.Tensor, bf16: bool) -> float:
        synchronise(device)
        start = clock()
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            product = torch.nn.functional.linear(rows, weight)
        torch.autograd.grad(product, (rows, weight), product)
        synchronise(device)
        return clock() - start

    def both(count: int) -> tuple[float, float]:
        rows = torch.randn(count, width, device=device, generator=generator, requires_grad=True)
        return seconds(rows, bf16=False), seconds(rows, bf16=True)

    count = min(64, tokens)
    both(count)  # loads kernels, which can take longer than all that follows
    begin = clock()
    single, half = both(count)
    while single < LONG and half < 3 * single and count < tokens and clock() - begin < BUDGET:
        count = min(2 * count, tokens)
        single, half = both(count)
    rounds = [(single, half)]
    while len(rounds) < ROUNDS and clock() - begin < BUDGET:
        rounds.append(both(count))
    single, half = (statistics.median(times) for times in zip(*rounds, strict=True))
    size = f"{count} x {width} x {outputs}"
    reason = f"products of {size}, forward and backward, take {1e3 * single:.3g} ms in fp32, {1e3 * half:.3g} in bf16"
    return Choice("bf16-mixed" if half <= MARGIN * single else "32-true", reason)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock sees its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def precision_of(folder: Path) -> Choice | None:
    """Return the precision with which the run in `folder` was trained so far; None if it has no checkpoint."""
    settings = folder / "config.yaml"
    if not (folder / "checkpoints" / LAST).is_file() or not settings.is_file():
        return None
    text = settings.read_text()
    found = (yaml.safe_load(text).get("trainer") or {}).get("precision")
    if found is None:
        return None
    first = text.partition("\n")[0].removeprefix("# ")
    prefix = f"precision {found}: "
    return Choice(str(found), first.removeprefix(prefix) if first.startswith(prefix) else "as the run began")


def use_precision(trainer: pl.Trainer, precision: str) -> None:
    """Give a trainer that has not started another precision, with the plugin that its strategy needs."""
    if precision != trainer.precision:
        connector: Any = trainer._accelerator_connector
        connector._precision_flag = precision
        connector.precision_plugin = trainer.strategy.precision_plugin = connector._check_and_init_precision()


class OnePrecision(pl.Callback):
    """The choice of the first process holds for all, however their probes ended."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            use_precision(trainer, trainer.strategy.broadcast(str(trainer.precision)))
