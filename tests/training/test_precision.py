"""The default precision: measured, saved with the run, kept by a resumed run, one for all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from dense.training.precision import MARGIN, OnePrecision, precision_of, probe, use_precision

CPU = torch.device("cpu")


def fake_clock(monkeypatch: pytest.MonkeyPatch, single: float, half: float) -> Callable[[], float]:
    """A clock on which a product takes `single` seconds in fp32 and `half` under autocast, whatever it really takes."""
    now = [0.0]
    linear = torch.nn.functional.linear

    def timed(*arguments: Any) -> torch.Tensor:
        now[0] += half if torch.is_autocast_enabled("cpu") else single
        return linear(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    return lambda: now[0]


@pytest.mark.parametrize(
    ("single", "half", "expected"),
    [(0.004, 0.002, "bf16-mixed"), (0.004, 0.0039, "32-true"), (0.004, 0.0068, "32-true"), (1e-4, 1.0, "32-true")],
)
def test_the_clearly_faster_precision(
    monkeypatch: pytest.MonkeyPatch, single: float, half: float, expected: str
) -> None:
    """Both times are in the reason; a much slower bf16 ends the probe early; random numbers go on as they were."""
    state = torch.get_rng_state()
    clock = fake_clock(monkeypatch, single, half)
    choice = probe(16, 100, CPU, clock)
    assert choice.precision == expected
    assert f"{1e3 * single:.3g} ms in fp32, {1e3 * half:.3g} in bf16" in choice.reason
    assert clock() < max(0.12, 3 * (single + half))
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.5 < MARGIN < 1


def test_one_slow_round_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([0.001, 0.001, *[0.004, 0.002, 0.004, 0.002, 0.004, 0.03], *[0.004, 0.002] * 9])
    now = [0.0]
    linear = torch.nn.functional.linear

    def timed(*arguments: Any) -> torch.Tensor:
        now[0] += next(times)
        return linear(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    assert probe(8, 64, CPU, lambda: now[0]).precision == "bf16-mixed"


def test_other_devices_compute_in_fp32() -> None:
    assert probe(8, 64, torch.device("meta")).precision == "32-true"


def test_a_run_with_a_checkpoint_keeps_its_precision(tmp_path: Path) -> None:
    """Also one of an earlier version, whose settings hold no reason."""
    assert precision_of(tmp_path) is None
    settings = tmp_path / "config.yaml"
    settings.write_text("# precision bf16-mixed: measured once\ntrainer:\n  precision: bf16-mixed\n")
    assert precision_of(tmp_path) is None  # nothing was trained in it
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert precision_of(tmp_path) == ("bf16-mixed", "measured once")
    settings.write_text("trainer:\n  precision: 32-true\n")
    assert precision_of(tmp_path) == ("32-true", "as the run began")
    settings.write_text("trainer:\n  precision: null\n")
    assert precision_of(tmp_path) is None


def test_the_first_process_decides() -> None:
    """A trainer whose own probe ended otherwise takes over the precision that is broadcast."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    fake: Any = SimpleNamespace(
        world_size=2,
        precision="32-true",
        _accelerator_connector=trainer._accelerator_connector,
        strategy=SimpleNamespace(broadcast=lambda precision: "bf16-mixed", precision_plugin=None),
    )
    OnePrecision().setup(fake, BoringModel(), "fit")
    assert fake.strategy.precision_plugin.precision == "bf16-mixed"
    use_precision(trainer, "bf16-mixed")
    assert trainer.precision == "bf16-mixed"
    with trainer.precision_plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")
    use_precision(trainer, "32-true")
    assert trainer.precision == "32-true"
