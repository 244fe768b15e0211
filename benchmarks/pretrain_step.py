"""One training step of DINO ViT-S/16 against the textbook implementation of the same step.

The textbook step below follows the formulas of the paper with PyTorch's defaults, in fp32: timm's ViT on concatenated
crops of equal size, weight_norm, a log-softmax per pair of views, clipping per tensor, AdamW, and an EMA in loops.
Both start from the same weights and use the same images; their losses are printed side by side. Numbers are medians
of paired steps, alternating; memory is the peak of resident memory of a process of its own, beyond what was resident
before.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _claims import record
from _measure import alternate, arguments, last_number, median_ratio, peak_memory
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pretrain.module import DINO
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import BackboneOptions, HeadOptions

LR, WEIGHT_DECAY, MOMENTUM, TEMPERATURE, CLIP = 5e-4, 0.04, 0.996, 0.04, 3.0


class TextbookHead(nn.Module):
    """The projection head with PyTorch's weight_norm."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last_layer = weight_norm(nn.Linear(256, prototypes, bias=False))
        self.last_layer.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Textbook:
    """Student, teacher and the step of the paper."""

    def __init__(self, ours: DINO, prototypes: int) -> None:
        backbone = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)
        backbone.load_state_dict(ours.student.backbone.model.state_dict())
        head = TextbookHead(384, prototypes)
        mine = ours.student.head.state_dict()
        head.mlp.load_state_dict({k.removeprefix("mlp."): v for k, v in mine.items() if k.startswith("mlp.")})
        weight = head.last_layer.parametrizations.weight
        weight.original0.data.copy_(mine["last_layer.weight_g"])
        weight.original1.data.copy_(mine["last_layer.weight_v"])
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        decay = [
            p for n, p in self.student.named_parameters() if p.requires_grad and p.ndim > 1 and not n.endswith("bias")
        ]
        rest = [
            p
            for n, p in self.student.named_parameters()
            if p.requires_grad and not (p.ndim > 1 and not n.endswith("bias"))
        ]
        groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR)
        self.center = torch.zeros(1, prototypes)
        self.mean, self.std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (ours.backbone.spec.mean, ours.backbone.spec.std)
        )

    def logits(self, network: nn.ModuleDict, crops: list[Tensor]) -> Tensor:
        """Run crops of equal size together, and the head once."""
        sizes = sorted({c.shape[-1] for c in crops}, reverse=True)
        features = []
        for size in sizes:
            images = torch.cat([c for c in crops if c.shape[-1] == size]).float() / 255
            features.append(network["backbone"].forward_features((images - self.mean) / self.std)[:, 0])
        return network["head"](torch.cat(features))

    def step(self, crops: list[Tensor]) -> float:
        """Run one step and return the loss."""
        with torch.no_grad():
            teacher = self.logits(self.teacher, crops[:2])
        student = (self.logits(self.student, crops) / 0.1).chunk(len(crops))
        targets = ((teacher - self.center) / TEMPERATURE).softmax(-1).chunk(2)
        total, pairs = torch.zeros(()), 0
        for i, target in enumerate(targets):
            for v, logits in enumerate(student):
                if v != i:
                    total = total + (-target * logits.log_softmax(-1)).sum(-1).mean()
                    pairs += 1
        loss = total / pairs
        self.optimizer.zero_grad()
        loss.backward()
        for p in self.student.parameters():
            if p.grad is not None:
                coefficient = CLIP / (p.grad.norm() + 1e-6)
                if coefficient < 1:
                    p.grad.mul_(coefficient)
        self.optimizer.step()
        with torch.no_grad():
            self.center = self.center * 0.9 + teacher.mean(0, keepdim=True) * 0.1
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(MOMENTUM).add_(theirs.detach(), alpha=1 - MOMENTUM)
        return float(loss.detach())


class Ours:
    """The parts of `pretrain`, in the order of its module."""

    def __init__(self, module: DINO, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype
        self.term: Any = module.terms["dino"]
        self.optimizer = build_optimizer("adamw", parameter_groups(module.student, WEIGHT_DECAY))
        set_hyperparameters(self.optimizer, LR, WEIGHT_DECAY)
        self.parts: dict[str, list[float]] = {}

    def step(self, crops: list[Tensor]) -> float:
        """Run one step, record the time of each part and return the loss."""
        m = self.module
        clock = time.perf_counter()

        def note(part: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            self.parts.setdefault(part, []).append(now - clock)
            clock = now

        with torch.autocast("cpu", dtype=self.dtype) if self.dtype != torch.float32 else nullcontext():
            teacher = m.teacher(crops[:2]).logits
            targets = self.term.targets(teacher, 0, 1)
            note("teacher")
            groups = [m.student._images(g) for g in (crops[:2], crops[2:])]
            features, _ = m.student.backbone.image_features(groups)
            note("student")
            logits = m.student.head(features)
            note("head")
            loss = self.term.loss(logits, targets)
            note("loss")
        loss.backward()
        note("backward")
        clip_gradients_(m.student.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        note("optimiser")
        self.term.after_step()
        m.teacher.after_step(m.student, MOMENTUM)
        note("EMA")
        return float(loss.detach())


def build(way: str, prototypes: int) -> Callable[[list[Tensor]], float]:
    """Return the step function of "textbook", "float32" or "bfloat16"."""
    module = DINO(
        BackboneOptions("vit_small_patch16_224", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, 0.0),
        HeadOptions(prototypes),
    )
    module.teacher.train()
    return Textbook(module, prototypes).step if way == "textbook" else Ours(module, getattr(torch, way)).step


def views(batch: int, crops: int) -> list[Tensor]:
    """Return 2 global views of 224 px and `crops` local ones of 96 px, uint8."""
    generator = torch.Generator().manual_seed(0)
    sizes = [224] * 2 + [96] * crops
    return [torch.randint(0, 256, (batch, 3, s, s), dtype=torch.uint8, generator=generator) for s in sizes]


def main() -> None:
    """Print the comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--ways", nargs="+", default=None, help="textbook, float32, and bfloat16 if the processor has it"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    crops = views(options.batch, options.local_crops)
    if options.memory:
        step = build(options.memory, options.prototypes)
        print(peak_memory(lambda: step(crops)))
        return
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    print(
        f"ViT-S/16, batch {options.batch}, 2x224 + {options.local_crops}x96, K {options.prototypes}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}; "
        f"this processor {'computes' if has_bf16 else 'does NOT compute'} in bf16"
    )
    ways = options.ways or ["textbook", "float32", *(["bfloat16"] if has_bf16 else [])]
    steps = {way: build(way, options.prototypes) for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    runs = [lambda way=way: losses[way].append(steps[way](crops)) for way in ways]  # type: ignore[misc]
    times = dict(zip(ways, alternate(runs, options.repeats, warm_up=1), strict=True))
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("batch", "local_crops", "prototypes")]
    memory = {way: last_number(__file__, *given, "--memory", way) for way in ways}
    print(f"{'way':<10} {'median s':>9} {'textbook/ours':>14} {'peak MB':>9} {'ours/textbook':>14}   losses")
    for way in ways:
        ratio, more = median_ratio(times["textbook"], times[way]), memory[way] / memory["textbook"]
        print(
            f"{way:<10} {statistics.median(times[way]):>9.2f} {ratio:>14.2f} {memory[way]:>9.0f} {more:>14.2f}   "
            + " ".join(f"{v:.5f}" for v in losses[way])
        )
        if way == "textbook":
            continue
        what, peer = f"training step, ViT-S/16, batch {options.batch}, {way}", f"textbook, timm {timm.__version__}"
        mine, theirs = (f"{statistics.median(times[one]):.2f} s" for one in (way, "textbook"))
        record(what, peer=peer, ours=mine, theirs=theirs, ratio=ratio, least=1.15 if way == "float32" else 2)
        record(
            f"{what}, memory", peer=peer, ours=f"{memory[way]:.0f} MB", theirs=f"{memory['textbook']:.0f} MB",
            ratio=memory["textbook"] / memory[way], least=None if way == "float32" else 1 / 0.75,
        )  # fmt: skip
    if "bfloat16" not in ways:
        record(f"training step, ViT-S/16, batch {options.batch}, bfloat16", ours="not measured: emulated here")
    parts = steps["float32"].__self__.parts  # type: ignore[attr-defined]
    print(
        "parts of our fp32 step, s: " + ", ".join(f"{name} {statistics.median(v[1:]):.3f}" for name, v in parts.items())
    )


if __name__ == "__main__":
    main()
