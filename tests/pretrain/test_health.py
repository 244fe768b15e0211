import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.centering import Center
from pretrain.head import ProjectionHead
from pretrain.health import (
    Diagnosis,
    HealthMonitor,
    TargetStatistics,
    effective_rank,
    entropy,
    feature_std,
    measure,
)
from pretrain.losses import DINOLoss
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups
from pretrain.teacher import Teacher

K = 64


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = ProjectionHead(32, K, hidden_dim=64, bottleneck_dim=32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(x)
        return features, self.head(features)


def train(centring: bool, temperature: float, seed: int = 0, steps: int = 300) -> tuple[HealthMonitor, list[Diagnosis]]:
    """A toy DINO on 256 random vectors, whose views are the vectors with noise."""
    torch.manual_seed(seed)
    student, center, loss = Student(), Center(K), DINOLoss(0.1)
    teacher = Teacher(student)
    optimizer = build_optimizer("adamw", parameter_groups(student), lr=3e-3)
    statistics, monitor = TargetStatistics(K), HealthMonitor(K, warmup_steps=150, patience=20)
    images, diagnoses = torch.randn(256, 16), []
    for step in range(steps):
        views = images[torch.randint(256, (32,))].repeat(4, 1)
        views = views + 0.3 * torch.randn_like(views)
        features, logits = teacher(views[:64])
        targets = center(logits, temperature)
        value = loss(student(views)[1], targets)
        optimizer.zero_grad()
        value.backward()
        clip_gradients_(student.parameters(), 3.0)
        optimizer.step()
        teacher.after_step(student, 0.99)
        if centring:
            center.update(logits)
        diagnosis = monitor.update(step, {"loss": value} | measure(statistics, targets, value, features, center.center))
        diagnoses += [diagnosis] if diagnosis else []
    return monitor, diagnoses


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_run_raises_no_alarm(seed: int) -> None:
    monitor, diagnoses = train(centring=True, temperature=0.04, seed=seed)
    assert diagnoses == []
    last = monitor.history[-1]
    assert last["marginal_entropy"] > last["teacher_entropy"] + 0.5 and last["kl"] > 0.1  # it does learn
    assert last["loss"] < math.log(K) - 1 and last["prototype_usage"] > 0.2 and last["center_norm"] > 0


def test_without_centring_it_collapses_to_a_point() -> None:
    monitor, diagnoses = train(centring=False, temperature=0.04)
    assert [diagnosis.kind for diagnosis in diagnoses] == ["collapse_to_point"]
    assert "same prototype" in diagnoses[0].message and "Centring" in diagnoses[0].advice
    assert monitor.history[-1]["teacher_entropy"] < 0.01 and monitor.history[-1]["kl"] < 0.01


def test_without_sharpening_it_collapses_to_uniform() -> None:
    monitor, diagnoses = train(centring=True, temperature=0.1)
    assert [diagnosis.kind for diagnosis in diagnoses] == ["collapse_to_uniform"]
    assert "no preference" in diagnoses[0].message and "Sharpening" in diagnoses[0].advice
    assert monitor.history[-1]["teacher_entropy"] > math.log(K) - 0.01 and monitor.history[-1]["kl"] < 0.01


GOOD = {"loss": 3.0, "teacher_entropy": 2.0, "marginal_entropy": 4.0, "feature_std": 0.9}
UNIFORM = GOOD | {"teacher_entropy": math.log(K), "marginal_entropy": math.log(K)}
POINT = GOOD | {"teacher_entropy": 0.01, "marginal_entropy": 0.01}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_reported_at_once_and_once(value: float) -> None:
    monitor = HealthMonitor(K)
    assert monitor.update(0, GOOD) is None
    diagnosis = monitor.update(1, GOOD | {"loss": torch.tensor(value)})
    assert diagnosis is not None and diagnosis.kind == "not_finite" and "Step 1" in str(diagnosis)
    assert "loss" in diagnosis.message and "learning rate" in str(diagnosis)
    assert monitor.update(2, GOOD | {"loss": value}) is None
    assert monitor.update(3, GOOD) is None
    assert monitor.update(4, GOOD | {"loss": value}) is not None


def test_warmup_and_patience_hold_the_alarm_back() -> None:
    monitor = HealthMonitor(K, warmup_steps=100, patience=5)
    assert all(monitor.update(step, UNIFORM) is None for step in range(104))
    diagnosis = monitor.update(104, UNIFORM)
    assert diagnosis is not None and diagnosis.kind == "collapse_to_uniform"
    assert all(monitor.update(step, UNIFORM) is None for step in range(105, 200))  # once is enough
    # A moment of health starts the count anew.
    monitor = HealthMonitor(K, warmup_steps=0, patience=5)
    assert all(monitor.update(step, GOOD if step % 5 == 4 else POINT) is None for step in range(50))


def test_sharp_targets_on_different_prototypes_are_no_collapse() -> None:
    monitor = HealthMonitor(K, warmup_steps=0, patience=1)
    assert monitor.update(0, GOOD | {"teacher_entropy": 0.0}) is None
    found = monitor.update(1, POINT)
    assert found is not None and found.kind == "collapse_to_point"


def test_feature_collapse_is_named() -> None:
    monitor = HealthMonitor(K, warmup_steps=0, patience=2)
    features = torch.ones(8, 1) * torch.randn(1, 20) + 1e-4 * torch.randn(8, 20)
    values = GOOD | {"feature_std": feature_std(features)}
    assert monitor.update(0, values) is None
    found = monitor.update(1, values)
    assert found is not None and found.kind == "feature_collapse"


def test_history_is_short() -> None:
    monitor = HealthMonitor(K, window=10)
    for step in range(25):
        monitor.update(step, GOOD)
    assert [entry["step"] for entry in monitor.history] == list(range(15, 25))
    assert monitor.history[-1]["loss"] == 3.0
    with pytest.raises(ValueError, match="prototypes=1"):
        HealthMonitor(1)


def test_kl_is_that_between_teacher_and_student() -> None:
    targets, logits = (2 * torch.randn(6, 10)).softmax(-1), torch.randn(12, 10)
    values = measure(TargetStatistics(10), targets, DINOLoss(0.1)(logits, targets))
    student = (logits / 0.1).log_softmax(-1).view(4, 3, 10)
    teacher = targets.view(2, 3, 10)
    pairs = [(t, v) for t in range(2) for v in range(4) if t != v]
    expected = sum(F.kl_div(student[v], teacher[t], reduction="batchmean") for t, v in pairs) / len(pairs)
    assert values["kl"].item() == pytest.approx(float(expected), rel=1e-4)


def test_entropies() -> None:
    assert entropy(torch.full((3, 10), 0.1)).item() == pytest.approx(math.log(10))
    assert entropy(torch.eye(10)).item() == 0  # 0 log 0 is 0
    targets = torch.rand(5, 10).softmax(-1)
    expected = torch.distributions.Categorical(probs=targets).entropy().mean().item()
    assert entropy(targets).item() == pytest.approx(expected, rel=1e-5)
    statistics = TargetStatistics(10)
    assert statistics(torch.eye(10))["marginal_entropy"].item() == pytest.approx(math.log(10))


def test_the_marginal_gathers_over_small_batches() -> None:
    statistics = TargetStatistics(8, momentum=0.9)
    for i in range(80):
        values = statistics(torch.eye(8)[i % 8 : i % 8 + 1])
    assert values["teacher_entropy"].item() == 0
    assert values["marginal_entropy"].item() > 0.9 * math.log(8)


def test_prototype_usage_over_a_window() -> None:
    statistics = TargetStatistics(10, window=3)
    usage = [statistics(torch.eye(10)[[i, i]])["prototype_usage"].item() for i in (0, 1, 2, 3, 3, 3, 3)]
    assert usage == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.1])


def test_feature_std() -> None:
    torch.manual_seed(0)
    features = torch.randn(5000, 32)
    assert feature_std(features).item() == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(8, 32)).item() == pytest.approx(0, abs=1e-4)
    scaled = features * torch.rand(5000, 1)  # only directions count
    torch.testing.assert_close(feature_std(scaled), feature_std(features))


@pytest.mark.parametrize("samples", [7, 200])
def test_effective_rank(samples: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(samples, 32)
    singular = torch.linalg.svdvals(features)
    shares = singular / singular.sum()
    expected = torch.distributions.Categorical(probs=shares).entropy().exp().item()
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(effective_rank(5 * features), effective_rank(features))
    assert effective_rank(torch.randn(1, 32).repeat(samples, 1)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(32)[:samples]).item() == pytest.approx(min(samples, 32), rel=1e-5)
    assert math.isnan(effective_rank(torch.full((4, 3), math.nan)).item())
    assert effective_rank(torch.zeros(4, 3)).item() == pytest.approx(1)
