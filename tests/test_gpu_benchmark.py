"""`benchmarks/gpu.py` in miniature: every work, a table, and what a budget of time leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runs import environment

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


def measure(output: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--small", "--device", "cpu", "--sizes", "S", "--output", str(output)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads((output / "gpu.json").read_text())["rows"]


@pytest.mark.slow
def test_every_work_in_miniature(tmp_path: Path) -> None:
    rows = measure(tmp_path, "--ways", "bf16 eager")
    assert [(row["work"], row["way"]) for row in rows] == [
        (work, way) for work in ("inference", "head", "pretrain") for way in ("fp32 eager", "bf16 eager")
    ]
    for row in rows:
        assert row["note"] == ""
        assert row["images_per_second"] > 0
        assert (row["difference"] is None) == (row["way"] == "fp32 eager")
        assert row["difference"] is None or 0 < row["difference"] < 0.3
    assert "| ViT-S | pretrain | bf16 eager | 2 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_what_has_no_time_is_named(tmp_path: Path) -> None:
    rows = measure(tmp_path, "--works", "inference", "--seconds", "0")
    assert {row["note"] for row in rows} == {"no time left"}
    assert all(row["images_per_second"] is None for row in rows)
