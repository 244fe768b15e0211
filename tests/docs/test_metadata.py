"""The commands of Metadata and Augmentation of docs/scientific.md, on drawn images of three channels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.scientific_files import cells, labelled
from tests.docs.test_scientific import of_sections, shortened
from tests.runs import call


def test_metadata_and_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wells = labelled(Path("WELLS"), 6, channels=3, white=255)
    rows = [("image", "compound", "dose", "plate", "microscope")]
    for number, path in enumerate(sorted((wells / "images").glob("*.tif"))):
        Image.fromarray(cells(3, number, white=255)[0].astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()
        rows.append((f"{path.stem}.png", "ab"[number % 2], str(number), f"P{number // 3}", f"M{number % 3}"))
    with (wells / "wells.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    commands = of_sections("Metadata", "Augmentation")
    assert len(commands) == 3
    for command in commands:
        more = ["--model.backbone.init_from=null", "--model.ibot.weight=0"] if "pretrain" in command else []
        done = call([*shortened(command), *more])
        assert done.returncode == 0, (command, done.stderr)
        assert ("metadata to keep: dose" if "guides" in command else "flip_vertical: 0.5, instead") in done.stdout
