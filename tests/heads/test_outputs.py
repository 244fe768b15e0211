"""Outputs: values from logits, against NumPy, and refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from heads import Bins, Classes, Regression
from heads.outputs import Output


def naive_bins(logits: np.ndarray, bins: Bins) -> np.ndarray:
    """Expectation of depth, written out in float64."""
    x = logits.astype(np.float64)
    if bins.spacing == "linear":
        depths = np.linspace(bins.min_depth, bins.max_depth, bins.count)
    else:
        depths = np.geomspace(bins.min_depth, bins.max_depth, bins.count)
    if bins.normalisation == "linear":
        weights = np.maximum(x, 0) + 0.1
    elif bins.normalisation == "softmax":
        weights = np.exp(x - x.max(1, keepdims=True))
    else:
        weights = 1 / (1 + np.exp(-x))
    weights /= weights.sum(1, keepdims=True)
    return (weights * depths[None, :, None, None]).sum(1, keepdims=True)


@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("normalisation", ["linear", "softmax", "sigmoid"])
def test_bins(spacing: Any, normalisation: Any) -> None:
    """Expected depth equals the naive computation, also under autocast."""
    bins = Bins(16, 0.5, 20.0, spacing=spacing, normalisation=normalisation)
    logits = torch.randn(2, 16, 3, 4) * 3
    expected = naive_bins(logits.numpy(), bins)
    np.testing.assert_allclose(bins.decode(logits).numpy(), expected, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(bins.decode(logits).numpy(), expected, rtol=1e-5)


def test_bins_at_the_ends() -> None:
    """The first and the last bin are the bounds; spacing in log is even in ratio."""
    depths = Bins(5, 1.0, 16.0, spacing="log").depths()
    torch.testing.assert_close(depths, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Regression("relu", inverse=(0.5, 0.25)), [4.0, 4.0, 0.8]),
        (Regression("relu", inverse=(0.5, 0.0)), [1e8, 1e8, 1.0]),
        (Regression("relu", inverse=(0.5, 0.25), max_depth=3.0), [3.0, 3.0, 0.8]),
        (Regression("relu"), [0.0, 0.0, 2.0]),
        (Regression("relu", min_depth=0.5), [0.5, 0.5, 2.5]),
        (Regression("relu", max_depth=1.5), [0.0, 0.0, 1.5]),
        (Regression("sigmoid", max_depth=10.0), [10 / (1 + math.exp(2)), 5.0, 10 / (1 + math.exp(-2))]),
        (Regression("exp"), [math.exp(-2), 1.0, math.exp(2)]),
        (Regression("softplus"), [math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(2))]),
        (Regression("identity", kind="log"), [-2.0, 0.0, 2.0]),
    ],
)
def test_regression(output: Regression, expected: list[float]) -> None:
    """Each activation on -2, 0 and 2."""
    values = output.decode(torch.tensor([-2.0, 0.0, 2.0]).view(1, 1, 1, 3))
    torch.testing.assert_close(values.flatten(), torch.tensor(expected))


def test_the_bound_leaves_gradients() -> None:
    """In training nothing is cut at max_depth, so that too large a value can still come down."""
    output = Regression("relu", max_depth=1.5)
    assert output.decode(torch.full((1, 1, 1, 1), 9.0), training=True) == 9
    assert output.decode(torch.full((1, 1, 1, 1), 9.0)) == 1.5


def test_a_relu_output_starts_alive() -> None:
    """The last bias of a ReLU output is positive."""
    assert Regression("relu").branch(8, True).conv3.bias.item() == 1
    assert Regression("exp").branch(8, True).conv3.bias.item() != 1


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Regression, {"inverse": (0.0, 1.0)}, r"inverse\[0\]=0.0: expected a number above 0"),
        (Regression, {"inverse": (1.0, 1.0), "kind": "inverse_relative"}, "for kind='metric'"),
        (Regression, {"activation": "tanh"}, "activation='tanh': expected one of 'relu', 'sigmoid'"),
        (Regression, {"kind": "relative"}, "kind='relative': expected one of 'metric', 'inverse_relative', 'log'"),
        (Regression, {"activation": "sigmoid"}, "needs max_depth"),
        (Regression, {"max_depth": -1.0}, "max_depth=-1.0: expected a number above"),
        (Regression, {"min_depth": -1.0}, "min_depth=-1.0: expected a number at least 0"),
        (Regression, {"hidden": 0}, "hidden=0: expected an integer"),
        (Regression, {"upsample": 2}, "upsample=2: expected one of"),
        (Regression, {"kind": "log"}, "expected activation='identity'"),
        (Regression, {"activation": "identity", "min_depth": 1.0}, "has no lower bound"),
        (Bins, {"count": 1}, "expected at least 2 bins"),
        (Bins, {"min_depth": 10.0}, "max_depth=10.0: expected a number above 10.0"),
        (Bins, {"spacing": "log", "min_depth": 0}, "min_depth=0: expected a number above 0"),
        (Bins, {"max_depth": math.inf}, "max_depth=inf"),
        (Bins, {"normalisation": "relu"}, "normalisation='relu': expected one of 'linear', 'softmax', 'sigmoid'"),
        (Classes, {"count": 0}, "count=0: expected an integer of at least 1"),
        (Classes, {"count": 2.0}, "count=2.0: expected an integer"),
        (Classes, {"count": 2, "dropout": 2}, "dropout=2: expected a number at least 0 and at most 1"),
        (Classes, {"count": 2, "names": ("cat",)}, r"names=\('cat',\): expected 2 values, one per class"),
        (Classes, {"count": 2, "align_corners": "no"}, "align_corners='no': expected true or false, or null"),
    ],
)
def test_absurd_values(make: type[Output], options: dict[str, Any], message: str) -> None:
    """Errors name the value and what was expected."""
    with pytest.raises(ValueError, match=message):
        make(**options)
