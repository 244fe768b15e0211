"""Properties of every depth loss."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import Tensor

import dense.losses
from dense.losses import KINDS, SSI, BinCrossEntropy, MiDaSLoss, RobustSSI, SiLog, build
from heads import Bins
from tests.losses.cases import BY_IMAGE, CENTRES, LOSSES, example

every = pytest.mark.parametrize("name", LOSSES)


def value_and_gradient(name: str, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.detach().clone().requires_grad_()
    value = LOSSES[name]()(prediction, target, mask)
    value.backward()
    assert prediction.grad is not None
    return value.detach(), prediction.grad


@every
def test_scalar_in_fp32_with_a_finite_gradient(name: str) -> None:
    prediction, target, mask = example(name)
    value, gradient = value_and_gradient(name, prediction, target, mask)
    assert value.shape == () and value.dtype == torch.float32 and value > 0
    assert gradient.isfinite().all() and gradient.any()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_empty_mask_gives_zero_with_a_gradient(name: str, dtype: torch.dtype) -> None:
    prediction, target, mask = example(name, dtype=dtype)
    target = torch.full_like(target, torch.nan)
    value, gradient = value_and_gradient(name, prediction, target, torch.zeros_like(mask))
    assert value == 0 and value.dtype == torch.float32
    assert gradient.dtype == dtype and not gradient.any()


@every
@pytest.mark.parametrize("pixels", [1, 2])
def test_one_or_two_pixels_are_enough(name: str, pixels: int) -> None:
    prediction, target, mask = example(name)
    few = torch.zeros_like(mask)
    few[0, 0, 3, 4 : 4 + pixels] = True
    value, gradient = value_and_gradient(name, prediction, target, few)
    assert value.isfinite() and gradient.isfinite().all()


@every
def test_values_outside_the_mask_have_no_influence(name: str) -> None:
    prediction, target, mask = example(name)
    value, gradient = value_and_gradient(name, prediction, target, mask)
    for rubbish in (torch.nan, torch.inf, -1.0, 1e30):
        other, same = value_and_gradient(
            name, torch.where(mask, prediction, rubbish), torch.where(mask, target, rubbish), mask
        )
        torch.testing.assert_close(other, value)
        torch.testing.assert_close(same, gradient)
    assert not torch.where(mask, 0, gradient).any()


@every
def test_half_precision_inputs_are_computed_in_fp32(name: str) -> None:
    prediction, target, mask = example(name, dtype=torch.bfloat16)
    loss = LOSSES[name]()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(prediction, target, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, LOSSES[name]()(prediction.float(), target.float(), mask))


@every
def test_the_order_of_images_does_not_matter(name: str) -> None:
    prediction, target, mask = example(name)
    order = [2, 0, 1]
    torch.testing.assert_close(
        LOSSES[name]()(prediction[order], target[order], mask[order]), LOSSES[name]()(prediction, target, mask)
    )


@pytest.mark.parametrize("name", BY_IMAGE)
def test_mean_over_the_images_that_have_pixels(name: str) -> None:
    prediction, target, mask = example(name, images=4)
    mask[1] = False
    loss = LOSSES[name]()
    each = [loss(prediction[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in (0, 2, 3)]
    torch.testing.assert_close(loss(prediction, target, mask), torch.stack(each).mean())


@pytest.mark.parametrize("name", [n for n in LOSSES if "bins" not in n])
def test_value_and_gradient_are_zero_at_the_optimum(name: str) -> None:
    _, target, mask = example(name)
    value, gradient = value_and_gradient(name, target, target, mask)
    assert value == 0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "silog of dinov2"])
def test_gradient_is_that_of_the_value(name: str) -> None:
    prediction, target, mask = (x[:2, :, :4, :5] for x in example(name, dtype=torch.float64))
    loss = LOSSES[name]()
    if name == "berhu":  # its threshold gets no gradient; hold it where it is
        prediction = prediction.clone()
        mask = mask.clone()
        target[0, 0, 0, 0], prediction[0, 0, 0, 0], mask[0, 0, 0, 0] = 100.0, 1.0, True

        def function(x: Tensor) -> Tensor:
            fixed = torch.zeros_like(mask)
            fixed[0, 0, 0, 0] = True
            return loss(torch.where(fixed, prediction, x), target, mask)
    else:

        def function(x: Tensor) -> Tensor:
            return loss(x, target, mask)

    assert torch.autograd.gradcheck(function, prediction.clone().requires_grad_(), atol=1e-6)


@every
def test_kinds(name: str) -> None:
    loss = LOSSES[name]()
    assert loss.kinds and loss.kinds <= set(KINDS)
    for kind in KINDS:
        if kind in loss.kinds:
            loss.check_kind(kind)
        else:
            with pytest.raises(ValueError, match=rf"{type(loss).__name__} is for .*{kind}.*: .*(use|set|leave)"):
                loss.check_kind(kind)
    with pytest.raises(ValueError, match="Did you mean metric"):
        loss.check_kind("metrics")


def test_wrong_shapes_are_named() -> None:
    prediction, target, mask = example("l1")
    loss = LOSSES["l1"]()
    with pytest.raises(ValueError, match="resize the prediction"):
        loss(prediction[..., :-1], target, mask)
    with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\)"):
        loss(prediction[:, 0], target[:, 0], mask[:, 0])
    with pytest.raises(TypeError, match=r"torch\.bool"):
        loss(prediction, target, mask.float())
    with pytest.raises(ValueError, match="one channel per bin"):
        BinCrossEntropy(CENTRES)(prediction, target, mask)


@pytest.mark.parametrize("focus", [1.0])
def test_silog_with_full_focus_is_scale_invariant(focus: float) -> None:
    prediction, target, mask = example("silog")
    loss = SiLog(focus, eps=0, over="image")
    factors = torch.tensor([0.1, 1, 30.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(loss(factors * prediction, target, mask), loss(prediction, target, mask))
    assert SiLog(0.85, eps=0)(30 * prediction, target, mask) > SiLog(0.85, eps=0)(prediction, target, mask)


@pytest.mark.parametrize("loss", [SSI(), RobustSSI(), MiDaSLoss(), MiDaSLoss(robust=True)], ids=str)
def test_ssi_is_invariant_to_scale_and_shift_per_image(loss: torch.nn.Module) -> None:
    prediction, target, mask = example("ssi", dtype=torch.float64)
    scale = torch.tensor([0.01, 1, 300.0], dtype=torch.float64).view(-1, 1, 1, 1)
    shift = torch.tensor([50.0, -4, 1000], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(loss(scale * prediction + shift, target, mask), loss(prediction, target, mask))


@pytest.mark.parametrize("loss", [SSI(), RobustSSI(), MiDaSLoss(), MiDaSLoss(robust=True)], ids=str)
@pytest.mark.parametrize("constant", [0.0, 0.3, 1e4])
def test_a_prediction_or_target_without_contrast_is_finite(loss: torch.nn.Module, constant: float) -> None:
    prediction, target, mask = example("ssi")
    flat = torch.full_like(prediction, constant)
    for left, right in ((flat, target), (prediction, flat), (flat, flat)):
        left = left.clone().requires_grad_()
        value = loss(left, right, mask)
        value.backward()
        assert value.isfinite() and left.grad is not None and left.grad.isfinite().all()


def test_robust_ssi_forgives_outliers() -> None:
    _, target, mask = example("robust_ssi")
    prediction = target.clone()
    prediction[:, :, :1] = 20  # 1 row of 17
    assert RobustSSI(trim=0.2)(prediction, target, mask) < 0.5 * RobustSSI(trim=0)(prediction, target, mask)


def test_silog_warms_up_in_training_only() -> None:
    prediction, target, mask = example("silog")
    loss = SiLog(unbiased=True, warmup_steps=2)
    full = SiLog(unbiased=True)(prediction, target, mask)
    assert loss.eval()(prediction, target, mask) < full  # the mean alone
    loss.train()
    values = [loss(prediction, target, mask) for _ in range(3)]
    assert values[0] == values[1] < values[2]
    torch.testing.assert_close(values[2], full)
    assert loss.state_dict()["step"] == 3


def test_bins_use_centres_and_normalisation_of_the_head() -> None:
    output = Bins(count=32, max_depth=8.0, normalisation="sigmoid")
    loss = build({"bins": {"assignment": "linear"}}, output).losses["bins"]
    assert loss.normalisation == "sigmoid" and torch.equal(loss.centres, output.depths())


@pytest.mark.parametrize("normalisation", ["softmax", "linear", "sigmoid"])
def test_linear_bins_are_learned_until_the_expectation_is_the_target(normalisation: str) -> None:
    output = Bins(count=8, min_depth=1.0, max_depth=8.0, normalisation=normalisation)  # type: ignore[arg-type]
    loss = build({"bins": {"assignment": "linear"}}, output).losses["bins"]
    target = torch.tensor([1.0, 2.3, 7.9]).view(1, 1, 1, 3)
    logits = torch.zeros(1, 8, 1, 3).requires_grad_()
    with torch.no_grad():
        logits += 0.5
    solver = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        solver.zero_grad()
        loss(logits, target, torch.ones_like(target, dtype=torch.bool)).backward()
        solver.step()
    torch.testing.assert_close(output.decode(logits.detach()), target, atol=0.4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiLog(1.5), "variance_focus=1.5"),
        (lambda: SiLog(1.0, warmup_steps=5), "gives no gradient"),
        (lambda: BinCrossEntropy([3.0, 1.0]), "ascending"),
        (lambda: RobustSSI(trim=1.0), "trim=1.0"),
    ],
)
def test_invalid_options_raise(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(dense.losses.__path__)])
def test_examples_of_the_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"dense.losses.{name}")).failed == 0
