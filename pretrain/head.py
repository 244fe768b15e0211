"""The DINO projection head: an MLP, a bottleneck on the unit sphere, and prototypes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LastLayer = Literal["weight_norm", "linear"]


class ProjectionHead(nn.Module):
    """Maps features to one logit per prototype: MLP -> L2 normalisation -> weight-normalised linear layer.

    With ``norm_last_layer`` the prototypes have unit length, so every logit is a cosine; without it the length of each
    prototype is learned. ``last_layer="linear"`` is DINOv3's layer, without weight normalisation. The keys of the state
    dict are those of the published checkpoints.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, appendix C.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        last_layer: LastLayer = "weight_norm",
    ) -> None:
        super().__init__()
        if last_layer not in get_args(LastLayer):
            raise ValueError(f"last_layer={last_layer!r}: expected one of {', '.join(get_args(LastLayer))}")
        self.mlp = _mlp(in_dim, hidden_dim, bottleneck_dim, layers, batch_norm)
        self.last_layer: nn.Module = (
            nn.Linear(bottleneck_dim, out_dim, bias=False)
            if last_layer == "linear"
            else Prototypes(bottleneck_dim, out_dim, learn_norm=not norm_last_layer)
        )
        self.apply(_init_weights)

    @property
    def prototypes(self) -> list[nn.Parameter]:
        """Parameters of the last layer, which is frozen at the start of training."""
        return list(self.last_layer.parameters())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (..., K) of features (..., in_dim)."""
        bottleneck = F.normalize(self.mlp(features).float(), dim=-1)  # ..., bottleneck_dim
        return self.last_layer(bottleneck)


class Prototypes(nn.Module):
    """Linear layer whose row k is ``g_k v_k / |v_k|``: K directions with a fixed (1) or a learned norm."""

    def __init__(self, in_dim: int, prototypes: int, learn_norm: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_norm)
        self.weight_v = nn.Parameter(torch.empty(prototypes, in_dim))
        # Only the direction of v counts, but its length sets how fast the direction changes. As in the published head,
        # it is initialised by PyTorch's default for a linear layer.
        nn.init.uniform_(self.weight_v, -(in_dim**-0.5), in_dim**-0.5)

    @property
    def out_features(self) -> int:
        return len(self.weight_v)

    @property
    def weight(self) -> Tensor:
        """The effective weight (K, D)."""
        return self.weight_g * F.normalize(self.weight_v, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., K) of x (..., D), in the autocast dtype if autocast is enabled."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight_v.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # N, D
        logits = _WeightNormLinear.apply(rows, self.weight_v, self.weight_g, dtype)  # N, K
        return logits.unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        prototypes, in_dim = self.weight_v.shape
        return f"in_dim={in_dim}, prototypes={prototypes}, learn_norm={self.weight_g.requires_grad}"


class _WeightNormLinear(torch.autograd.Function):
    """``x v^T`` with each column scaled by g / |v|.

    Scaling the logits (N, K) instead of the weight (K, D) needs no normalised copy of the weight, and the gradient
    through the norms is added in place. Norms and scales stay in fp32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        weight = v.to(dtype)
        inverse_norm = torch.linalg.vector_norm(v, dim=1, dtype=_at_least_fp32(v)).reciprocal_()  # K
        logits = torch.mm(x, weight.t()).mul_(inverse_norm * g.squeeze(1))  # N, K
        ctx.save_for_backward(x, v, g, weight, inverse_norm, logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, v, g, weight, inverse_norm, logits = ctx.saved_tensors
        needs_x, needs_v, needs_g, _ = ctx.needs_input_grad
        along = (grad * logits).sum(0, dtype=inverse_norm.dtype)  # K: <dL/dw_k, w_k>
        scaled = grad * (inverse_norm * g.squeeze(1)).to(grad.dtype)  # N, K
        grad_x = grad_v = grad_g = None
        if needs_x:
            grad_x = torch.mm(scaled, weight)
        if needs_v:
            grad_v = torch.mm(scaled.t(), x).to(v.dtype)  # K, D
            grad_v.addcmul_(v, (along * inverse_norm.square()).unsqueeze(1).to(v.dtype), value=-1)
        if needs_g:
            grad_g = (along.unsqueeze(1) / g).to(g.dtype)
        return grad_x, grad_v, grad_g, None


def _at_least_fp32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _mlp(in_dim: int, hidden_dim: int, out_dim: int, layers: int, batch_norm: bool) -> nn.Module:
    if layers < 1:
        raise ValueError(f"layers={layers}: a projection head has at least 1 layer (published: 3)")
    if layers == 1:
        return nn.Linear(in_dim, out_dim)
    blocks: list[nn.Module] = []
    for width in [in_dim] + [hidden_dim] * (layers - 2):
        # A bias before batch norm has no effect, but the published layout has it.
        blocks += [nn.Linear(width, hidden_dim), *([BatchNorm(hidden_dim)] if batch_norm else []), nn.GELU()]
    return nn.Sequential(*blocks, nn.Linear(hidden_dim, out_dim))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that uses its running statistics for fewer than two rows, since masks may leave none."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
