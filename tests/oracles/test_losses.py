"""Losses against loops over pixels in NumPy, and against PyTorch and scikit-learn where those have them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from dense.losses import (
    L1,
    SSI,
    BerHu,
    BinCrossEntropy,
    CrossEntropy,
    Dice,
    Focal,
    GradientLog,
    GradientMatching,
    Lovasz,
    MiDaSLoss,
    RobustSSI,
    SiLog,
)

rng = np.random.default_rng(3)
IMAGES = [
    (0.5 + 5 * rng.random((14, 19)), 0.5 + 5 * rng.random((14, 19)), rng.random((14, 19)) > 0.25) for _ in range(3)
]
Image = tuple[np.ndarray, np.ndarray, np.ndarray]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stacked = (np.stack(x)[:, None] for x in zip(*IMAGES, strict=True))
    prediction, target, mask = (torch.from_numpy(x) for x in stacked)
    return prediction, target, mask


def silog(errors: np.ndarray, focus: float, ddof: int) -> float:
    return float(np.sqrt(np.var(errors, ddof=ddof) + (1 - focus) * np.mean(errors) ** 2))


def log_errors(image: Image, eps: float) -> np.ndarray:
    prediction, target, mask = image
    return np.log(prediction[mask] + eps) - np.log(target[mask] + eps)


def least_squares(image: Image) -> np.ndarray:
    prediction, target, mask = image
    line = LinearRegression().fit(prediction[mask][:, None], target[mask])
    return line.predict(prediction.reshape(-1, 1)).reshape(prediction.shape) - target


def robust(image: Image) -> np.ndarray:
    prediction, target, mask = image

    def normalise(x: np.ndarray) -> np.ndarray:
        centre = np.sort(x[mask])[(mask.sum() - 1) // 2]
        return (x - centre) / np.mean(np.abs(x[mask] - centre))

    return normalise(prediction) - normalise(target)


def differences(error: np.ndarray, mask: np.ndarray, strides: list[int], distance: int) -> float:
    total = 0.0
    for stride in strides:
        e, m = error[::stride, ::stride], mask[::stride, ::stride]
        part = 0.0
        for y in range(e.shape[0]):
            for x in range(e.shape[1]):
                for b, a in ((y + distance, x), (y, x + distance)):
                    if b < e.shape[0] and a < e.shape[1] and m[y, x] and m[b, a]:
                        part += abs(e[b, a] - e[y, x])
        total += part / max(m.sum(), 1)
    return total


def berhu() -> float:
    threshold = 0.2 * max(np.abs(p - t)[m].max() for p, t, m in IMAGES)
    means = []
    for p, t, m in IMAGES:
        values = [abs(e) if abs(e) <= threshold else (e * e + threshold**2) / (2 * threshold) for e in (p - t)[m]]
        means.append(np.mean(values))
    return float(np.mean(means))


def trimmed(image: Image, share: float = 0.2) -> float:
    errors = np.sort(np.abs(robust(image))[image[2]])
    kept = len(errors) - int(share * len(errors))
    return float(errors[:kept].sum() / (2 * len(errors)))


def over_images(function: Callable[[Image], float]) -> float:
    return float(np.mean([function(image) for image in IMAGES]))


def pooled(eps: float) -> np.ndarray:
    return np.concatenate([log_errors(image, eps) for image in IMAGES])


def matching(align: Callable[[Image], np.ndarray]) -> float:
    return over_images(lambda i: differences(align(i), i[2], [1, 2, 4, 8], 1))


def ssi() -> float:
    return over_images(lambda i: float(np.mean(least_squares(i)[i[2]] ** 2) / 2))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (L1(), lambda: over_images(lambda i: float(np.abs(i[0] - i[1])[i[2]].mean()))),
        (BerHu(), berhu),
        (SiLog(0.85, scale=10, eps=0), lambda: 10 * silog(pooled(0), 0.85, 0)),
        (SiLog(0.5, eps=0), lambda: silog(pooled(0), 0.5, 0)),
        (SiLog(unbiased=True, eps=1e-3), lambda: silog(pooled(1e-3), 0.85, 1)),
        (SiLog(over="image", eps=0), lambda: over_images(lambda i: silog(log_errors(i, 0), 0.85, 0))),
        (
            GradientLog(),
            lambda: over_images(lambda i: differences(np.log((i[0] + 1e-3) / (i[1] + 1e-3)), i[2], [1, 2, 4, 6], 2)),
        ),
        (SSI(), ssi),
        (RobustSSI(), lambda: over_images(trimmed)),
        (GradientMatching(), lambda: matching(least_squares)),
        (GradientMatching(robust=True), lambda: matching(robust)),
        (MiDaSLoss(), lambda: ssi() + 0.5 * matching(least_squares)),
        (MiDaSLoss(2.0, robust=True), lambda: over_images(trimmed) + 2 * matching(robust)),
    ],
    ids=lambda value: str(value).replace("\n", "") if isinstance(value, torch.nn.Module) else "",
)
def test_depth_losses_against_loops(loss: torch.nn.Module, expected: Callable[[], float]) -> None:
    assert loss(*batch()).item() == pytest.approx(expected(), rel=1e-9)


@pytest.mark.parametrize("assignment", ["nearest", "linear"])
@pytest.mark.parametrize("normalisation", ["softmax", "linear", "sigmoid"])
def test_bins_against_a_loop(assignment: str, normalisation: str) -> None:
    centres = np.array([0.7, 1.0, 2.5, 3.0, 5.0])
    logits = torch.from_numpy(rng.normal(size=(3, 5, 14, 19)))
    loss = BinCrossEntropy(centres.tolist(), assignment, normalisation)  # type: ignore[arg-type]
    means = []
    for scores, (_, target, mask) in zip(logits.numpy(), IMAGES, strict=True):
        values = []
        for y, x in np.argwhere(mask):
            column = scores[:, y, x]
            weights = {
                "softmax": np.exp(column),
                "linear": np.maximum(column, 0) + 0.1,
                "sigmoid": 1 / (1 + np.exp(-column)),
            }[normalisation]
            logs = np.log(weights / weights.sum())
            if assignment == "nearest":
                values.append(-logs[np.abs(centres - target[y, x]).argmin()])
            else:
                values.append(-sum(logs[k] * np.interp(target[y, x], centres, np.eye(5)[k]) for k in range(5)))
        means.append(np.mean(values))
    _, target, mask = batch()
    assert loss(logits, target, mask).item() == pytest.approx(np.mean(means), rel=1e-6)


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.from_numpy(rng.integers(0, 4, (3, 8, 9)))
    labels[:, 3] = 255
    return torch.from_numpy(rng.normal(size=(3, 5, 8, 9))), labels  # no pixel of class 4


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, labels = labelled()
    wanted = F.cross_entropy(
        logits,
        labels,
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=255,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(CrossEntropy(weights, smoothing)(logits, labels), wanted)


def test_dice_against_a_loop() -> None:
    logits, labels = labelled()
    valid = labels.numpy() != 255
    probabilities = logits.softmax(1).numpy()
    values = []
    for k in range(5):
        p, y = probabilities[:, k][valid], (labels.numpy() == k)[valid]
        values.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()) if y.any() else 0.0)
    assert Dice()(logits, labels).item() == pytest.approx(np.mean(values), rel=1e-6)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_against_a_loop(alpha: float | None) -> None:
    logits, labels = labelled()
    valid = labels.numpy() != 255
    values = []
    for k in range(5):
        p, y = 1 / (1 + np.exp(-logits[:, k].numpy()[valid])), (labels.numpy() == k)[valid]
        ground_truth = np.where(y, p, 1 - p)
        weight = 1.0 if alpha is None else np.where(y, alpha, 1 - alpha)
        values.append(np.mean(-weight * (1 - ground_truth) ** 2 * np.log(ground_truth)))
    assert Focal(alpha=alpha)(logits, labels).item() == pytest.approx(np.mean(values), rel=1e-6)


def test_lovasz_of_certain_targets_is_one_minus_the_jaccard_index() -> None:
    """The extension meets the set function at its corners."""
    from sklearn.metrics import jaccard_score

    _, labels = labelled()
    guess = torch.from_numpy(rng.integers(0, 5, labels.shape))
    logits = 200 * F.one_hot(guess, 5).movedim(-1, 1).double()
    valid = labels != 255
    scores = jaccard_score(labels[valid], guess[valid], labels=[0, 1, 2, 3], average=None)
    assert Lovasz()(logits, labels).item() == pytest.approx(1 - np.mean(scores), rel=1e-6)
