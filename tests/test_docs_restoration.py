"""The commands of docs/restoration.md run, in order and shortened."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dense.data.scenes import render
from tests.runs import call

PAGE = (Path(__file__).parents[1] / "docs/restoration.md").read_text()
COMMANDS = re.findall(r"^dense .*$", PAGE, re.MULTILINE)
SHORT = {
    "train": [
        "--model.init_args.steps=2", "--data.scenes=[6,1]", "--data.scene_size=32", "--data.patches=[[0,16,2]]",
        "--model.init_args.head.body={dim: 8, blocks: [1,1,1,1], heads: [1,1,2,2], refinement: 1, expansion: 2.0}",
        "--trainer.accelerator=cpu",
    ],
    "evaluate": ["--scenes=1", "--size=32"],
}  # fmt: skip


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(0, 1, (48, 64)).image).save("PHOTO.jpg")
    for line in COMMANDS:
        verb, *rest = shlex.split(line)[1:]
        done = call([verb, *rest, *SHORT.get(verb, [])])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert {shlex.split(line)[1] for line in COMMANDS} == {"train", "evaluate", "predict", "export"}
    assert Path("restored/PHOTO_restored.png").is_file()
    assert Path("restore.onnx").is_file()


def test_its_benchmarks_are_there() -> None:
    named = re.findall(r"python (benchmarks/\S+\.py)", PAGE)
    assert {"benchmarks/restoration_table.py", "benchmarks/restoration_size.py"} <= set(named)
    assert all((Path(__file__).parents[1] / name).is_file() for name in named)
