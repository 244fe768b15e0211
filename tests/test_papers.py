"""The experiments of the papers run from end to end at a tiny size, and write their tables."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.runs import alone

FOLDER = Path(__file__).parents[1] / "benchmarks/papers"
PARTS = {"dino": ["teacher", "crops", "collapse", "masks"], "dpt": ["layers", "head"]}  # all of the others
TABLES = {  # script -> what its tables hold
    "dino": ("student_copy", "2 global, 2 local", "sharpening alone", "random initialisation"),
    "dinov2": ("+ SwiGLU", "at twice the size", "last4 + average"),
    "dpt": ("evenly spaced", "linear with class token"),
    "dino_ir": ("layer 0", "pixels", "4: noise, rain, motion, defocus", "+ DPC loss"),
    "any_size": ("0.5x", "its own"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", TABLES)
def test_an_experiment_runs(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    words = [*PARTS.get(script, []), "--quick", "--output", str(tmp_path / "out"), "--markdown", str(page)]
    words += ["--figure", str(tmp_path / "collapse.png")] if script == "dino" else []
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{script}.py"), *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    with alone(), pytest.raises(SystemExit) as done:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert done.value.code == 0
    text = page.read_text()
    assert f"<!-- papers_{script} -->" in text
    assert f"python benchmarks/papers/{script}.py {' '.join([*PARTS.get(script, []), '--quick'])}" in text
    assert [wanted for wanted in TABLES[script] if wanted not in text] == []


def test_an_unknown_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dpt.py", "readouts"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "dpt.py"), run_name="__main__")
    assert "no part readouts; there are readout, layers, head" in capsys.readouterr().err
