"""The commands of docs/heads.md: those on scenes run, in order and shortened; the others parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dense.data.scenes import render
from dense.recipes import find_config
from tests.runs import call

PAGE = Path(__file__).parents[1] / "docs/heads.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(), re.S)
COMMANDS = [
    line for language, block in BLOCKS if not language for line in block.splitlines() if line.startswith("dense ")
]
SHORT = ["--model.init_args.steps=2", "--data.scenes=[8,4]", "--data.scene_size=32", "--trainer.accelerator=cpu"]


def test_recipes_of_the_page_exist() -> None:
    for name in re.findall(r"--config (\S+)", PAGE.read_text()):
        if name != "NAME":
            assert find_config(name).is_file()


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    for path in ("PHOTO.jpg", "FOLDER/a.png"):
        Image.fromarray(render(0, 1, (48, 64)).image).save(path)
    ran = 0
    for line in COMMANDS:
        verb, *rest = shlex.split(line)[1:]
        if "PICTURES" in rest:
            continue
        extra = SHORT if verb == "train" else ["--scenes", "3", "--size", "32"] if verb == "evaluate" else []
        done = call([verb, *rest, *extra])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 8
    for language, block in BLOCKS:
        if language == "python":
            exec(block, {})
