"""data.domain: what it changes, what explicit options keep, and that the settings of a run are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from dense.data.domain import PRESETS
from dense.data.transforms import Augment, TrainTransform
from dense.training.cli import apply_domain, explicit_options
from pretrain.views import MultiCrop
from tests.pretrain.runs import run, write_config
from tests.runs import assert_same


def of_heads(domain: str, **more: Any) -> Namespace:
    augment = Namespace(**{"hue": 0.1, "flip": 0.5, "flip_vertical": 0.0, "noise": 0.0, "saturation": 0.0} | more)
    return Namespace(domain=domain, augment=augment, degrade=None, layout="folder")


def file(folder: Path, name: str, **data: Any) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump({"data": data}))
    return str(path)


@pytest.mark.parametrize("domain", PRESETS)
def test_every_preset_is_valid(domain: str) -> None:
    """Its options exist; none changes the distance of what is seen, so that metric depth stays as it is."""
    Augment(**PRESETS[domain]["augment"])
    MultiCrop(**PRESETS[domain]["views"])
    augment = Augment(**PRESETS[domain]["augment"])
    TrainTransform(augment, 8, "metric")
    if domain != "photographs":
        assert (augment.hue, augment.saturation, PRESETS[domain]["views"]["solarise"]) == (0, 0, 0)
        assert (domain == "xray") != augment.rotate90


def test_what_was_changed_is_reported() -> None:
    data = of_heads("microscopy")
    lines = apply_domain(data, ["--data.domain", "microscopy", "--data.augment.hue=0.1"])
    assert lines[0] == "data.domain: microscopy"
    assert "  data.augment.flip_vertical: 0.5, instead of 0.0" in lines
    assert lines[-1] == "  data.augment.hue: 0.1, as given"
    assert not [line for line in lines if "saturation" in line or ".flip:" in line]  # no change
    assert (data.augment.hue, data.augment.flip_vertical, data.augment.noise) == (0.1, 0.5, 0.02)
    assert apply_domain(of_heads("photographs"), ["--data.domain", "photographs"]) == []
    with pytest.raises(ValueError, match=r"data\.domain=microscope: expected one of photographs, microscopy"):
        apply_domain(of_heads("microscope"), [])


def test_restoration_gets_no_noise_in_its_target() -> None:
    data = of_heads("microscopy")
    data.layout = "paired"
    apply_domain(data, [])
    assert data.augment.noise == 0


def test_explicit_are_options_beside_or_after_the_domain(tmp_path: Path) -> None:
    recipe = file(tmp_path, "recipe.yaml", augment={"hue": 0.1, "flip": 0.5})
    mine = file(tmp_path, "mine.yaml", domain="xray", augment={"flip": 0.3})
    last = file(tmp_path, "last.yaml", views={"class_path": "pretrain.views.MultiCrop", "init_args": {"grey": 0.1}})
    assert explicit_options(["--config", recipe, "--data.domain", "xray"], "augment") == set()
    assert explicit_options([f"--config={recipe}", "-c", mine], "augment") == {"flip"}
    assert explicit_options(["-c", mine, "--data.domain=xray"], "augment") == set()
    assert explicit_options(["-c", mine, "-c", last], "views") == {"grey"}
    words = ["--data.views.init_args.hue", "0", "--data.views.noise=0.1", "--data.augment", '{"gamma": [1, 2]}']
    assert explicit_options(words, "views") == {"hue", "noise"}
    assert explicit_options(words, "augment") == {"gamma"}


def test_a_run_and_its_settings_again(tmp_path: Path) -> None:
    """The views of the domain, printed, kept in config.yaml, which gives the same run; another domain is refused."""
    config = write_config(tmp_path, **{"model.steps": 2, "checkpoint.every_steps": 0})
    done = run(config, tmp_path / "one", "--data.domain", "microscopy", "--data.views.noise", "0.1")
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "  data.views.rotate90: True, instead of False" in printed
    assert "  data.views.noise: 0.1, as given" in printed
    kept = yaml.safe_load((tmp_path / "one/config.yaml").read_text())["data"]
    views = kept["views"]["init_args"]
    assert (kept["domain"], views["hue"], views["noise"], views["blur_units"]) == ("microscopy", 0.0, 0.1, "image")
    assert "domain: microscopy" in (tmp_path / "one/backbone/README.md").read_text()
    again = run(tmp_path / "one/config.yaml", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert "instead of" not in again.stdout + again.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    other = run(config, tmp_path / "one", "--data.domain", "xray")
    assert "data.views.0.flip_vertical" in other.stderr
