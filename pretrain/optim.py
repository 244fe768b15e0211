"""Parameter groups, optimisers and gradient clipping as DINO uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.sharding import local, norms

DECAY, NO_DECAY = "decay", "no_decay"


def parameter_groups(
    module: nn.Module, weight_decay: float = 0.04, layer_decay: float = 1.0, patch_embed_lr: float = 1.0
) -> list[dict[str, Any]]:
    """The trainable parameters of ``module`` in named groups: matrices decay, biases and 1-d parameters do not.

    With `layer_decay` or `patch_embed_lr` there is a pair of groups for each learning rate; see `lr_scale`. Groups without
    parameters are left out, but for the first pair.
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
    """A parameter's factor of the learning rate: ``layer_decay ** (depth + 1 - layer)``, the embedding being layer 0.

    Block i is layer i + 1; the final norm and the heads are layer depth + 1. The patch embedding has `patch_embed_lr` beside.
    """
    if found := _EMBEDDING.search(name):
        return layer_decay ** (depth + 1) * (patch_embed_lr if found[1] == "patch_embed" else 1.0)
    if found := _BLOCK.search(name):
        return layer_decay ** (depth - int(found[1]))
    return 1.0


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Write this step's learning rate to every group (times its ``lr_scale``, if any), weight decay to the decayed."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if group.get("name") == DECAY:
            group["weight_decay"] = weight_decay


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float = 0.0, **options: Any) -> torch.optim.Optimizer:
    """An optimiser by name, "adamw", "sgd" (momentum 0.9) or "lars"; ``options`` go to its constructor.

    A learning rate of 0 is what a schedule overwrites at the first step.
    """
    builders: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": _adamw, "sgd": _sgd, "lars": LARS}
    if name not in builders:
        raise ValueError(f"unknown optimiser {name!r}: expected one of {', '.join(builders)}")
    return builders[name](groups, lr=lr, **options)


def _adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    # The fused kernel updates all parameters in one pass over memory; not every device has it.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **({"fused": fused} | options))


def _sgd(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, **({"momentum": 0.9} | options))


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is, for every matrix, proportional to the norm of that matrix.

    With ``u = gradient + weight_decay * w`` and ``r = trust * |w| / |u|`` (1 where either norm is 0)::

        m <- momentum m + r u        w <- w - lr m

    Parameters of one dimension get neither weight decay nor scaling.
    You et al., "Large Batch Training of Convolutional Networks", 2017, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure``, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices = [parameter for parameter in trained if parameter.ndim > 1]
            vectors = [parameter for parameter in trained if parameter.ndim <= 1]
            if matrices:
                self._move(matrices, self._trusted(matrices, group["weight_decay"], group["trust"]), group)
            if vectors:
                self._move(vectors, _gradients(vectors), group)
        return loss

    def _trusted(self, weights: list[Tensor], weight_decay: float, trust: float) -> tuple[Tensor, ...]:
        parts = [local(weight) for weight in weights]
        updates = torch._foreach_add(_gradients(weights), parts, alpha=weight_decay)
        weight_norms, update_norms = norms(parts, weights[0]), norms(updates, weights[0])
        scaled = (weight_norms > 0) & (update_norms > 0)
        ratios = torch.where(scaled, trust * weight_norms / update_norms, torch.ones_like(weight_norms))
        torch._foreach_mul_(updates, ratios.unbind())
        return updates

    def _move(self, weights: list[Tensor], updates: Iterable[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [local(self.state[weight]["momentum_buffer"]) for weight in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, tuple(updates))
        torch._foreach_add_([local(weight) for weight in weights], momenta, alpha=-group["lr"])


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[Tensor], max_norm: float, mode: Literal["per_parameter", "global"] = "per_parameter"
) -> Tensor:
    """Scale gradients whose norm exceeds ``max_norm`` down to it, in place; returns their total norm from before.

    "per_parameter" looks at every tensor by itself, as the published DINO recipes; "global" at all of them together.
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
        # Here reading the coefficients is free and multiplying by 1 a pass over memory; elsewhere reading is a wait.
        chosen = [index for index, coefficient in enumerate(coefficients.tolist()) if coefficient != 1]
        gradients, coefficients = [gradients[index] for index in chosen], coefficients[chosen]
    if gradients:
        torch._foreach_mul_(gradients, coefficients.unbind())


def drop_gradients_(parameters: Iterable[Tensor]) -> None:
    """Forget the gradients, so that the optimiser leaves these parameters alone, weight decay and momentum included.

    ``drop_gradients_(head.prototypes)`` before the step keeps the last layer still during the first epoch.
    """
    for parameter in parameters:
        parameter.grad = None


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
