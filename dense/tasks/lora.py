"""Low-rank adaptation: a frozen linear layer learns a small product beside itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dense.suggest import did_you_mean


class LoRALinear(nn.Module):
    """``y = W x + b + (alpha / rank) * B A x`` with W and b frozen, A random and B zero at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. `merged` gives the plain layer back.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, linear.in_features, dtype=linear.weight.dtype))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.linear(x) + F.linear(F.linear(x, self.a), self.b) * self.scale

    @property
    def weight(self) -> Tensor:
        """The weight that this layer amounts to, for code that multiplies by itself (attention rows, keys)."""
        return self.linear.weight + self.scale * self.b @ self.a

    @property
    def bias(self) -> Tensor | None:
        """The bias of the frozen layer."""
        return self.linear.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A linear layer that computes the same."""
        self.linear.weight.copy_(self.weight)
        return self.linear


def add_lora(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> list[str]:
    """Replace every linear layer whose name ends in one of `targets` ("qkv", "proj", "fc1", ...); their names."""
    if rank < 1:
        raise ValueError(f"lora rank is {rank}; expected at least 1 (usual: 4 to 16)")
    linear = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in targets:
        if target not in known:
            raise ValueError(
                f"no linear layer is called {target!r}; there are {', '.join(known)}.{did_you_mean(target, known)}"
            )
    chosen = [name for name in linear if name.rsplit(".", 1)[-1] in targets]
    for name in chosen:
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, LoRALinear(linear[name], rank, alpha))
    return chosen


def merge_lora(module: nn.Module) -> None:
    """Put plain layers back, with what was learnt added to their weights."""
    for name, layer in list(_adapted(module)):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.merged())


def _adapted(module: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer
