import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.centering import Center
from pretrain.losses import DINOLoss
from tests.pretrain.golden import det


def textbook(logits: Tensor, targets: Tensor, views: int, temperature: float) -> Tensor:
    crops = len(logits) * views // len(targets)
    total, pairs = torch.zeros((), dtype=logits.dtype), 0
    for t, target in enumerate(targets.chunk(views)):
        for v, crop in enumerate(logits.chunk(crops)):
            if v != t:
                total = total - (target * F.log_softmax(crop / temperature, dim=-1)).sum(-1).mean()
                pairs += 1
    return total / pairs


def example(crops: int, views: int = 2, images: int = 3, prototypes: int = 50) -> tuple[Tensor, Tensor]:
    torch.manual_seed(crops * 10 + views)
    targets = (3 * torch.randn(views * images, prototypes)).softmax(-1)
    return torch.randn(crops * images, prototypes).requires_grad_(), targets


def test_golden_values_with_their_centre() -> None:
    center = Center(6)
    student, teacher = det(10, 6), det(4, 6, phase=1)
    losses = []
    for temperature in (0.04, 0.07):
        losses.append(DINOLoss(0.1)(student, center(teacher, temperature)).item())
        center.update(teacher)
    assert losses == pytest.approx([10.480325, 10.520318], abs=2e-6)


@pytest.mark.parametrize(("crops", "views"), [(2, 2), (5, 2), (10, 2), (4, 1), (6, 3), (1, 2)])
def test_equals_the_double_loop(crops: int, views: int) -> None:
    logits, targets = example(crops, views)
    value = DINOLoss(0.1)(logits, targets, teacher_views=views)
    expected = textbook(logits, targets, views, 0.1)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(3 * value, logits)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_agrees_with_lightly() -> None:
    losses = pytest.importorskip("lightly.loss")
    student, teacher = torch.randn(6 * 4, 30), torch.randn(2 * 4, 30)
    theirs = losses.DINOLoss(output_dim=30, teacher_temp=0.05, warmup_teacher_temp_epochs=0)
    center = Center(30)
    for _ in range(3):
        expected = theirs(list(teacher.chunk(2)), list(student.chunk(6)), teacher_temp=0.05)
        value = DINOLoss()(student, center(teacher, 0.05))
        center.update(teacher)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(center.center, theirs.center.view(1, -1))
        student, teacher = student + torch.randn_like(student), teacher + torch.randn_like(teacher)


@pytest.mark.parametrize(("crops", "views"), [(4, 2), (5, 3)])
def test_gradient_by_finite_differences(crops: int, views: int) -> None:
    logits, targets = example(crops, views, images=2, prototypes=5)
    logits, targets = logits.detach().double().requires_grad_(), targets.double()
    targets = targets / targets.sum(-1, keepdim=True)
    assert torch.autograd.gradcheck(lambda s: DINOLoss(0.5)(s, targets, views), (logits,))


def test_targets_get_no_gradient() -> None:
    logits, targets = example(4)
    targets.requires_grad_()
    DINOLoss()(logits, targets).backward()
    assert targets.grad is None and logits.grad is not None


def test_a_crop_is_never_paired_with_its_own_view() -> None:
    logits, targets = example(2, images=1)
    DINOLoss()(logits, targets).backward()
    alone, unpaired = example(1, images=1)
    value = DINOLoss()(alone, unpaired)
    changed = torch.cat([torch.eye(50)[:1], unpaired[1:]])
    assert DINOLoss()(alone, changed).item() == value.item()
    # With one teacher view, the crop of that view has nothing to learn from.
    logits, targets = example(3, views=1)
    DINOLoss()(logits, targets, teacher_views=1).backward()
    assert logits.grad is not None
    assert not logits.grad[:3].any() and logits.grad[3:].any()


def test_uniform_predictions_have_loss_log_k() -> None:
    _, targets = example(4)
    assert DINOLoss()(torch.zeros(12, 50), targets).item() == pytest.approx(math.log(50), rel=1e-6)


def test_a_perfect_student_has_the_entropy_as_loss_and_no_gradient() -> None:
    targets = (3 * torch.randn(2, 20)).softmax(-1)[:1].repeat(2, 1)
    logits = (0.1 * targets.log()).repeat(2, 1).requires_grad_()
    value = DINOLoss(0.1)(logits, targets)
    assert value.item() == pytest.approx(torch.special.entr(targets[0]).sum().item(), rel=1e-5)
    value.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(4, 20), atol=1e-6, rtol=0)


def test_order_of_images_and_a_constant_do_not_matter() -> None:
    logits, targets = example(4)
    value = DINOLoss()(logits, targets)
    order = torch.tensor([2, 0, 1])

    def shuffled(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 3))[:, order].flatten(0, 1)

    torch.testing.assert_close(DINOLoss()(shuffled(logits), shuffled(targets)), value)
    torch.testing.assert_close(DINOLoss()(logits + torch.randn(12, 1), targets), value, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_fp32(dtype: torch.dtype) -> None:
    logits, targets = example(6)
    low = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = DINOLoss()(low, targets)
    exact = low.detach().float().requires_grad_()
    expected = textbook(exact, targets, 2, 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    (1000 * value).backward()  # scaled, as fp16 needs: the scale must come before the rounding
    (1000 * expected).backward()
    assert low.grad is not None and exact.grad is not None and low.grad.dtype == dtype
    torch.testing.assert_close(low.grad.float(), exact.grad, atol=1e-3, rtol=1e-2)


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest fp32 result."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_than_one_crop_is_held_in_fp32() -> None:
    logits, targets = example(10)
    low = logits.detach().bfloat16().requires_grad_()
    with _Largest() as largest:
        DINOLoss()(low, targets).backward()
    assert 3 * 50 <= largest.elements <= 2 * 3 * 50  # the targets themselves have two views


def test_wrong_shapes_are_named() -> None:
    loss = DINOLoss()
    with pytest.raises(ValueError, match=r"\(12, 50\), targets \(6, 40\)"):
        loss(torch.zeros(12, 50), torch.zeros(6, 40))
    with pytest.raises(ValueError, match="same number of images"):
        loss(torch.zeros(13, 50), torch.zeros(6, 50))
    with pytest.raises(ValueError, match="no pair"):
        loss(torch.zeros(3, 50), torch.zeros(3, 50), teacher_views=1)
    with pytest.raises(ValueError, match="student_temperature=0"):
        DINOLoss(0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_local_crops_may_count_less(weight: float) -> None:
    """Pairs of local crops are weighted; the divisor stays the number of pairs."""
    logits, targets = example(5)
    value = DINOLoss(0.1)(logits, targets, local_weight=weight)
    own = DINOLoss(0.1)(logits[: len(targets)], targets) * 2 / 8  # 2 of 8 pairs are of global crops
    everything = DINOLoss(0.1)(logits, targets)
    expected = own + weight * (everything - own)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)
