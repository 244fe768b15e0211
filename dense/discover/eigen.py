"""The largest eigenvalues of many large symmetric matrices at once, by block Krylov subspaces with restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]  # (B, N, p) -> (B, N, p), symmetric


class Pairs(NamedTuple):
    """Eigenvalues, largest first, with unit vectors and the norm of S v - value v."""

    values: Tensor  # B, k
    vectors: Tensor  # B, N, k
    residuals: Tensor  # B, k


def largest(
    operator: Operator, start: Tensor, count: int, accuracy: float = 1e-4, blocks: int = 10, cycles: int = 40
) -> Pairs:
    """Return as many pairs as `start` (B, N, p) has vectors; the first `count` are accurate, the others rough.

    A cycle builds a basis of `blocks` blocks of p vectors; the best vectors of its span start the next cycle
    (Krylov-Schur; Stewart 2001). The iteration ends when the residuals of the first `count` are below `accuracy` times
    the gap behind them, which bounds the angle to the true vectors, or as small as the precision allows.
    """
    block, width = start.shape[-1], min(blocks * start.shape[-1], start.shape[-2])
    floor = 2 * torch.finfo(start.dtype).eps * start.shape[-2] ** 0.25
    basis = torch.linalg.qr(start).Q
    images = operator(basis)
    for cycle in range(cycles):
        while basis.shape[-1] + block <= width:
            following = _next(basis, images[..., -block:], seed=basis.shape[-1] + cycle * width)
            basis, images = torch.cat([basis, following], -1), torch.cat([images, operator(following)], -1)
        projected = basis.mT @ images
        values, mix = torch.linalg.eigh((projected + projected.mT) / 2)  # B, m ascending
        values, mix = values.flip(-1), mix.flip(-1)[..., : 2 * block]
        vectors, products = basis @ mix, images @ mix
        residuals = (products - vectors * values[:, None, : 2 * block]).norm(dim=1)  # B, 2p
        gap = values[:, count - 1] - values[:, min(count, values.shape[-1] - 1)]
        worst = residuals[:, :count].amax(-1)
        if bool(((worst <= accuracy * gap) | (worst <= floor)).all()) or basis.shape[-1] + block > basis.shape[-2]:
            break
        following = _next(basis, images[..., -block:], seed=cycle * width)
        basis, images = torch.cat([vectors, following], -1), torch.cat([products, operator(following)], -1)
    return Pairs(values[:, :block], vectors[..., :block], residuals[:, :block])


def _next(basis: Tensor, block: Tensor, seed: int) -> Tensor:
    """Return a block made orthonormal, and orthogonal to the basis.

    The Krylov space of a graph with few distinct patches is exhausted after some steps. What is left of a vector then
    is rounding noise that lies in the basis itself; random vectors replace it and open new directions.
    """
    fresh = torch.randn(block.shape[1:], generator=torch.Generator().manual_seed(seed)).to(block)
    norms = block.norm(dim=1)  # B, p
    block, rest = torch.linalg.qr(block - basis @ (basis.mT @ block))
    exhausted = rest.diagonal(dim1=-2, dim2=-1).abs() <= 8 * torch.finfo(block.dtype).eps * norms
    block = torch.where(exhausted[:, None], fresh / len(fresh) ** 0.5, block)
    for _ in range(2):  # one orthogonalisation is not enough when little is left
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block
