"""Parameter groups, optimisers, gradient clipping and schedules as DINO uses them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from timm.optim import Lars
from torch import Tensor, nn

from pretrain.recipe import Recipe
from pretrain.sharding import local, norms

DECAY, NO_DECAY = "decay", "no_decay"


def parameter_groups(
    module: nn.Module, weight_decay: float = 0.04, layer_decay: float = 1.0, patch_embed_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters of `module` in named groups: biases and 1-d parameters have no weight decay.

    With `layer_decay` or `patch_embed_lr` there is a pair of groups for each learning rate; see `lr_scale`. The pair of
    the full learning rate is always there, others only where they have parameters.
    """
    depth = 1 + max(
        (int(found[1]) for name, _ in module.named_parameters() if (found := _BLOCK.search(name))), default=-1
    )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias")
            groups.setdefault((lr_scale(name, depth, layer_decay, patch_embed_lr), decays), []).append(parameter)
    return [
        {
            "name": DECAY if decays else NO_DECAY,
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            **({"lr_scale": scale} if scale != 1 else {}),
        }
        for (scale, decays), parameters in groups.items()
    ]


_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(patch_embed|pos_embed|cls_token|reg_token|mask_token|class_position)(?:\.|$)")


def lr_scale(name: str, depth: int, layer_decay: float, patch_embed_lr: float) -> float:
    """Return a parameter's factor of the learning rate: ``layer_decay ** (depth + 1 - layer)``.

    The embedding is layer 0, block i is layer i + 1, and the final norm and the heads are layer depth + 1. The factor
    of the patch embedding is also multiplied by `patch_embed_lr`.
    """
    if found := _EMBEDDING.search(name):
        return layer_decay ** (depth + 1) * (patch_embed_lr if found[1] == "patch_embed" else 1.0)
    if found := _BLOCK.search(name):
        return layer_decay ** (depth - int(found[1]))
    return 1.0


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set the learning rate of every group, times its ``lr_scale``, and the weight decay of groups that decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if group.get("name") == DECAY:
            group["weight_decay"] = weight_decay


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float = 0.0, **options: Any) -> torch.optim.Optimizer:
    """Return an optimiser by name: "adamw", "sgd" or timm's "lars", the latter two with momentum 0.9.

    ``options`` go to its constructor. A schedule overwrites the learning rate at the first step.
    """
    builders: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": _adamw,
        "sgd": partial(torch.optim.SGD, momentum=0.9),
        "lars": partial(Lars, momentum=0.9),
    }
    if name not in builders:
        raise ValueError(f"unknown optimiser {name!r}: expected one of {', '.join(builders)}")
    return builders[name](groups, lr=lr, **options)


def _adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    # The fused kernel updates all parameters in one pass over memory; not every device has it.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **({"fused": fused} | options))


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[Tensor], max_norm: float, mode: Literal["per_parameter", "global"] = "per_parameter"
) -> Tensor:
    """Scale gradients whose norm exceeds ``max_norm`` down to it, in place; return their total norm before.

    "per_parameter" takes the norm of each gradient, as the published DINO recipes do, "global" that of all together.
    A ``max_norm`` of 0 clips nothing.
    """
    if mode not in ("per_parameter", "global"):
        raise ValueError(f"mode={mode!r}: expected 'per_parameter' or 'global'")
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if not trained:
        return torch.zeros(())
    gradients = _gradients(trained)
    each = norms(gradients, trained[0])
    total = torch.linalg.vector_norm(each)
    if max_norm > 0:
        limited = each if mode == "per_parameter" else total.expand_as(each)
        _scale_(gradients, (max_norm / (limited + 1e-6)).clamp(max=1))
    return total


def _scale_(gradients: list[Tensor], coefficients: Tensor) -> None:
    if coefficients.device.type == "cpu":
        # On a CPU, reading the coefficients is free and avoids multiplications by 1; a GPU would have to synchronise.
        chosen = [index for index, coefficient in enumerate(coefficients.tolist()) if coefficient != 1]
        gradients, coefficients = [gradients[index] for index in chosen], coefficients[chosen]
    if gradients:
        torch._foreach_mul_(gradients, coefficients.unbind())


def drop_gradients_(parameters: Iterable[Tensor]) -> None:
    """Drop the gradients, so that the optimiser skips these parameters, weight decay and momentum included.

    ``drop_gradients_(head.prototypes)`` before the step freezes the last layer.
    """
    for parameter in parameters:
        parameter.grad = None


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]


@dataclass(frozen=True)
class Linear:
    """Schedule along a straight line: ``start`` at step 0, ``final`` at step ``steps - 1`` and later."""

    start: float
    final: float
    steps: int

    def __call__(self, step: int) -> float:
        if step >= self.steps - 1:
            return self.final
        return self.start + (self.final - self.start) * (max(step, 0) / (self.steps - 1))


@dataclass(frozen=True)
class Cosine:
    """Schedule of a linear warm-up and half a cosine.

    The warm-up goes from ``start`` at step 0 to ``base`` at step ``warmup_steps - 1``; a warm-up of one step stays at
    ``start``. The cosine then goes from ``base`` to ``final``, which it reaches at step ``steps``, one past the last,
    as published. A warm-up as long as the training or longer leaves no cosine.
    """

    base: float
    final: float
    steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup_steps < 0:
            raise ValueError(f"steps={self.steps}, warmup_steps={self.warmup_steps}: expected steps >= 1, warm-up >= 0")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (self.base - self.start) * (max(step, 0) / max(self.warmup_steps - 1, 1))
        if step >= self.steps:
            return self.final
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * progress))


class Schedules(NamedTuple):
    """Schedules of the optimiser step, and the length of the training. Terms have schedules of their own."""

    lr: Cosine
    weight_decay: Cosine
    momentum: Cosine
    steps: int
    steps_per_epoch: int


def plan_schedules(recipe: Recipe, images: int, total_batch: int) -> Schedules:
    """Return the schedules for `images` per pass in batches of `total_batch`, over all processes and micro-batches."""
    if images < total_batch:
        raise ValueError(f"{images} images are fewer than one total batch of {total_batch}; lower --data.batch_size")
    optim, teacher = recipe.optim, recipe.teacher
    per_epoch = recipe.steps_per_epoch or images // total_batch
    steps = recipe.steps or round(recipe.epochs * per_epoch)
    if steps < 1:
        raise ValueError(f"epochs={recipe.epochs} of {per_epoch} steps is no training; raise epochs or steps")
    warmup = min(round(optim.warmup_epochs * per_epoch), steps)
    lr = scale_lr(optim.lr, optim.lr_scaling, total_batch)
    return Schedules(
        lr=Cosine(lr, lr if optim.lr_schedule == "constant" else optim.min_lr, steps, warmup),
        weight_decay=Cosine(optim.weight_decay, optim.final_weight_decay, steps),
        momentum=Cosine(teacher.momentum, teacher.final_momentum, steps),
        steps=steps,
        steps_per_epoch=per_epoch,
    )


def scale_lr(lr: float, rule: Literal["linear", "sqrt", "none"], total_batch: int) -> float:
    """Return the learning rate for a total batch: "linear" from 256 images (DINO), "sqrt" from 1024 (DINOv2)."""
    if rule == "linear":
        return lr * total_batch / 256
    return lr * math.sqrt(total_batch / 1024) if rule == "sqrt" else lr
