import dataclasses
import math

import pytest

from pretrain.schedules import Constant, Cosine, Linear, linear_lr, sqrt_lr, teacher_temperature


def test_golden_cosine() -> None:
    schedule = Cosine(base=1.0, final=0.1, steps=12, warmup_steps=3)
    golden = [0, 0.5, 1, 1, 0.972862, 0.89472, 0.775, 0.628142, 0.471858, 0.325, 0.20528, 0.127138]
    assert [schedule(step) for step in range(12)] == pytest.approx(golden, abs=1e-6)


def test_golden_teacher_temperature() -> None:
    schedule = teacher_temperature(0.04, 0.07, warmup_epochs=3)
    assert [schedule(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


def test_teacher_temperature_without_warmup_and_with_one_longer_than_training() -> None:
    assert [teacher_temperature()(epoch) for epoch in range(3)] == [0.04] * 3
    assert teacher_temperature(0.04, 0.07, 1)(0) == 0.07
    warming = [teacher_temperature(0.04, 0.07, 31)(epoch) for epoch in range(11)]
    assert warming == pytest.approx([0.04 + 0.001 * epoch for epoch in range(11)])
    with pytest.raises(ValueError, match="final=0"):
        teacher_temperature(0.04, 0)


def test_cosine_without_warmup_agrees_with_lightly() -> None:
    scheduler = pytest.importorskip("lightly.utils.scheduler")
    schedule = Cosine(0.996, 1.0, steps=50)
    # Theirs reaches the final value on the last step, ours, as published, one step later.
    theirs = [scheduler.cosine_schedule(step, 51, 0.996, 1.0) for step in range(51)]
    assert [schedule(step) for step in range(51)] == pytest.approx(theirs)


def test_cosine_runs_between_its_ends_and_stays_there() -> None:
    falling = [Cosine(2.0, 0.5, 100, warmup_steps=10)(step) for step in range(130)]
    assert falling[:10] == sorted(falling[:10]) and falling[10:] == sorted(falling[10:], reverse=True)
    assert falling[0] == 0 and falling[9] == falling[10] == 2.0
    assert falling[99] > 0.5 and set(falling[100:]) == {0.5}
    assert Cosine(2.0, 0.5, 100)(50) == pytest.approx(1.25)


@pytest.mark.parametrize("warmup", [1, 12, 13, 1000])
def test_a_warmup_of_any_length_is_handled(warmup: int) -> None:
    values = [Cosine(1.0, 0.1, steps=12, warmup_steps=warmup, start=0.2)(step) for step in range(14)]
    assert all(math.isfinite(value) and 0.1 <= value <= 1 for value in values)
    assert values[0] == 0.2
    if warmup == 1000:
        assert values[11] == pytest.approx(0.2 + 0.8 * 11 / 999)


def test_linear_and_constant() -> None:
    assert [Linear(1.0, 2.0, steps=5)(step) for step in range(7)] == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0, 2.0]
    assert Linear(1.0, 2.0, steps=0)(0) == 2.0
    assert {Constant(0.3)(step) for step in range(5)} == {0.3}


def test_schedules_are_plain_frozen_values() -> None:
    schedule = Cosine(1.0, 0.1, 12)
    assert dataclasses.asdict(schedule) == {"base": 1.0, "final": 0.1, "steps": 12, "warmup_steps": 0, "start": 0.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base = 2.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="steps=0"):
        Cosine(1.0, 0.1, 0)


def test_learning_rate_scaling() -> None:
    assert linear_lr(5e-4, 512) == pytest.approx(1e-3)
    assert sqrt_lr(4e-3, 4096) == pytest.approx(8e-3)
    assert linear_lr(0.1, 256) == sqrt_lr(0.1, 1024) == 0.1
