"""`make bench`: claims of every benchmark in one table, failures included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FAST = """
from _claims import record, versioned
record("views", peer=versioned("numpy"), ours="2 ms", theirs="9 ms", ratio=4.5, least=4)
record("memory", ours="2100 MB", value=2100, most=2000)
record("speed", ours="7 a second")
"""


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the runner in a process of its own."""
    command = [sys.executable, str(FOLDER / "_all.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_table_of_all_claims(tmp_path: Path) -> None:
    """Claims met, missed and without a target; a benchmark that fails is reported and stops no other."""
    import numpy

    (tmp_path / "fast.py").write_text(FAST)
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    (tmp_path / "short.py").write_text("print('only a trial')")
    (tmp_path / "_helper.py").write_text("raise SystemExit(4)")
    done = bench("--folder", tmp_path, "--output", tmp_path / "results.md")
    assert done.returncode == 1
    assert "failed: broken" in done.stderr
    text = (tmp_path / "results.md").read_text()
    assert f"| fast | views | numpy {numpy.__version__} | 2 ms | 9 ms | 4.50 | at least 4 | yes |" in text
    assert "| fast | memory |  | 2100 MB |  |  | at most 2000 | NO |" in text
    assert "| fast | speed |  | 7 a second |  |  |  |  |" in text
    assert "| broken | FAILED with status 3 |" in text
    assert "| short | works; its claims want a longer run: `python benchmarks/short.py --help` |" in text
    assert "| benchmark | seconds | date | processor | threads | load before | system | torch | accelerator |" in text
    shown = done.stdout.splitlines()
    assert any(line.split()[:2] == ["views", "numpy"] and line.endswith("yes") for line in shown)
    assert "_helper" not in text


def test_some_by_name(tmp_path: Path) -> None:
    """Earlier results of other benchmarks stay on the page; an unknown name is an error."""
    (tmp_path / "fast.py").write_text(FAST)
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    assert bench("fast", "--folder", tmp_path, "--output", tmp_path / "results.md").returncode == 0
    assert "Not run yet: broken." in (tmp_path / "results.md").read_text()
    assert bench("broken", "--folder", tmp_path, "--output", tmp_path / "results.md").returncode == 1
    text = (tmp_path / "results.md").read_text()
    assert "| fast | views |" in text
    assert "| broken | FAILED" in text
    assert "Not run yet" not in text
    done = bench("slow", "--folder", tmp_path, "--output", tmp_path / "results.md")
    assert done.returncode == 2
    assert "no benchmark slow; there are broken, fast" in done.stderr


def test_a_target_needs_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that can neither be met nor missed raises."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from _claims import record

    with pytest.raises(ValueError, match="needs a ratio or a value"):
        record("views", ours="2 ms", least=4)
    assert record("views", ours="2 ms", ratio=3.9, least=4).met is False


@pytest.mark.parametrize("path", sorted({*FOLDER.glob("[a-z]*.py")} - {FOLDER / "gpu.py"}), ids=lambda path: path.stem)
def test_every_benchmark_records_its_claims(path: Path) -> None:
    """All but gpu.py, which has no peer and writes a table of its own."""
    assert "record(" in path.read_text()


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_readme_shows_rows_of_the_benchmarks() -> None:
    """Every row of README is one of results.md, cell by cell, and every missed target of results.md is shown."""
    shown = rows((FOLDER.parent / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0])[2:]
    claims = [row[1:] for row in rows((FOLDER / "results.md").read_text()) if len(row) == 8]
    cells = {(claim, ours, peer, theirs, ratio): met for claim, peer, ours, theirs, ratio, _, met in claims}
    assert len(shown) >= 14
    assert [row for row in shown if tuple(row) not in cells] == []
    missed = [key for key, met in cells.items() if met == "NO"]
    assert [key for key in missed if list(key) not in shown] == []
