"""Weighted k-nearest-neighbour classification of frozen features, by chunks of queries and of the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
ELEMENTS = 2**24  # largest temporary, in numbers


@dataclass(frozen=True)
class Votes:
    """The classes with most votes per query, best first, and their shares of all votes."""

    classes: Tensor  # Q, T: labels as they were given
    shares: Tensor  # Q, T: 0 to 1

    @property
    def predictions(self) -> Tensor:
        return self.classes[:, 0]


@torch.no_grad()
def knn_classify(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    *,
    top: int = 5,
    query_chunk: int = 1024,
    bank_chunk: int = 16384,
    device: str | torch.device | None = None,
) -> dict[int, Votes]:
    """Classify `queries` (Q, D) by a vote of their nearest neighbours in `bank` (N, D), for each k.

    Features are L2-normalised; a neighbour at cosine similarity s gives its class exp(s / temperature) votes. A k
    larger than the bank means the whole bank. Similarities are computed for one chunk of queries and one of the bank
    at a time, on `device` (the device of the queries by default).
    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, as used by DINO.
    """
    check_votes(k, temperature)
    _check(bank, bank_labels, queries)
    device = queries.device if device is None else torch.device(device)
    classes, numbers = torch.unique(bank_labels, return_inverse=True)  # C and N
    classes, numbers = classes.to(device), numbers.to(device)
    top, most = min(top, len(classes)), min(max(k), len(bank))
    query_chunk = max(1, min(query_chunk, ELEMENTS // len(classes)))
    found: dict[int, list[Votes]] = {number: [] for number in k}
    for part in queries.split(query_chunk):
        part = F.normalize(part.to(device).float(), dim=1)  # q, D
        similarities, neighbours = _nearest(bank, part, most, bank_chunk)  # q, most
        # relative to the nearest, so that no temperature overflows
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        voted = numbers[neighbours]  # q, most
        for number in k:
            n = min(number, most)
            votes = weights.new_zeros(len(part), len(classes))
            votes.scatter_add_(1, voted[:, :n], weights[:, :n])
            shares, order = (votes / weights[:, :n].sum(1, keepdim=True)).topk(top, dim=1)
            found[number].append(Votes(classes[order].to(bank_labels.dtype), shares))
    return {
        n: Votes(torch.cat([v.classes for v in all_]), torch.cat([v.shares for v in all_])) for n, all_ in found.items()
    }


@torch.no_grad()
def knn_regress(
    bank: Tensor, values: Tensor, queries: Tensor, k: int, temperature: float = TEMPERATURE, query_chunk: int = 1024
) -> Tensor:
    """Return the mean value (Q,) of the k nearest neighbours, weighted as the votes of `knn_classify`."""
    check_votes((k,), temperature)
    _check(bank, values, queries)
    found = []
    for part in queries.split(query_chunk):
        similarities, neighbours = _nearest(bank, F.normalize(part.float(), dim=1), min(k, len(bank)), 16384)  # q, k
        weights = (similarities / temperature).softmax(1)
        found.append((weights * values[neighbours]).sum(1))
    return torch.cat(found)


def _nearest(bank: Tensor, queries: Tensor, most: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Return similarities and indices, each (q, most), of the nearest vectors of the bank, nearest first."""
    best, where = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(bank), chunk):
        part = F.normalize(bank[start : start + chunk].to(queries.device).float(), dim=1)
        similarities = queries @ part.T  # q, chunk
        values, indices = similarities.topk(min(most, len(part)), dim=1)
        best, where = torch.cat((best, values), dim=1), torch.cat((where, indices + start), dim=1)
        best, order = best.topk(min(most, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def accuracy(votes: Votes, labels: Tensor, top: int = 1) -> float:
    """Return the share of queries whose label is among the `top` classes with most votes."""
    labels = labels.to(votes.classes.device)
    return int((votes.classes[:, :top] == labels.unsqueeze(1)).any(1).sum()) / len(labels)


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """Return the top-1 accuracy, 0 to 1, for each k; see `knn_classify`."""
    if len(labels) != len(queries):
        raise ValueError(f"{len(queries)} queries have {len(labels)} labels")
    votes = knn_classify(bank, bank_labels, queries, k, temperature, top=1)
    return {number: accuracy(vote, labels) for number, vote in votes.items()}


def check_votes(k: Sequence[int], temperature: float) -> None:
    """Check numbers of neighbours and a temperature, before features are computed."""
    if not k or min(k) < 1:
        raise ValueError(f"k is {tuple(k)}, expected one or more positive numbers")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")


def _check(bank: Tensor, labels: Tensor, queries: Tensor) -> None:
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"expected a bank (N, D) and queries (Q, D), got {tuple(bank.shape)}, {tuple(queries.shape)}")
    if not len(bank) or not len(queries):
        raise ValueError(f"a bank of {len(bank)} and {len(queries)} queries; expected at least one of each")
    for name, features in (("bank", bank), ("queries", queries)):
        if not features.isfinite().all():
            raise ValueError(f"features of the {name} are not finite; the backbone is broken, or its precision too low")
    if labels.shape != bank.shape[:1]:
        raise ValueError(f"a bank of {len(bank)} has labels of shape {tuple(labels.shape)}")
