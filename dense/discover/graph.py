"""The graph of an image's patches and its normalised cut (Shi and Malik, 2000), as TokenCut uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.eigen import Operator, largest
from dense.discover.source import check_features

DENSE = 256  # patches up to which a full eigendecomposition is faster than the iterative solver
START = 3  # vectors per block of the iterative solver
CHUNK = 2**26  # entries of all adjacency matrices in memory at once: 256 MB
MAX_PATCHES = 20_000  # whose adjacency matrix still fits in memory: 1.6 GB


class Cut(NamedTuple):
    """The second smallest solution of (D - A) x = (1 - value) D x, the real-valued normalised cut.

    value: 1 for a graph in two disconnected parts, 0 for one without a cut. gap: distance to the third solution; at 0
    the vector is one of many.
    """

    values: Tensor  # B
    vectors: Tensor  # B, N; 0 at inactive patches
    residuals: Tensor  # B
    gaps: Tensor  # B


def check_tau(tau: float) -> None:
    """Raise for a threshold that is not a cosine below 1."""
    if not -1 <= tau < 1:
        raise ValueError(f"tau={tau}: expected a cosine from -1 to 1, such as 0.2")


def check_weights(tau: float, eps: float) -> None:
    """Raise for a threshold or a weight outside its range."""
    check_tau(tau)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps}: expected a small positive weight below 1, such as 1e-5")


def in_chunks(
    features: Tensor, function: Callable[..., tuple[Tensor, ...]], *others: Tensor | None
) -> tuple[Tensor, ...]:
    """Apply a function to as many images at once as have graphs that fit in memory; concatenate its outputs.

    others: further arguments of the function (B, h, w) on the grid of features (B, C, h, w), or None.
    """
    features = check_features(features)
    patches = features.shape[-2] * features.shape[-1]
    if patches > MAX_PATCHES:
        raise ValueError(
            f"a graph of {patches} patches does not fit in memory; use smaller images, {MAX_PATCHES} patches at most"
        )
    for other in others:
        if other is not None and other.shape != (len(features), *features.shape[-2:]):
            raise ValueError(f"salience {tuple(other.shape)} is not on the grid of features {tuple(features.shape)}")
    size = max(1, CHUNK // patches**2)
    chunks = [[None] * len(features) if other is None else other.split(size) for other in (features, *others)]
    parts = [function(*each) for each in zip(*chunks, strict=False)]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def edges(tokens: Tensor, tau: float) -> Tensor:
    """Return the adjacency (B, N, N) of unit tokens (B, N, C): 1 where the cosine exceeds `tau` and on the diagonal."""
    adjacency = (tokens @ tokens.mT).gt_(tau)  # in place: this matrix takes most of the time and memory
    adjacency.diagonal(dim1=-2, dim2=-1).fill_(1)
    return adjacency


def uncuttable(adjacency: Tensor, active: Tensor) -> Tensor:
    """Return whether all pairs of active patches are joined, or none, or there is no pair: (B,) bool."""
    n = active.sum(-1)
    pairs = (active * (adjacency @ active[..., None])[..., 0]).sum(-1)  # ordered, each patch with itself too
    return (pairs >= n * n) | (pairs <= n)


def normalised_cut(adjacency: Tensor, eps: float = 1e-5, active: Tensor | None = None, accuracy: float = 1e-3) -> Cut:
    """Cut graphs with an adjacency (B, N, N) of 0 and 1, whose weights are 1 on edges and `eps` elsewhere.

    active: (B, N), 1 for patches that belong to the graph, 0 for others. Solved in fp32, and again in fp64 for images
    whose eigenvalue gap is too narrow for fp32.
    """
    active = adjacency.new_ones(adjacency.shape[:2]) if active is None else active.to(adjacency.dtype)
    if adjacency.shape[-1] <= DENSE:
        return _solve_dense(adjacency, eps, active)
    start = torch.randn(adjacency.shape[-1], START, generator=torch.Generator().manual_seed(0)).to(adjacency)
    cut, block = _solve(adjacency, eps, active, start.expand(len(adjacency), -1, -1), accuracy)
    rough = cut.residuals > accuracy * cut.gaps
    if adjacency.device.type != "mps" and bool(rough.any()):  # MPS has no fp64
        better, _ = _solve(adjacency[rough].double(), eps, active[rough].double(), block[rough].double(), accuracy)
        cut = Cut(*(a.index_put((rough,), b.to(a)) for a, b in zip(cut, better, strict=True)))
    return cut


def _solve(adjacency: Tensor, eps: float, active: Tensor, start: Tensor, accuracy: float) -> tuple[Cut, Tensor]:
    """Return the cut, and the block of vectors (B, N, p) from which a solution in higher precision can start."""
    operator, scale = laplacian(adjacency, eps, active)
    values, vectors, residuals = largest(operator, start * active[..., None], 1, accuracy)
    return Cut(values[:, 0], scale * vectors[..., 0], residuals[:, 0], values[:, 0] - values[:, 1]), vectors


def laplacian(adjacency: Tensor, eps: float, active: Tensor) -> tuple[Operator, Tensor]:
    """Return the map v -> D^-1/2 A D^-1/2 v without its trivial solution, and D^-1/2 (B, N), which turns v into x.

    A is never built: A v = eps * sum(v) + (1 - eps) * adjacency v.
    """
    ones = (adjacency @ active[..., None])[..., 0] * active  # whole numbers, exact
    degree = active * (eps * active.sum(-1, keepdim=True) + (1 - eps) * ones)
    scale = torch.where(active > 0, degree.clamp_min(eps).rsqrt(), 0)
    trivial = F.normalize(degree.sqrt(), dim=-1)[..., None]  # B, N, 1

    def operator(v: Tensor) -> Tensor:
        scaled = scale[..., None] * v
        product = (1 - eps) * (adjacency @ scaled) + eps * scaled.sum(1, keepdim=True)
        return scale[..., None] * product - trivial * (trivial.mT @ v)

    return operator, scale


def _solve_dense(adjacency: Tensor, eps: float, active: Tensor) -> Cut:
    """Solve by a full eigendecomposition."""
    exact = adjacency.dtype if adjacency.device.type == "mps" else torch.float64
    operator, scale = laplacian(adjacency.to(exact), eps, active.to(exact))
    identity = torch.eye(adjacency.shape[-1], dtype=exact, device=adjacency.device).expand_as(adjacency)
    matrix = operator(identity)
    # the trivial solution and inactive patches have value 0; a value below that is not a useful cut
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    residuals = (matrix @ vectors[..., -1:] - values[:, -1:, None] * vectors[..., -1:]).norm(dim=1)[:, 0]
    second = values[:, -2] if values.shape[-1] > 1 else values[:, -1]
    found = (values[:, -1], scale * vectors[..., -1], residuals, values[:, -1] - second)
    return Cut(*(x.to(adjacency.dtype) for x in found))


def component_of(masks: Tensor, seeds: Tensor) -> Tensor:
    """Return the connected part of each mask (B, h, w) bool around patch `seeds` (B,), an index into h*w, if any."""
    parts = masks.cpu().numpy().astype(np.uint8)
    components = np.zeros(parts.shape, bool)
    for part, seed, component in zip(parts, seeds.tolist(), components, strict=True):
        labels = cv2.connectedComponents(part, connectivity=4)[1]
        label = labels.reshape(-1)[seed]
        component[:] = (labels == label) & (label > 0)
    return torch.from_numpy(components).to(masks.device)
