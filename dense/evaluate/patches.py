"""Targets per patch, classes and depth, from maps in pixels; and the two linear probes that are fitted to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.5  # of a patch's pixels that must have a depth for the patch to have one


def shares(labels: Tensor, patch: int, classes: int) -> Tensor:
    """Return the share of each class in each patch (B, h, w, K) of labels (B, H, W)."""
    height, width = labels.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"{height}x{width} is no multiple of the patch, {patch}")
    cells = labels.long().unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # B, h, p, w, p
    cells = cells.transpose(-3, -2).flatten(-2)  # B, h, w, p*p
    counts = torch.zeros(*cells.shape[:-1], classes, device=labels.device)
    counts.scatter_add_(-1, cells, torch.ones_like(cells, dtype=counts.dtype))
    return counts / patch**2


def log_depths(depth: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return mean log depth and validity, each (B, h, w), of the patches of depth (B, H, W), not finite if unknown."""
    valid = torch.isfinite(depth) & (depth > 0)
    values = torch.where(valid, depth, 1.0).log()
    count = F.avg_pool2d(valid.float().unsqueeze(1), patch).squeeze(1)
    mean = F.avg_pool2d(values.unsqueeze(1), patch).squeeze(1) / count.clamp(min=1e-6)
    return mean, count >= SHARE


class Standardise:
    """Scale channels to mean 0 and deviation 1 over the given rows; constant channels become 0."""

    def __init__(self, features: Tensor) -> None:
        self.mean, self.std = features.mean(0), features.std(0, correction=0)
        self.std = torch.where(self.std > 1e-6 * (self.mean.abs() + 1), self.std, torch.inf)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


class LinearClassifier:
    """Multinomial logistic regression on standardised features (N, D), fitted by full-batch L-BFGS.

    Minimises mean cross-entropy + decay / 2 * |weight|^2 from zero; convex, hence without a learning rate or a seed.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3, steps: int = 100) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self.standardise = Standardise(features)
            x, y = self.standardise(features), labels.long().clone()
            self.weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
            self.bias = x.new_zeros(classes, requires_grad=True)
            solver = torch.optim.LBFGS(
                [self.weight, self.bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                solver.zero_grad()
                loss = F.cross_entropy(torch.addmm(self.bias, x, self.weight), y)
                loss = loss + decay / 2 * self.weight.square().sum()
                loss.backward()
                return loss.detach()

            solver.step(closure)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, features: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.standardise(features), self.weight).argmax(1)


class RidgeRegression:
    """Ridge regression on standardised features (N, D), in closed form and fp64; `penalty` is relative to variance."""

    def __init__(self, features: Tensor, targets: Tensor, penalty: float = 1e-3) -> None:
        self.standardise = Standardise(features)
        x = self.standardise(features)
        exact = "cpu" if x.device.type == "mps" else x.device  # MPS has no fp64
        gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=exact)
        moment = torch.zeros(x.shape[1], dtype=torch.float64, device=exact)
        self.offset, self.low, self.high = targets.mean(), targets.min(), targets.max()
        centred = targets - self.offset
        for rows, wanted in zip(x.split(16384), centred.split(16384), strict=True):  # fp64 copies of a chunk alone
            rows = rows.to(exact).double()
            gram += rows.T @ rows
            moment += rows.T @ wanted.to(exact).double()
        gram.diagonal().add_(penalty * len(x))
        self.weight = torch.linalg.solve(gram, moment).to(x.device, torch.float32)

    def __call__(self, features: Tensor) -> Tensor:
        """Predictions (N,), kept within the range of the training targets."""
        values = self.standardise(features) @ self.weight + self.offset
        return values.clamp(self.low, self.high)
