import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from pretrain.centering import SinkhornKnopp
from pretrain.losses import IBOTLoss, token_weights
from tests.pretrain.golden import det


def masks() -> torch.Tensor:
    """3 images of 4 patches; the second has none masked."""
    return torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()


def test_golden_value() -> None:
    targets = SinkhornKnopp()(det(5, 6, phase=0.5), 0.05)
    assert targets[0].tolist() == pytest.approx([0.092297, 0.028081, 0.002979, 0.876644, 0, 0], abs=2e-6)
    value = IBOTLoss()(det(5, 6, phase=0.2), targets, token_weights(masks()), images=3)
    assert value.item() == pytest.approx(0.885279, abs=2e-6)


def test_weights_of_patches() -> None:
    assert token_weights(masks()).tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    assert token_weights(torch.zeros(2, 4).bool()).shape == (0,)


def test_equals_the_formula_in_numpy_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.losses.ibot.ROWS", 2)
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7).requires_grad_(), torch.randn(5, 7).mul(2).softmax(-1)
    weights = token_weights(masks())
    value = IBOTLoss(0.2)(logits, targets, weights, images=3)
    rows = -(targets.numpy() * log_softmax(logits.detach().numpy() / 0.2, axis=1)).sum(1)
    assert value.item() == pytest.approx(float(np.sum(rows * weights.numpy()) / 3), rel=1e-5)
    (gradient,) = torch.autograd.grad(2 * value, logits)
    softmax = (logits.detach() / 0.2).softmax(-1)
    torch.testing.assert_close(gradient, 2 / 3 / 0.2 * weights[:, None] * (softmax - targets))


def test_the_gradient_in_double_differences() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(5, 6).requires_grad_(), torch.randn(5, 6).softmax(-1)
    step, direction = 1e-2, torch.randn(5, 6)
    values = [IBOTLoss(1.0)(logits.detach() + s * direction, targets, token_weights(masks()), 3) for s in (step, -step)]
    (gradient,) = torch.autograd.grad(IBOTLoss(1.0)(logits, targets, token_weights(masks()), 3), logits)
    assert ((values[0] - values[1]) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), abs=1e-4)


def test_no_masked_patch_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 6).requires_grad_()
    value = IBOTLoss()(logits, torch.zeros(0, 6), torch.zeros(0), images=2)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None


def test_low_precision_logits_keep_their_dtype() -> None:
    logits = torch.randn(5, 6, dtype=torch.bfloat16).requires_grad_()
    value = IBOTLoss()(logits, torch.randn(5, 6).softmax(-1), token_weights(masks()), 3)
    value.backward()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="student_temperature=0"):
        IBOTLoss(0)
    with pytest.raises(ValueError, match=r"expected \(M, K\)"):
        IBOTLoss()(torch.zeros(5, 6), torch.zeros(4, 6), torch.zeros(5), 3)
    with pytest.raises(ValueError, match="images=0"):
        IBOTLoss()(torch.zeros(5, 6), torch.zeros(5, 6), torch.zeros(5), 0)
