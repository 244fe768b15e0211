from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from pretrain.losses import GramLoss
from tests.pretrain.golden import det


@pytest.mark.parametrize(("level", "expected"), [("image", 0.00542324), ("batch", 0.00474405)])
def test_golden_value(level: Any, expected: float) -> None:
    assert GramLoss(level)(det(2, 5, 8), det(2, 5, 8, phase=0.4)).item() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("negatives", ["keep", "teacher", "both"])
def test_equals_scikit_learns_similarities(negatives: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 4), torch.randn(2, 6, 9)  # the Gram teacher may be wider
    expected = []
    for a, b in zip(x.numpy(), y.numpy(), strict=True):
        ours, theirs = cosine_similarity(a), cosine_similarity(b)
        if negatives == "teacher":
            ours[(ours < 0) & (theirs < 0)] = 0
            theirs[theirs < 0] = 0
        elif negatives == "both":
            ours[ours < 0] = 0
            theirs[theirs < 0] = 0
        expected.append(np.mean((ours - theirs) ** 2))
    assert GramLoss(negatives=negatives)(x, y).item() == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("level", ["image", "batch"])
def test_rotations_and_lengths_do_not_matter(level: Any) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    value = GramLoss(level)(x, y)
    torch.testing.assert_close(GramLoss(level)(x @ rotation, y), value)
    torch.testing.assert_close(GramLoss(level)(x, 3 * y @ rotation), value)
    assert GramLoss(level)(x @ rotation, x).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("level", ["image", "batch"])
def test_a_mask_chooses_patches(level: Any) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    mask = torch.tensor([[True, False, True, True, False, True]])
    torch.testing.assert_close(GramLoss(level)(x, y, mask), GramLoss(level)(x[:, mask[0]], y[:, mask[0]]))
    nothing = x.clone().requires_grad_()
    value = GramLoss(level)(nothing, y, torch.zeros(1, 6).bool())
    value.backward()
    assert value.item() == 0
    assert nothing.grad is not None


def test_the_teacher_gets_no_gradient() -> None:
    x, y = torch.randn(1, 3, 4).requires_grad_(), torch.randn(1, 3, 4).requires_grad_()
    GramLoss()(x, y).backward()
    assert x.grad is not None
    assert y.grad is None


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="level='pixel'"):
        GramLoss("pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negatives='none'"):
        GramLoss(negatives="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the same"):
        GramLoss()(torch.zeros(2, 5, 3), torch.zeros(2, 6, 3))
