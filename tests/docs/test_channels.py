"""The commands on embedded scenes of docs/scientific.md, shortened."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import dense
from tests.docs.pages import DOCS, commands
from tests.runs import call

SHORT = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.workers=0", "--data.batch_size=2"]
OPTIONS = {
    "train": ["--data.scenes=[8,4]", "--model.init_args.tune.patch_steps=1", "--model.init_args.steps=2"],
    "pretrain": [
        "--data.scenes=16", "--model.backbone.patch_steps=1", "--model.steps=2", "--knn.train=null", "--knn.val=null",
        "--data.views.global_size=32", "--data.views.local_size=16", "--data.views.local_crops=1",
    ],
}  # fmt: skip


def test_the_patch_embedding_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that sees one channel at a time is what continued pretraining writes."""
    monkeypatch.chdir(tmp_path)
    for line in (line for line in commands(DOCS / "scientific.md") if "patch_steps" in line):
        verb, *rest = shlex.split(line.removeprefix("dense "))
        done = call([verb, *rest, *SHORT, *OPTIONS[verb]])
        assert done.returncode == 0, done.stderr
    assert dense.load_backbone("runs/continued/backbone").spec.each_channel
