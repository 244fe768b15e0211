"""The section on videos of docs/discovery.md: its commands on scenes run, shortened, and its Python too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data.scenes import clip
from dense.media.video import VideoWriter
from tests.runs import call

PAGE = Path(__file__).parents[2] / "docs/discovery.md"
SECTION = PAGE.read_text().split("## Objects followed through a video")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.S)


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FRAMES").mkdir()
    writer = VideoWriter("FILM.mp4", 10)
    for i, frame in enumerate(clip(0, 5, 3, (48, 64))):
        Image.fromarray(frame.image).save(f"FRAMES/{i}.png")
        writer.add(frame.image)
        if not i:
            Image.fromarray(frame.instance.astype(np.uint8)).save("FIRST.png")
    writer.close()
    lines = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    ran = 0
    for line in lines:
        words = shlex.split(line.replace("dino_vits16 --weights FILE", "scenes_tiny"))[1:]
        if "DAVIS" in words:
            continue
        short = ["--clips", "1", "--frames", "3", "--side", "32"] if words[0] == "evaluate" else ["--size", "48"]
        done = call([*words, *short])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 3


def test_python_runs() -> None:
    scope: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, scope)
    assert tuple(scope["masks"].shape) == (4, 96, 96)  # type: ignore[attr-defined]
