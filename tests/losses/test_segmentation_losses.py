"""What holds for every segmentation loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dense.losses import CrossEntropy, Dice, Focal, Lovasz

LOSSES = {
    "cross_entropy": CrossEntropy(),
    "weighted": CrossEntropy(weights=[1, 2, 0.5, 3], label_smoothing=0.1),
    "dice": Dice(),
    "focal": Focal(alpha=0.25),
    "lovasz": Lovasz(),
    "lovasz per image": Lovasz(per_image=True),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (3, 9, 11), generator=generator)
    labels[:, :2] = 255
    return torch.randn(3, 4, 9, 11, generator=generator), labels


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ignored_is_zero_with_a_gradient(loss: nn.Module, dtype: torch.dtype) -> None:
    logits = example()[0].to(dtype).requires_grad_()
    value = loss(logits, torch.full((3, 9, 11), 255))
    value.backward()
    assert value.shape == () and value == 0 and value.dtype == torch.float32
    assert logits.grad is not None and not logits.grad.any()


@every
def test_ignored_pixels_have_no_influence(loss: nn.Module) -> None:
    logits, labels = example()
    changed = logits.clone()
    changed[:, :, :2] = 50 * torch.randn(3, 4, 2, 11)
    changed.requires_grad_()
    value = loss(changed, labels)
    value.backward()
    torch.testing.assert_close(value, loss(logits, labels))
    assert changed.grad is not None and changed.grad.isfinite().all() and not changed.grad[:, :, :2].any()
    torch.testing.assert_close(value, loss(logits[:, :, 2:], labels[:, 2:]))


@every
def test_half_precision_logits_are_computed_in_fp32(loss: nn.Module) -> None:
    logits, labels = example()
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), labels))


@every
def test_perfect_is_better_and_a_permutation_no_different(loss: nn.Module) -> None:
    logits, labels = example()
    perfect = 8 * F.one_hot(torch.where(labels == 255, 0, labels), 4).movedim(-1, 1).float() - 4
    assert loss(perfect, labels) < 0.5 * loss(logits, labels)
    torch.testing.assert_close(loss(logits[[2, 0, 1]], labels[[2, 0, 1]]), loss(logits, labels))


@every
def test_wrong_shapes_are_named(loss: nn.Module) -> None:
    logits, labels = example()
    with pytest.raises(ValueError, match="resize the logits"):
        loss(logits[..., ::2], labels)


def test_an_ignored_image_is_left_out_of_lovasz_per_image() -> None:
    logits, labels = example()
    labels[1] = 255
    loss = Lovasz(per_image=True)
    torch.testing.assert_close(loss(logits, labels), loss(logits[[0, 2]], labels[[0, 2]]))


def test_a_weight_for_every_class() -> None:
    with pytest.raises(ValueError, match="2 class weights for 4 classes"):
        CrossEntropy(weights=[1, 2])(*example())
