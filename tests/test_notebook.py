"""The notebook of the Python API is executed and small, and it still runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

PATH = Path(__file__).parents[1] / "docs/api.ipynb"
CELLS: list[dict[str, Any]] = json.loads(PATH.read_text())["cells"]
SHORTER = {'"model.steps": 60': '"model.steps": 6', '"val_every": 30': '"val_every": 3', "range(30)": "range(3)"}
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_was_executed_and_is_small() -> None:
    """In order, without errors or warnings, with nothing of the machine it ran on."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert PATH.stat().st_size < 1_000_000
    assert "/home/" not in PATH.read_text()
    assert "site-packages" not in PATH.read_text()


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, in one namespace, with fewer steps."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert all(any(long in "".join(cell["source"]) for cell in CODE) for long in SHORTER)
    for cell in CODE:
        code = "".join(cell["source"])
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        exec(code, names)
    assert 0 < names["result"].numbers["miou"] < 1
    assert names["prediction"].labels.shape == (96, 96)
    assert names["pretrained"].spec.dim == 64
    assert names["out"]["labels"].shape[-2:] == (96, 96)
    assert float(names["loss"]) > 0
