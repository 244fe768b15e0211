"""Sums of losses from plain data, and joint tasks."""

from typing import Any

import pytest
import torch

from dense.losses import DEPTH, SEGMENTATION, FixedWeights, GradientLog, SiLog, UncertaintyWeights, WeightedSum, build
from heads import Bins
from tests.losses.cases import CENTRES, example


def test_total_is_the_weighted_sum_of_the_parts() -> None:
    maps = example("silog")
    loss = build({"silog": {"weight": 10, "variance_focus": 0.5, "eps": 0}, "gradient_log": 0.5})
    prediction = maps[0].requires_grad_()
    total, parts = loss(prediction, *maps[1:])
    torch.testing.assert_close(parts["silog"], SiLog(0.5, eps=0)(*maps).detach())
    torch.testing.assert_close(parts["gradient_log"], GradientLog()(*maps).detach())
    torch.testing.assert_close(total.detach(), 10 * parts["silog"] + 0.5 * parts["gradient_log"])
    assert total.requires_grad and not parts["silog"].requires_grad
    loss.check_kind("metric")
    with pytest.raises(ValueError, match="SiLog"):
        loss.check_kind("inverse_relative")


def test_every_loss_can_be_built() -> None:
    for name in DEPTH:
        options: dict[str, Any] = {"centres": CENTRES.tolist()} if name == "bins" else {}
        assert type(build({name: options}).losses[name]) is DEPTH[name]
    for name in SEGMENTATION:
        total, parts = build({name: 2.0})(torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8)))
        torch.testing.assert_close(total, 2 * parts[name])


def test_bins_read_the_logits() -> None:
    logits, target, mask = example("bins")
    bins = Bins(count=len(CENTRES), max_depth=6.0, normalisation="softmax")
    loss = build({"silog": 1, "bins": {"weight": 0.1, "assignment": "linear"}}, bins=bins)
    total, parts = loss(bins.decode(logits), target, mask, logits=logits)
    torch.testing.assert_close(total, parts["silog"] + 0.1 * parts["bins"])
    with pytest.raises(ValueError, match=r"Bins\(logits=True\)"):
        loss(bins.decode(logits), target, mask)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"silg": 1}, "Did you mean silog"),
        ({"silog": {"variance_fokus": 0.5}}, "Did you mean variance_focus"),
        ({"silog": {"wheight": 2}}, "Did you mean weight"),
        ({"silog": 1, "dice": 1}, "one for each output"),
        ({"silog": 0}, "expected a positive number"),
        ({"silog": float("nan")}, "expected a positive number"),
        ({"bins": 1}, "needs centres"),
        ({}, "at least one"),
    ],
)
def test_mistakes_are_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_the_step_of_a_warm_up_is_saved() -> None:
    loss = build({"silog": {"warmup_steps": 10}})
    loss(*example("silog"))
    other = build({"silog": {"warmup_steps": 10}})
    other.load_state_dict(loss.state_dict())
    assert isinstance(other, WeightedSum) and other.state_dict()["losses.silog.step"] == 1


def joint() -> UncertaintyWeights:
    return UncertaintyWeights({"depth": "regression", "labels": "classification"})


def test_uncertainty_finds_the_noise() -> None:
    weights = joint()
    solver = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(500):
        solver.zero_grad()
        weights({"depth": torch.tensor(4.0), "labels": torch.tensor(0.25)}).backward()
        solver.step()
    found = {name: value.exp().item() for name, value in weights.log_variances.items()}
    assert found == pytest.approx({"depth": 4.0, "labels": 0.5}, rel=1e-2)  # where the total is stationary


@pytest.mark.parametrize("weights", [joint(), FixedWeights({"depth": 0.5, "labels": 1.0})], ids=["learned", "fixed"])
def test_a_task_without_labels_contributes_zero(weights: torch.nn.Module) -> None:
    depth, labels = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    alone = weights({"depth": depth})
    none_of_three = torch.zeros(3, dtype=torch.bool)
    total = weights({"depth": depth, "labels": labels}, {"labels": none_of_three, "depth": True})
    torch.testing.assert_close(total, alone)
    total.backward()
    assert depth.grad is not None and depth.grad > 0 and labels.grad == 0
    for name, parameter in weights.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad) == ("depth" in name)
    one_of_three = torch.tensor([False, True, False])
    both = weights({"depth": depth, "labels": labels}, {"labels": one_of_three})
    torch.testing.assert_close(both, weights({"depth": depth, "labels": labels}))


def test_unlabelled_batches_keep_every_parameter_in_the_graph() -> None:
    weights = joint()
    weights({"labels": torch.tensor(1.0, requires_grad=True)}).backward()
    assert all(parameter.grad is not None for parameter in weights.parameters())


def test_joint_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean depth"):
        joint()({"dept": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="Did you mean regression"):
        UncertaintyWeights({"depth": "regresion"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="no losses"):
        joint()({})
