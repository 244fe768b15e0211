"""The page of published heads names every family, and nothing that is not there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from dense.data.scenes import render
from dense.published import FAMILIES
from tests.published import layouts, peers
from tests.runs import call

PAGE = (Path(__file__).parents[1] / "docs/published.md").read_text()
ROWS = {found[1]: line for line in PAGE.splitlines() if (found := re.match(r"\| `(\w+)`", line))}


def test_every_family_has_a_row() -> None:
    assert set(ROWS) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_you_say_is_an_option(name: str) -> None:
    said = {
        w
        for w in re.findall(r"`(\w+)`", ROWS[name].split("|")[3])
        if w not in ("relative", "metric", "nyu", "kitti", "cat")
    }
    assert said <= {*FAMILIES[name].options, "family"}


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on Depth Anything, with a tiny one."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.save(layouts.depth_anything(peers.depth_anything().state_dict()), "depth_anything_v2_vits.pth")
    Image.fromarray(render(0, 1, (28, 42)).image).save("PHOTO.jpg")
    ran = 0
    for line in re.findall(r"^dense .*depth_anything_v2_vits.*$", PAGE, re.MULTILINE):
        verb, *rest = shlex.split(line)[1:]
        done = call([verb, *rest, *(["--resize", "28"] if verb == "predict" else [])])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran == 2
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(code.replace("kind=", "resize=28, kind="), {})
