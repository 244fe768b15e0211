"""Low-rank adaptation: a frozen linear layer learns a small product beside itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from dense.backbone import Backbone
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


@dataclass(frozen=True)
class TuneOptions:
    """unfreeze: "none", "all", or how many of the last blocks learn (the final norm with them). layer_decay: factor of
    the learning rate from a block to the one before it. lora_rank: 0 for none; lora_targets: names of linear layers.
    lr_scale: learning rate of the backbone as a share of the head's."""

    unfreeze: Literal["none", "all"] | int = "none"
    layer_decay: float = 1.0
    lr_scale: float = 1.0
    lora_rank: int = 0
    lora_alpha: float = 8.0
    lora_targets: tuple[str, ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        counted = isinstance(self.unfreeze, int) and not isinstance(self.unfreeze, bool)
        if self.unfreeze not in ("none", "all") and not (counted and self.unfreeze >= 1):  # type: ignore[operator]
            raise ValueError(f"unfreeze={self.unfreeze!r}: expected none, all or a number of blocks of at least 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: expected more than 0 and at most 1")
        if self.lora_rank and self.unfreeze != "none":
            raise ValueError("lora_rank and unfreeze exclude one another; choose one")

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays exactly as it is."""
        return self.unfreeze == "none" and not self.lora_rank


def prepare(
    backbone: Backbone, options: TuneOptions, layers: tuple[int, ...] | None = None, norm: bool | str = True
) -> Backbone:
    """Freeze what shall not learn, and what a head that reads `layers` with `norm` never sees (by default it sees all).

    The last blocks are the last that it sees. Parameters without a part in the loss would stall distributed training;
    the mask token is one, for nothing is masked here.
    """
    backbone.freeze()
    if options.frozen:
        return backbone
    if options.lora_rank:
        add_lora(backbone.model, options.lora_rank, options.lora_alpha, options.lora_targets)  # type: ignore[arg-type]
        backbone.frozen = False
        for name in unseen(backbone, layers, norm):
            backbone.get_parameter(name).requires_grad_(False)
        return backbone
    numbers, hidden = layer_numbers(backbone), unseen(backbone, layers, norm)
    top = max(number for name, number in numbers.items() if name not in hidden)
    count = options.unfreeze if isinstance(options.unfreeze, int) else top + 1
    if isinstance(options.unfreeze, int) and count > backbone.spec.depth:
        raise ValueError(f"unfreeze={count}: {backbone.spec.name} has {backbone.spec.depth} blocks; use all for all")
    backbone.frozen = False
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(numbers[name] > top - count and name not in hidden)
    return backbone


def unseen(backbone: Backbone, layers: tuple[int, ...] | None, norm: bool | str) -> set[str]:
    """Names of parameters that take no part in what a head sees."""
    hidden, spec = {"mask_token"}, backbone.spec
    if layers is None or spec.kind == "pyramid":
        return hidden
    deepest = max(layers)
    normed = norm is True or (norm == "last" and deepest == spec.depth - 1)
    for name, _ in backbone.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["model", "blocks"] and int(parts[2]) > deepest:
            hidden.add(name)
        if parts[:2] == ["model", "norm"] and not normed:
            hidden.add(name)
    return hidden


def layer_numbers(backbone: Backbone) -> dict[str, int]:
    """Layer of each parameter as timm counts: 0 for everything before the first block, 1 for the first block, ..., the
    final norm with the last block."""
    model: Any = backbone.model
    inside = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {
        name: inside[name.removeprefix("model.")] if "model." in name else 0 for name, _ in backbone.named_parameters()
    }


def parameter_groups(
    network: nn.Module, lr: float, layer_decay: float, weight_decay: float, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of equal learning rate and weight decay of a network with a `backbone`.

    A layer of the backbone learns with lr * lr_scale * layer_decay^(L + 1 - layer), everything else with lr. Biases,
    norms, tokens and positions do not decay.
    """
    backbone: Any = network.backbone
    learns = any(p.requires_grad for p in backbone.parameters())
    numbers = layer_numbers(backbone) if learns else {}
    top = max(numbers.values(), default=0) + 1
    spared = set(backbone.model.no_weight_decay()) if hasattr(backbone.model, "no_weight_decay") else set()
    spared |= {"class_position", "reg_token"}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        own, inside = name.removeprefix("backbone."), name.startswith("backbone.")
        layer = numbers[own] if inside else top
        decays = parameter.ndim > 1 and own.removeprefix("model.") not in spared
        rate = lr * (lr_scale * layer_decay ** (top - layer) if inside else 1.0)
        group = groups.setdefault(
            (layer, decays), {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        )
        group["params"].append(parameter)
    return list(groups.values())
