"""Which parameters of the backbone are trained, with which learning rate: unfreezing, layer decay and LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.backbone.channels import input_parameters
from dense.suggest import did_you_mean
from dense.tasks.options import TuneOptions


class LoRALinear(nn.Module):
    """``y = W x + b + (alpha / rank) * B A x`` with W and b frozen, A random and B zero at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. `merged` returns a plain layer.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, linear.in_features, dtype=linear.weight.dtype))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.linear(x) + F.linear(F.linear(x, self.a), self.b) * self.scale

    @property
    def weight(self) -> Tensor:
        """The effective weight, for code that multiplies by it without calling the layer (attention rows, keys)."""
        return self.linear.weight + self.scale * self.b @ self.a

    @property
    def bias(self) -> Tensor | None:
        """The bias of the frozen layer, which LoRA leaves as it is."""
        return self.linear.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a linear layer that computes the same."""
        self.linear.weight.copy_(self.weight)
        return self.linear


def add_lora(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> list[str]:
    """Replace every linear layer named like one of `targets` ("qkv", "proj", "fc1", ...); return their names."""
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
    """Replace every adapted layer by a plain one with the learnt product added to its weight."""
    for name, layer in list(_adapted(module)):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.merged())


def _adapted(module: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer


def prepare(
    backbone: Backbone, options: TuneOptions, layers: tuple[int, ...] | None = None, norm: bool | str = True
) -> Backbone:
    """Freeze the parameters that `options` does not train, and those that a head on `layers` with `norm` does not use.

    "The last blocks" count from the deepest layer that the head uses. A trainable parameter without a gradient, such as
    the mask token, would stall distributed training.
    """
    backbone.freeze()
    if options.unfreeze == "none" and not options.lora_rank:
        return backbone
    if options.lora_rank:
        add_lora(backbone.model, options.lora_rank, options.lora_alpha, options.lora_targets)  # type: ignore[arg-type]
        backbone.frozen = False
        for name in unused(backbone, layers, norm):
            backbone.get_parameter(name).requires_grad_(False)
        return backbone
    numbers, hidden = layer_numbers(backbone), unused(backbone, layers, norm)
    top = max(number for name, number in numbers.items() if name not in hidden)
    count = options.unfreeze if isinstance(options.unfreeze, int) else top + 1
    if isinstance(options.unfreeze, int) and count > backbone.spec.depth:
        raise ValueError(f"unfreeze={count}: {backbone.spec.name} has {backbone.spec.depth} blocks; use all for all")
    backbone.frozen = False
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(numbers[name] > top - count and name not in hidden)
    return backbone


def unused(backbone: Backbone, layers: tuple[int, ...] | None, norm: bool | str) -> set[str]:
    """Return the names of parameters without influence on a head's features; without layers, the mask token's."""
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
    """Return the layer of each parameter as timm counts: 0 before the first block, 1 for the first block, ..., and the
    last block's number for the final norm."""
    model: Any = backbone.model
    numbers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {
        name: numbers[name.removeprefix("model.")] if "model." in name else 0 for name, _ in backbone.named_parameters()
    }


def free_patches(backbone: Backbone) -> bool:
    """Let the layers that read the image train; return whether they did already."""
    patches = input_parameters(backbone.model)
    trained = all(parameter.requires_grad for parameter in patches)
    for parameter in patches:
        parameter.requires_grad_(True)
    return trained


def parameter_groups(
    network: nn.Module,
    lr: float,
    layer_decay: float,
    weight_decay: float,
    lr_scale: float = 1.0,
    patches: Sequence[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Return parameter groups of equal learning rate and weight decay, for a network with a `backbone`.

    A layer of the backbone has the learning rate lr * lr_scale * layer_decay^(L + 1 - layer), every other parameter has
    lr. Biases, norms, tokens and positions have no weight decay. patches: parameters with a group of their own, whose
    learning rate without `layer_decay` is its "patch_lr".
    """
    backbone: Any = network.backbone
    trained = any(p.requires_grad for p in backbone.parameters())
    numbers = layer_numbers(backbone) if trained else {}
    top = max(numbers.values(), default=0) + 1
    undecayed = set(backbone.model.no_weight_decay()) if hasattr(backbone.model, "no_weight_decay") else set()
    undecayed |= {"class_position", "reg_token"}
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    apart = {id(parameter) for parameter in patches}
    for full_name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        name, inside = full_name.removeprefix("backbone."), full_name.startswith("backbone.")
        layer = numbers[name] if inside else top
        decays = parameter.ndim > 1 and name.removeprefix("model.") not in undecayed
        rate = lr * (lr_scale * layer_decay ** (top - layer) if inside else 1.0)
        patch = id(parameter) in apart
        group = groups.setdefault(
            (layer, decays, patch),
            {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0, "backbone": inside}
            | ({"patch_lr": lr * lr_scale} if patch else {}),
        )
        group["params"].append(parameter)
    return list(groups.values())
