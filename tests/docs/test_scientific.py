"""Every command of docs/scientific.md, from a folder of 16-bit TIFFs of five channels to a model, on drawn cells."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import dense
from dense.data.image import read_image
from dense.data.levels import Reading
from dense.data.values import read_channels
from tests.data.scientific_files import CHANNELS, labelled
from tests.docs.pages import COMMAND, DOCS
from tests.predict.models import model
from tests.runs import call

CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.workers=0", "--trainer.precision=32-true"]
HEAD = ["--model.init_args.steps=2", "--data.batch_size=2", "--data.resize=32", "--data.crop_size=32"]
SMALL = ["--model.init_args.backbone.name=scenes_tiny", "--model.init_args.backbone.weights=null"]
VIEWS = ["--data.views.global_size=32", "--data.views.local_size=16", "--data.views.local_crops=1"]
PROJECTION = ["--model.head.out_dim=32", "--model.head.hidden_dim=32", "--model.steps=2", "--data.batch_size=3"]
STUDENT = ["--model.backbone.name=vit_tiny_patch16_224", "--model.backbone.arguments={depth: 1, img_size: 32}"]


def of_sections(*names: str) -> list[str]:
    """The commands of some sections of the page."""
    found = []
    for section in (DOCS / "scientific.md").read_text().split("\n## "):
        if section.split("\n")[0] in names:
            found += COMMAND.findall(section.replace("\\\n", " "))
    return found


def shortened(command: str) -> list[str]:
    verb, *rest = shlex.split(command)[1:]
    if verb == "train":
        return [verb, *rest, *CPU, *HEAD, *([] if "--model.backbone.name" in rest else SMALL)]
    if verb == "pretrain":
        return [verb, *rest, *CPU, *VIEWS, *PROJECTION, *STUDENT]
    return [verb, *rest]


def ran(section: str) -> dict[str, str]:
    """Run the commands of a section on drawn cells; return what each printed."""
    labelled(Path("CELLS"), 6, names=CHANNELS, white=20_000)
    printed = {}
    for command in of_sections(section):
        if "CELLS" in command:  # others are of embedded scenes, and run with the tests of backbones
            done = call(shortened(command))
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            printed[command] = done.stdout
    return printed


def test_from_16_bit_tiffs_of_five_channels_to_a_segmentation_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = ran("Values")
    assert len(printed) == 4
    config = json.loads(Path("runs/cells/model/config.json").read_text())
    reading = Reading.from_dict(config["inference"]["reading"])
    assert reading.channels == CHANNELS == tuple(config["backbone"]["channels"])
    assert all(0 < black < 2000 for black in reading.black) and 8000 < reading.white[0] < 20_000
    assert "quantiles of each channel" in next(iter(printed.values()))
    assert len(set(config["backbone"]["mean"])) == 5

    predictor = dense.load("runs/cells/model")
    file = Path("CELLS/images/cell0_dapi.tif")
    values = read_channels(file, reading)
    labels = predictor(file).labels
    np.testing.assert_array_equal(labels, predictor(values).labels)  # an array of numbers is read like the file
    np.testing.assert_array_equal(labels, predictor(reading.to_bytes(values)).labels)
    written = Path("runs/cells_predictions")
    np.testing.assert_array_equal(labels, np.asarray(Image.open(written / "cell0_labels.png")))
    assert Image.open(written / "cell0_overlay.png").mode == "RGB"


@pytest.mark.slow
def test_a_backbone_keeps_its_channels_for_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(ran("Channels")) == 5
    runs, file = Path("runs"), Path("CELLS/images/cell0_dapi.tif")
    own = json.loads((runs / "cells_own/model/config.json").read_text())
    backbone = dense.load_backbone(runs / "cells_backbone/backbone")
    assert own["backbone"]["reading"] == dict(backbone.spec.reading) == own["inference"]["reading"]
    assert own["backbone"]["mean"] == list(backbone.spec.mean)
    with np.load(runs / "cells_features/cell0.npz") as maps:
        image = torch.from_numpy(read_image(file, reading=Reading.of_spec(backbone.spec)))[None]
        with torch.inference_mode():
            expected = backbone(backbone.normalise(image), layers="last").maps[0][0].numpy()
        np.testing.assert_allclose(maps["map_0"], expected, atol=1e-5)
    assert len(list((runs / "cells_look").glob("*_look.png"))) == 2
    assert (runs / "cells_regions/cell0_overlay.png").is_file()


@pytest.mark.slow
def test_large_files_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides are read in windows; features of a folder become tables."""
    monkeypatch.chdir(tmp_path)
    model("labels").save_pretrained("runs/cells/model")
    for number in range(2):
        Path("SLIDES/images").mkdir(parents=True, exist_ok=True)
        Path("SLIDES/masks").mkdir(exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (600, 700, 3), dtype=np.uint8)
        tifffile.imwrite(f"SLIDES/images/{number}.tif", image, tile=(128, 128), compression="zlib")
        tifffile.imwrite(f"SLIDES/masks/{number}.tif", image[..., 0] // 128, tile=(128, 128), compression="zlib")
    Path("SLIDES/classes.yaml").write_text("dark: 0\nlight: 1\n")
    shutil.copytree("SLIDES/images", "IMAGES")
    predict, train, pretrain = of_sections("Large")
    assert call([*shortened(predict.replace("--window 448", "--window 112")), "--large", "0.1"]).returncode == 0
    assert len(list(Path("predicted").rglob("*_labels.tif"))) == 2
    few = ["--data.windows=2", "--model.inference.window=32", "--output", "runs/windows"]
    for command, options in ((train, few), (pretrain, ["--data.windows=2", "--data.window_size=64"])):
        words = [word for word in shortened(command) if not word.startswith("--data.resize")]
        done = call([*words, *options])
        assert done.returncode == 0, done.stderr
    tables = [one for one in of_sections("Many machines", "Tables") if "--table" in one]
    for number, command in enumerate(tables):
        pytest.importorskip("pyarrow")
        options = ["--backbone", "scenes_tiny", "--output", f"maps{number}"]
        done = call([*shortened(command), *options])
        assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("maps").glob("*.parquet")} == {"images.parquet", "patches.parquet"}
