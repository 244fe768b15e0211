"""Weights of the tasks of a joint training: fixed, or learned as uncertainties."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dense.suggest import did_you_mean

Likelihood = Literal["regression", "classification"]


class JointWeights(nn.Module):
    """Base: a sum of task losses, in which a task without labels in the batch contributes zero."""

    tasks: tuple[str, ...]

    def forward(self, losses: Mapping[str, Tensor], labelled: Mapping[str, Tensor | bool] | None = None) -> Tensor:
        """Return the scalar total in fp32.

        losses: scalars, each the mean over the samples with that label. labelled: per task, whether any sample has a
        label, as a bool or a boolean tensor of any shape, such as (B,); by default true. A task without a loss counts
        as unlabelled.
        """
        labelled = labelled or {}
        for name in (*losses, *labelled):
            if name not in self.tasks:
                known = ", ".join(self.tasks)
                raise ValueError(f"unknown task {name!r}: known are {known}.{did_you_mean(name, self.tasks)}")
        if not losses:
            raise ValueError(f"no losses: expected some of {', '.join(self.tasks)}")
        total = torch.zeros((), device=next(iter(losses.values())).device)
        for name in self.tasks:
            if name in losses:
                present = torch.as_tensor(labelled.get(name, True), device=total.device).any()
                total = total + torch.where(present, self.term(name, losses[name].float()), 0.0)
            else:
                total = total + self.idle(name)
        return total

    def term(self, name: str, loss: Tensor) -> Tensor:
        """Return what a labelled task adds to the total."""
        raise NotImplementedError

    def idle(self, name: str) -> Tensor | float:
        """Return zero for a task without a loss, with a gradient path to its parameters, for distributed training."""
        return 0.0


class FixedWeights(JointWeights):
    """``sum of weight * loss`` over the tasks that have labels.

    >>> total = FixedWeights({"depth": 1.0, "labels": 0.5})({"depth": torch.tensor(2.0), "labels": torch.tensor(4.0)})
    >>> total.item()
    4.0
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weight {weight} of task {name!r}: expected zero or a positive number")
        self.tasks, self.weights = tuple(weights), dict(weights)

    def term(self, name: str, loss: Tensor) -> Tensor:
        return self.weights[name] * loss


class UncertaintyWeights(JointWeights):
    """Tasks weighted by their homoscedastic uncertainty, which is learned with the network.

    With s = log sigma^2 a parameter for each task, the total is the sum of::

        exp(-s) / 2 * loss + s / 2    for regression
        exp(-s) * loss + s / 2        for classification

    Kendall et al., "Multi-task learning using uncertainty to weigh losses for scene geometry and semantics", 2018,
    equations 7 and 10. Without labels in a batch a task contributes neither part, because s / 2 alone would lower
    s. The total may be negative.

    >>> joint = UncertaintyWeights({"depth": "regression", "labels": "classification"})
    >>> joint({"depth": torch.tensor(2.0), "labels": torch.tensor(4.0)}).item()
    5.0
    """

    def __init__(self, tasks: Mapping[str, Likelihood]) -> None:
        super().__init__()
        for name, likelihood in tasks.items():
            if likelihood not in get_args(Likelihood):
                hint = did_you_mean(str(likelihood), get_args(Likelihood))
                raise ValueError(f"task {name!r}: {likelihood!r}, expected regression or classification.{hint}")
        self.tasks, self.likelihoods = tuple(tasks), dict(tasks)
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in tasks})

    def term(self, name: str, loss: Tensor) -> Tensor:
        """Return the negative log-likelihood, up to a constant."""
        log_variance = self.log_variances[name].float()
        share = 0.5 if self.likelihoods[name] == "regression" else 1.0
        return share * torch.exp(-log_variance) * loss + log_variance / 2

    def idle(self, name: str) -> Tensor:
        return 0 * self.log_variances[name].float()
