"""The graph of an image's patches and its normalised cut (Shi and Malik, 2000), as TokenCut uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.eigen import Operator, largest

DENSE = 256  # patches up to which all eigenvectors at once are quicker than one by steps
START = 3  # vectors in a block


class Cut(NamedTuple):
    """The second smallest solution of (D - A) x = (1 - value) D x, the real-valued normalised cut.

    value: 1 is a graph in two pieces, 0 one that cannot be cut. gap: to the third solution; at 0 the vector is only one
    of many.
    """

    values: Tensor  # B
    vectors: Tensor  # B, N; 0 at patches that take no part
    residuals: Tensor  # B
    gaps: Tensor  # B


def tokens_of(features: Tensor) -> Tensor:
    """Features (B, C, h, w) -> unit vectors (B, h*w, C); features of zero stay zero."""
    return F.normalize(features.flatten(2).mT, dim=-1)


def edges(tokens: Tensor, tau: float) -> Tensor:
    """1 where two patches are more alike than `tau`, and between each patch and itself: (B, N, C) -> (B, N, N)."""
    alike = (tokens @ tokens.mT).gt_(tau)  # in its place: N x N is what time and memory go into
    alike.diagonal(dim1=-2, dim2=-1).fill_(1)
    return alike


def uncuttable(alike: Tensor, kept: Tensor) -> Tensor:
    """Whether all pairs of the patches that take part are alike, or none, or there is no pair: (B,) bool."""
    n = kept.sum(-1)
    pairs = (kept * (alike @ kept[..., None])[..., 0]).sum(-1)  # ordered, each patch with itself too
    return (pairs >= n * n) | (pairs <= n)


def normalised_cut(alike: Tensor, eps: float = 1e-5, kept: Tensor | None = None, accuracy: float = 1e-3) -> Cut:
    """Cut graphs of edges (B, N, N), 0 or 1, whose weights are 1 on edges and `eps` elsewhere.

    kept: (B, N), 1 for patches that take part, 0 for those that do not. Solved in fp32, and again in fp64 for images
    whose gap is too narrow for it.
    """
    kept = alike.new_ones(alike.shape[:2]) if kept is None else kept.to(alike.dtype)
    if alike.shape[-1] <= DENSE:
        return _dense(alike, eps, kept)
    start = torch.randn(alike.shape[-1], START, generator=torch.Generator().manual_seed(0)).to(alike)
    cut, block = _solve(alike, eps, kept, start.expand(len(alike), -1, -1), accuracy)
    rough = cut.residuals > accuracy * cut.gaps
    if alike.device.type != "mps" and bool(rough.any()):  # which has no fp64
        better, _ = _solve(alike[rough].double(), eps, kept[rough].double(), block[rough].double(), accuracy)
        cut = Cut(*(a.index_put((rough,), b.to(a)) for a, b in zip(cut, better, strict=True)))
    return cut


def _solve(alike: Tensor, eps: float, kept: Tensor, start: Tensor, accuracy: float) -> tuple[Cut, Tensor]:
    """The cut, and the block of vectors (B, N, p) from which more exact numbers can start."""
    operator, scale = laplacian(alike, eps, kept)
    values, vectors, residuals = largest(operator, start * kept[..., None], 1, accuracy)
    return Cut(values[:, 0], scale * vectors[..., 0], residuals[:, 0], values[:, 0] - values[:, 1]), vectors


def laplacian(alike: Tensor, eps: float, kept: Tensor) -> tuple[Operator, Tensor]:
    """The map v -> D^-1/2 A D^-1/2 v less its trivial solution, and D^-1/2 (B, N), which turns v into x.

    A is never built: A v = eps * sum(v) + (1 - eps) * edges v.
    """
    ones = (alike @ kept[..., None])[..., 0] * kept  # whole numbers, exact
    degree = kept * (eps * kept.sum(-1, keepdim=True) + (1 - eps) * ones)
    scale = torch.where(kept > 0, degree.clamp_min(eps).rsqrt(), 0)
    trivial = F.normalize(degree.sqrt(), dim=-1)[..., None]  # B, N, 1

    def operator(v: Tensor) -> Tensor:
        scaled = scale[..., None] * v
        moved = (1 - eps) * (alike @ scaled) + eps * scaled.sum(1, keepdim=True)
        return scale[..., None] * moved - trivial * (trivial.mT @ v)

    return operator, scale


def _dense(alike: Tensor, eps: float, kept: Tensor) -> Cut:
    """By all eigenvectors at once."""
    exact = alike.dtype if alike.device.type == "mps" else torch.float64
    operator, scale = laplacian(alike.to(exact), eps, kept.to(exact))
    identity = torch.eye(alike.shape[-1], dtype=exact, device=alike.device).expand_as(alike)
    matrix = operator(identity)
    # the trivial solution and patches that take no part have value 0; below that, no cut is of interest
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    residuals = (matrix @ vectors[..., -1:] - values[:, -1:, None] * vectors[..., -1:]).norm(dim=1)[:, 0]
    second = values[:, -2] if values.shape[-1] > 1 else values[:, -1]
    found = (values[:, -1], scale * vectors[..., -1], residuals, values[:, -1] - second)
    return Cut(*(x.to(alike.dtype) for x in found))


def feature_at(features: Tensor, point: Sequence[float], size: tuple[int, int]) -> Tensor:
    """The feature (C,) of the patch of (C, h, w) that holds the pixel `point` (x, y) of an image of `size` (H, W)."""
    (x, y), (height, width), (rows, columns) = point, size, features.shape[-2:]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"point {x:g},{y:g} lies outside the image, which is {width} wide and {height} high")
    return features[:, int(y * rows / height), int(x * columns / width)]


def similarity(features: Tensor, query: Tensor) -> Tensor:
    """Cosine of every patch of (B, C, h, w) with queries (C,) or (Q, C): (B, h, w) or (B, Q, h, w)."""
    cosines = F.normalize(torch.atleast_2d(query), dim=-1) @ tokens_of(features).mT  # B, Q, N
    cosines = cosines.unflatten(-1, features.shape[-2:])
    return cosines[:, 0] if query.ndim == 1 else cosines
