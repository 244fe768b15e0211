"""The normalised cut against SciPy's generalised eigensolver."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.discover import LOST, MaskCut, Spectral, TokenCut
from dense.discover.eigen import largest
from dense.discover.graph import edges, normalised_cut, uncuttable
from dense.discover.source import unit_tokens
from dense.discover.spectral import leading
from tests.discover.features import blobs, smooth

EPS = 1e-5


def oracle(adjacency: Tensor, active: Tensor | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all solutions of (D - A) x = value D x, smallest first."""
    weights = np.where(adjacency.numpy() > 0, 1.0, EPS)
    degrees = np.diag(weights.sum(1))
    return scipy.linalg.eigh(degrees - weights, degrees)


@pytest.mark.parametrize("grid", [(7, 9), (20, 23)])
def test_cuts_equal_scipys(grid: tuple[int, int]) -> None:
    """Small graphs by a full eigendecomposition, larger ones by the iterative solver, for each image of the batch."""
    adjacency = edges(unit_tokens(smooth(3, grid)), 0.2)
    cut = normalised_cut(adjacency, EPS)
    compared = 0
    for i in range(3):
        values, vectors = oracle(adjacency[i])
        assert cut.values[i] == pytest.approx(1 - values[1], abs=1e-5)
        if values[2] - values[1] > 1e-4:
            x, y = cut.vectors[i].double().numpy(), vectors[:, 1]
            cosine = abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y)
            assert cosine > 1 - 1e-6
            compared += 1
    assert compared


def test_a_narrow_gap_is_solved_in_fp64() -> None:
    """Three parts without an edge between them: eigenvalues 1e-5 below 1 are separated."""
    features, _ = blobs((20, 20), [(2, 9, 2, 9), (12, 18, 10, 19)], noise=0)
    adjacency = edges(unit_tokens(features), 0.2)
    cut = normalised_cut(adjacency, EPS)
    values, vectors = oracle(adjacency[0])
    assert 1 - values[1] == pytest.approx(float(cut.values[0]), abs=1e-6)
    assert cut.residuals[0] < 1e-8
    x, y = cut.vectors[0].double().numpy(), vectors[:, 1]
    assert abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y) > 1 - 1e-6


def test_degenerate_cuts() -> None:
    """Three equal parts: any vector of the plane that SciPy finds, without residual."""
    adjacency = torch.block_diag(*[torch.ones(100, 100)] * 3)[None]
    cut = normalised_cut(adjacency, EPS)
    values, vectors = oracle(adjacency[0])
    assert values[2] - values[1] < 1e-9
    assert cut.residuals[0] < 1e-8
    x = cut.vectors[0].double().numpy()
    weights = np.where(adjacency[0].numpy() > 0, 1.0, EPS)
    plane = vectors[:, 1:3]  # orthonormal in D
    inside = plane @ (plane.T @ (weights.sum(1) * x))
    np.testing.assert_allclose(inside, x, atol=1e-6)


def test_inactive_patches() -> None:
    """The cut of the active patches equals that of the smaller graph."""
    adjacency = edges(unit_tokens(smooth(1, (18, 18))), 0.2)
    active = torch.ones(1, 324)
    active[:, ::7] = 0
    inside = active[0].bool()
    whole, part = normalised_cut(adjacency, EPS, active), normalised_cut(adjacency[:, inside][:, :, inside], EPS)
    assert float(whole.values) == pytest.approx(float(part.values), abs=1e-5)
    assert (whole.vectors[0, ~inside] == 0).all()
    x, y = whole.vectors[0, inside], part.vectors[0]
    assert torch.nn.functional.cosine_similarity(x, y, dim=0).abs() > 1 - 1e-5


def test_graphs_that_cannot_be_cut() -> None:
    """All joined, none joined, a single patch; and one that can be cut."""
    ones, alone = torch.ones(1, 5, 5), torch.eye(5)[None]
    mixed = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))[None]
    active = torch.ones(1, 5)
    assert [bool(uncuttable(a, active)) for a in (ones, alone, mixed)] == [True, True, False]
    assert bool(uncuttable(torch.ones(1, 1, 1), torch.ones(1, 1)))
    assert bool(uncuttable(mixed, torch.tensor([[1.0, 1, 0, 0, 0]])))


def test_an_outlier_is_not_all_that_is_cut_off() -> None:
    """A patch unlike all others is the smallest cut; the object is found by cutting again, unless as published."""
    features, salience = torch.zeros(2, 4, 12, 12), torch.zeros(2, 12, 12)
    features[:, 0] = 1
    features[:, 0, 3:9, 3:9], features[:, 1, 3:9, 3:9] = 0, 1
    features[:, :2, 3, 3:9] = 1  # like both
    features[0, :, 11, 11], features[0, 2, 11, 11] = 0, 1
    salience[:, 3:9, 3:9] = 1
    found = TokenCut()(features, salience).masks[:, 0]
    assert torch.equal(found, salience > 0)
    published = TokenCut(foreground="published")(features, salience).masks[0, 0]
    assert int(published.sum()) in (1, 143)


def test_largest_eigenpairs() -> None:
    """Several pairs of a batch in fp64, against LAPACK."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 300, 300, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.mT
    start = torch.randn(2, 300, 6, generator=generator, dtype=torch.float64)
    found = largest(lambda v: matrix @ v, start, 4, accuracy=1e-8)
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(found.values[:, :4], values.flip(-1)[:, :4])
    cosines = (found.vectors[..., :4] * vectors.flip(-1)[..., :4]).sum(1).abs()
    assert (cosines > 1 - 1e-10).all()


def test_leading_vectors_of_spectral_clustering() -> None:
    """The iterative solver spans the space that LAPACK finds."""
    tokens = unit_tokens(smooth(1, (22, 22)))
    found = leading(tokens, 3)[0].double()
    weights = (tokens[0] @ tokens[0].T).clamp_min(0).double()
    weights.fill_diagonal_(1)
    scale = weights.sum(1).rsqrt()
    exact = torch.linalg.eigh(scale[:, None] * weights * scale).eigenvectors[:, -3:]
    assert torch.linalg.matrix_norm(exact.T @ found, ord=-2) > 0.999


@pytest.mark.parametrize(
    "method", [TokenCut(), MaskCut(), LOST(), Spectral()], ids=lambda method: type(method).__name__
)
def test_too_many_patches_are_refused(method: TokenCut | MaskCut | LOST | Spectral) -> None:
    """Every method that compares all pairs refuses before it allocates memory."""
    with pytest.raises(ValueError, match="a graph of 20001 patches does not fit in memory; use smaller images"):
        method(torch.zeros(1, 2, 1, 20_001))
