"""Throughput, peak memory and equality of ViT-S, B and L on the accelerator at hand, within a budget of time.

Three works on random images of 224 px: inference of a frozen DINOv2 backbone, a training step of a DPT head on it, and
a DINOv2-style pretraining step (2 x 224 + 8 x 98 px, class tokens, masked patches, KoLeo). Each is measured eager in
fp32 and in bf16, and compiled in bf16; inference also eager in fp16. The difference compares the features, or the
gradient of the first trained tensor, with fp32, eager, on the same device, for two images and equal weights.

Memory is the peak of PyTorch's allocator; the column is empty on a CPU. A batch that does not fit in memory is halved
until it does. What does not fit at all, fails or has no time left is named in the table instead of a number.
Without an accelerator, or with --small, tiny networks show that it works.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from _measure import arguments
from torch import Tensor, nn

from dense.backbone import load_backbone
from heads import DPT, Classes
from pretrain.data import ViewBatch
from pretrain.module import DINO
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import BackboneOptions, HeadOptions, IBOTOptions, KoLeoOptions, TeacherOptions

SIZES = {"S": "vit_small_patch14_dinov2", "B": "vit_base_patch14_dinov2", "L": "vit_large_patch14_dinov2"}
LAYERS = {"S": (2, 5, 8, 11), "B": (2, 5, 8, 11), "L": (4, 11, 17, 23)}
BATCH = {"inference": 64, "head": 32, "pretrain": 32}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("fp32 eager", "bf16 eager", "fp16 eager", "bf16 compiled")
TINY: dict[str, Any] = {"depth": 4, "embed_dim": 32, "num_heads": 2}
ROUNDS, SHORT = 20, 3.0  # steps of a measurement, and the seconds after which fewer do, at least three


@dataclass
class Row:
    """One measurement, or in `note` why there is none."""

    model: str
    work: str
    way: str
    batch: int | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    difference: float | None = None
    note: str = ""


class OutOfTime(Exception):
    """The budget ended in the middle of a measurement."""


class Work:
    """A network and what is done with it: `step(batch)` once, `result()` to compare with other ways.

    size: of SIZES. small: a tiny network. way: of WAYS.
    """

    def __init__(self, size: str, small: bool, device: torch.device, way: str) -> None:
        self.side, self.local_side = (56, 28) if small else (224, 98)
        self.name, self.arguments = SIZES[size], {"img_size": self.side, **(TINY if small else {})}
        self.layers = (0, 1, 2, 3) if small else LAYERS[size]
        self.small, self.device = small, device
        precision, mode = way.split()
        self.dtype, self.compiled = DTYPES[precision], mode == "compiled"
        torch.manual_seed(0)
        self.build()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compiled else function

    def images(self, batch: int, side: int | None = None) -> Tensor:
        side = side or self.side
        generator = torch.Generator().manual_seed(side)
        return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator).to(self.device)

    def build(self) -> None:
        raise NotImplementedError

    def step(self, batch: int) -> Tensor:
        """Do the work once and return what `result` compares."""
        raise NotImplementedError


class Inference(Work):
    """Features of four layers of a frozen backbone."""

    def build(self) -> None:
        self.backbone = load_backbone(self.name, None, frozen=True, **self.arguments).to(self.device)
        self.features = self.compile(lambda x: self.backbone(x, layers=self.layers, norm=True))

    @torch.no_grad()
    def step(self, batch: int) -> Tensor:
        with self.autocast():
            maps = self.features(self.backbone.normalise(self.images(batch))).maps
        return maps[-1]


class Head(Inference):
    """A DPT head for 21 classes that trains on a frozen backbone."""

    def build(self) -> None:
        super().build()
        width = 32 if self.small else 256
        dim = self.backbone.spec.dim
        neck = DPT(in_channels=(dim,) * 4, width=width, reassemble=(width,) * 4, readout="project")
        self.head = neck.with_outputs(labels=Classes(21)).to(self.device)
        self.decode = self.compile(self.head)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), 1e-4)

    def step(self, batch: int) -> Tensor:
        with self.autocast():
            with torch.no_grad():
                features = self.features(self.backbone.normalise(self.images(batch)))
            logits = self.decode(features)["labels"]
        loss = nn.functional.cross_entropy(logits.float(), self.images(batch)[:, 0].long() % 21)
        loss.backward()
        gradient = next(p.grad for p in self.head.parameters() if p.grad is not None).clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return gradient


class Pretrain(Work):
    """Student, teacher and optimiser of DINOv2's objective, without data loading."""

    def build(self) -> None:
        head = HeadOptions(256, 64, 32) if self.small else HeadOptions(65536)
        self.module = DINO(
            BackboneOptions(self.name, self.arguments, drop_path=0.0), head, TeacherOptions(centering="sinkhorn"),
            ibot=IBOTOptions(1.0, head), koleo=KoLeoOptions(0.1), steps=1000,
        ).to(self.device)  # fmt: skip
        self.module.teacher.train()
        self.module.trainer = SimpleNamespace(world_size=1, global_rank=0)  # type: ignore[assignment]
        self.module.masks.seed = 0
        if self.compiled:
            self.module.student.compile()
            self.module.teacher.network.compile()
        self.optimizer = build_optimizer("adamw", parameter_groups(self.module.student, 0.04))
        set_hyperparameters(self.optimizer, 1e-4, 0.04)

    def step(self, batch: int) -> Tensor:
        module = self.module
        module.schedules, module._total_batch = module.plan(10**6, batch), batch
        views = [self.images(batch, side) for side in (self.side, self.side, *[self.local_side] * 8)]
        index = torch.arange(batch, device=self.device)
        terms: list[Any] = list(module.terms.values())
        with self.autocast():
            outputs = module.run_networks(ViewBatch(views, index, index[:0], []), 1, 0)
            loss = torch.stack([term.weight(1) * term(outputs) for term in terms]).sum()
        loss.backward()
        gradient = next(p.grad for p in module.student.parameters() if p.grad is not None).clone()
        clip_gradients_(module.student.parameters(), 3.0, "global")
        self.optimizer.step()
        self.optimizer.zero_grad()
        for term in terms:
            term.after_step()
        module.teacher.after_step(module.student, 0.996)
        return gradient


WORKS: dict[str, type[Work]] = {"inference": Inference, "head": Head, "pretrain": Pretrain}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def forget(device: torch.device) -> None:
    """Free what earlier measurements held."""
    gc.collect()
    torch._dynamo.reset()
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def measure(work: Work, batch: int, device: torch.device) -> tuple[float, float | None]:
    """Return images per second and the peak of memory in MB of a step that has warmed up."""
    for _ in range(3):
        work.step(batch)
    synchronise(device)
    memory = getattr(torch, device.type) if device.type != "cpu" else None
    if hasattr(memory, "reset_peak_memory_stats"):
        memory.reset_peak_memory_stats()
    times, begin = [], time.perf_counter()
    while len(times) < ROUNDS and (len(times) < 3 or time.perf_counter() - begin < SHORT):
        start = time.perf_counter()
        work.step(batch)
        synchronise(device)
        times.append(time.perf_counter() - start)
    peak = memory.max_memory_allocated() / 2**20 if hasattr(memory, "max_memory_allocated") else None
    return batch / statistics.median(times), peak


def fill(row: Row, make: Callable[[], Work], batch: int, device: torch.device, reference: Tensor | None) -> Tensor:
    """Measure one way; return its result for two images. Out of memory halves the batch."""
    work = make()
    result = work.step(2).float().cpu()
    if not bool(result.isfinite().all()):
        row.note = "not finite"
    if reference is not None:
        row.difference = float((result - reference).norm() / reference.norm())
    while True:
        try:
            row.images_per_second, row.peak_memory_mb = measure(work, batch, device)
            row.batch = batch
            return result
        except Exception as error:
            if not is_out_of_memory(error) or batch < 4:
                raise
        del work  # outside the handler, whose traceback holds tensors
        forget(device)
        batch //= 2
        row.note = f"batch halved to {batch}, more does not fit"
        work = make()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside this context after so many seconds, where the system has alarms."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(rows: list[Row], about: str) -> str:
    """Return the measurements in Markdown."""
    lines = [about, "", "| model | work | way | batch | images/s | peak MB | difference to fp32 eager | note |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        found = (row.batch, row.images_per_second, row.peak_memory_mb, row.difference)
        forms = ("d", ".4g", ".0f", ".1e")
        numbers = ["" if v is None else format(v, form) for v, form in zip(found, forms, strict=True)]
        lines.append(f"| {row.model} | {row.work} | {row.way} | {' | '.join(numbers)} | {row.note} |")
    return "\n".join(lines) + "\n"


def accelerator() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else torch.device(found.type)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        name = f"{device.type} of {platform.machine()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, timm {timm.__version__}, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Measure everything that there is time for, and write the table."""
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.md and gpu.json")
    parser.add_argument("--seconds", type=float, default=450, help="budget of time")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="fp32 eager is always measured")
    parser.add_argument("--batch", type=int, help="images of a step, instead of each work's own")
    parser.add_argument("--device", type=torch.device, default=accelerator())
    parser.add_argument("--small", action="store_true", help="tiny networks, small batches")
    options = parser.parse_args()
    if options.batch is not None and options.batch < 2:
        parser.error(f"--batch {options.batch}: expected at least 2, since KoLeo compares images")
    device, small = options.device, options.small or options.device.type == "cpu"
    end = time.monotonic() + options.seconds
    options.output.mkdir(parents=True, exist_ok=True)
    about = f"{describe(device)}{'; tiny networks, whose numbers mean nothing' if small else ''}"
    print(about)
    rows: list[Row] = []
    for size in options.sizes:
        for name in options.works:
            reference: Tensor | None = None
            batch = options.batch or (2 if small else BATCH[name])
            for way in [way for way in WAYS if way == WAYS[0] or way in options.ways]:
                if way.startswith("fp16") and (name != "inference" or device.type == "cpu"):
                    continue
                row = Row(f"ViT-{size}", name, way)
                rows.append(row)
                try:
                    with limited(end - time.monotonic()):
                        make = lambda n=name, s=size, w=way: WORKS[n](s, small, device, w)  # noqa: E731
                        result = fill(row, make, batch, device, reference)
                        reference = result if reference is None and way == WAYS[0] else reference
                except OutOfTime:
                    row.note = "no time left"
                except Exception as error:  # the others are measured all the same
                    words = " ".join(str(error).split())[:100].replace("|", "/")
                    row.note = "does not fit" if is_out_of_memory(error) else f"{type(error).__name__}: {words}"
                forget(device)
                print(json.dumps(asdict(row)), flush=True)
    (options.output / "gpu.md").write_text(table(rows, about))
    plain = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()} for row in rows]
    (options.output / "gpu.json").write_text(json.dumps({"about": about, "rows": plain}, indent=1) + "\n")
    print(f"wrote {options.output / 'gpu.md'} and gpu.json")


if __name__ == "__main__":
    main()
