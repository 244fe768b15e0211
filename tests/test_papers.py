"""The experiments of the papers run from end to end at a tiny size, and write their tables."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.runs import alone

FOLDER = Path(__file__).parents[1] / "benchmarks/papers"
RUNS = {  # script and parts, all or those whose code others share -> what their tables hold
    "dino teacher patch": ("student_copy", "48, 32"),
    "dino crops batch": ("2 global, 2 local", "32, 2 steps"),
    "dino collapse masks": ("sharpening alone", "random initialisation"),
    "dino prototypes head temperature": ("| 64 |", "| 2 |", "0.04 to 0.07 over 30 epochs"),
    "dino momentum length": ("student_copy, 6 local crops", "3 x 2 steps"),
    "dinov2 parts": ("+ SwiGLU", "the same at twice the size"),
    "dinov2 layers weights": ("last4 + average", "scenes_tiny"),
    "dpt readout layers": ("project", "evenly spaced", "| abs_rel | delta1 | mIoU |"),
    "dpt head": ("linear, class token, no batch norm",),
    "dino_ir premise quality": ("layer 0", "pixels"),
    "dino_ir tasks": ("4: noise, rain, motion, defocus",),
    "dino_ir parts": ("D-R attention + DPC loss", "model.backbone.layers=even4"),
    "fino guides": ("keep and forget", "cell, from other stain and microscope", "chance"),
    "any_size sizes": ("0.5x: ", "its own", "bilinear"),
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_experiment_runs(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *parts = run.split()
    page = tmp_path / "page.md"
    words = ["--output", parts[0], *parts, "--quick", "--markdown", str(page)]  # a folder may be called as a part
    words += ["--figure", str(tmp_path / "collapse.png")] if "collapse" in parts else []
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{script}.py"), *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    with alone(), pytest.raises(SystemExit) as done:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert done.value.code in (0, None)
    text = page.read_text()
    for part in parts:
        assert f"<!-- papers_{script}/{part}" in text
        assert f"python benchmarks/papers/{script}.py {part} --output {parts[0]} --quick --" in text
    assert [wanted for wanted in RUNS[run] if wanted not in text] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("any_size sizes --backbones dino_vits16", "dino_vits16 has no weights here: write NAME=FILE"),
        ("any_size sizes --quick --data nowhere", "error: no such image or folder: nowhere"),
        ("dinov2 weights --backbones dino_vits16", "dino_vits16 has no weights here: write NAME=FILE"),
        ("dinov2 weights --backbones nosuch", "nosuch has no weights here: write NAME=FILE"),
        ("dpt readout --set foo", "--set foo: expected KEY=VALUE"),
        ("dpt readout --markdown no/y.md", "--markdown no/y.md: expected a file in a folder that is there"),
        ("dpt readout --seeds 0", "argument --seeds: 0: expected 1 or more"),
        ("dpt readout --config nosuch/recipe", "error: no config nosuch/recipe."),
        (
            "dpt readout --config pretrain/scenes_demo",
            "--config pretrain/scenes_demo: expected a recipe such as joint/s",
        ),
        ("dpt readout --config instance/small_data", "expected a recipe such as joint/scenes_dpt"),
        ("dino_ir parts --config depth/small_data", "expected a recipe such as restoration/scenes_tiny"),
        ("dino teacher --config depth/small_data", "expected a recipe such as pretrain/scenes_demo"),
        ("dino patch --patches 0", "argument --patches: 0: expected 1 or more"),
        ("dino teacher --weights FILE", "--weights belongs to masks, not to teacher"),
        ("dino collapse --figure curves.foo", "--figure curves.foo: expected a name that ends in .png, .svg or .pdf"),
        ("dinov2 layers --set model.steps=3", "--set belongs to parts, not to layers"),
        ("fino guides --weights FILE", "unrecognized arguments: --weights FILE"),
        ("dino batch --values 0", "argument --values: invalid number value: '0'"),
        ("dino masks --supervised-weights x.pth", "--supervised-weights belongs to --supervised NAME"),
        ("dino crops --patches 3", "--patches belongs to patch, not to crops"),
        ("dino masks --data x", "--data belongs to teacher and patch and crops and"),
        ("dino collapse --figure /proc/x.png", "--figure /proc/x.png: cannot write to /proc"),
        ("dinov2 layers --backbones x", "--backbones belongs to weights, not to layers"),
        ("dino_ir premise --shallow 2", "--shallow belongs to parts, not to premise"),
        ("dino_ir parts --shallow 99", "error: layer 99 does not exist: "),
        ("dino_ir parts --shallow 0 5", "--shallow 5: the DPC loss never reads the deepest layer"),
        ("any_size sizes --size 1", "--size 1: expected 8 or more, a patch of scenes_tiny"),
        ("any_size sizes --quick --data scenes_none", "error: no such image or folder: scenes_none"),
        ("dino patch --patches 5000", "--patches 5000: crops of pretrain/scenes_demo have 48 pixels"),
        ("dino_ir parts --shallow 4 1", "error: layers (4, 1): expected each once, shallow to deep"),
        ("fino guides --quick --keep nosuch", "nosuch"),
        ("any_size sizes --most 0", "argument --most: 0: expected 1 or more"),
        ("any_size sizes --most 3", "--most 3: expected 48 or more, the training size"),
        ("dino_ir premise --images 1", "error: this part compares 2 images or more, and has 1 of scenes"),
        ("dino_ir quality --images 3", "error: this part compares 4 images or more, and has 3 of scenes"),
        ("dino_ir quality --set model.steps=3", "--set belongs to tasks and parts, not to quality"),
        ("dpt readout --set model.head.readout=add", "--set model.head.readout: this experiment varies model.head.rea"),
        ("dpt head --set model.head.width=16", "--set model.head.width: this experiment varies model.head; leave it"),
        ("dino teacher --set model.teacher={}", "--set model.teacher: this experiment varies model.teacher.m"),
        ("dino teacher --config pretrain/cifar10", "pretrain/cifar10 names no labelled images for k-NN: add --knn"),
        ("dinov2 parts --set data.views.init_args.local_size=16", "this experiment varies data.views.init_args.local_"),
        ("dino prototypes head --values 65536", "--values belong to one part: crops, prototypes, head, temperature"),
        (
            "dino masks --supervised dino_vits16",
            "--supervised dino_vits16 has no weights here: add --supervised-weights",
        ),
        ("dino prototypes --values many", "invalid number value: 'many'"),
        ("dino_ir tasks --set model.head.guidance=none", "this experiment varies model.head.guidance"),
        ("dino_ir parts --set model.perception.weight=1", "this experiment varies model.perception.weight"),
    ],
)
def test_a_wrong_option_is_one_line(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *words = given.split()
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{script}.py"), *words, "--output", str(tmp_path)])
    monkeypatch.syspath_prepend(str(FOLDER))
    with alone(), pytest.raises(SystemExit) as done:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert said in (f"{done.value.code}" if done.value.code != 2 else capsys.readouterr().err)


def test_tables_of_other_parts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has a section of its own, below the heading where an empty one stands."""
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    from _measure import write_section

    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- s -->\n\n<!-- end of s -->\n\n# B\n")
    for name, text in (("s/one", "first"), ("s/two", "second"), ("s/one", "third")):
        write_section(page, name, text, inside="s")
    found = page.read_text()
    assert "first" not in found
    assert found.index("# A") < found.index("third") < found.index("second") < found.index("# B")
    write_section(page, "other", "last", inside="missing")
    assert page.read_text().endswith("# B\n\n<!-- other -->\n\nlast\n\n<!-- end of other -->\n")


def test_a_row_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    from _measure import once

    options = Namespace(output=tmp_path)
    assert once(options, "a", lambda: {"x": 1}, {"steps": 2})["x"] == 1
    assert once(options, "a", lambda: {"x": 2}, {"steps": 2})["x"] == 1
    with pytest.raises(SystemExit, match=r"steps 2, now 3\): choose another --output"):
        once(options, "a", lambda: {"x": 2}, {"steps": 3})
    once(options, "b", lambda: {"x": 1})  # as older runs kept it
    assert once(options, "b", lambda: {"x": 2}, {"steps": 3})["x"] == 1


def test_a_damaged_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    from _measure import once

    kept = tmp_path / "rows/a.json"
    kept.parent.mkdir()
    for text in ("bad", "[]", '{"x": 1}'):
        kept.write_text(text)
        with pytest.raises(SystemExit, match=r"a\.json is no row of this script: remove it"):
            once(Namespace(output=tmp_path), "a", lambda: {"x": 1})


RECORDED = [
    command
    for page in sorted((FOLDER.parents[1] / "docs/methods").glob("*.md"))
    for command in re.findall(r"^python benchmarks/papers/(.+)$", page.read_text().replace("\\\n", ""), re.MULTILINE)
]


@pytest.mark.parametrize("command", RECORDED)
def test_a_recorded_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Understood(Exception):
        pass

    def parse(*given: Any) -> None:
        options["parse"](*given)
        raise Understood

    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(FOLDER.parents[1])
    options = vars(importlib.import_module("_options")).copy()
    monkeypatch.setattr("_options.parse", parse)
    script, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Understood):
        runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_a_page_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine, accelerator, versions, the time of rows, and a command that a shell takes; the figure is drawn last."""
    monkeypatch.syspath_prepend(str(FOLDER))
    study = runpy.run_path(str(FOLDER / "_study.py"))
    monkeypatch.setitem(study["publish"].__globals__, "machine", lambda: {"processor": "P", "accelerator": "GPU"})
    monkeypatch.setattr(sys, "argv", ["dpt.py", "head", "--set", "data.patches=[[0, 32]]"])
    page, drawn = tmp_path / "page.md", list[str]()
    options = Namespace(markdown=page, named=["head"], minutes={"a": 61.0, "b": 1.0})
    study["publish"](
        options, "s", "head", study["Made"]("| table |", "said", draw=lambda: drawn.append(page.read_text()))
    )
    text = page.read_text()
    assert drawn == [text]  # once all is written
    assert "python benchmarks/papers/dpt.py head --set 'data.patches=[[0, 32]]'\n" in text
    assert "said; P, GPU, dino-dense " in text
    assert ", 62 minutes." in text


def test_seconds_of_continued_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    seconds_of = runpy.run_path(str(FOLDER / "_study.py"))["seconds_of"]
    assert seconds_of([{"seconds": 60.0}, {"seconds": None}, {"seconds": 80.0}]) == "70"
    assert seconds_of([{"seconds": None}]) == ""


def test_an_unknown_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dpt.py", "readouts"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "dpt.py"), run_name="__main__")
    assert "no part readouts; there are readout, layers, head" in capsys.readouterr().err


def test_values_are_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "dino.py"))
    given = [script["number"](word) for word in ("65536", "0.07")]
    assert script["values_of"](Namespace(values=given, quick=False), "prototypes") == (65536, 0.07)
    assert script["values_of"](Namespace(values=None, quick=True), "batch") == (16, 32)


def test_the_warm_up_of_the_temperature_is_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves per epoch, also where a recipe has DINOv2's, which moves per step."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "dino.py"))
    monkeypatch.setitem(script["temperature"].__globals__, "compare", lambda options, part, variants: variants)
    warm_up = script["temperature"](Namespace(values=None, quick=False))["0.04 to 0.07 over 30 epochs"]
    assert warm_up["model.teacher.temperature_moves"] == "epoch"


def test_the_first_row_of_dinov2_has_none_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a later row adds the first one resets."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "dinov2.py"))
    first, *_ = script["STEPS"].values()
    later = {key for changes in script["STEPS"].values() for key in changes}
    assert set(first) == later | {f"{script['KEY']}.mlp_ratio"}


@pytest.mark.parametrize(
    ("backbone", "config", "hidden"),
    [
        ("dino_vits16", "pretrain/scenes_demo", 1024),
        ("dinov2_vitb14", "pretrain/scenes_demo", 2048),
        (None, "pretrain/dinov2_vitl14", 2736),
        ("vit_giant_patch14_dinov2", "pretrain/scenes_demo", 4096),
        (None, "pretrain/scenes_demo", 176),
    ],
)
def test_swiglu_is_as_wide_as_published(
    backbone: str | None, config: str, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "dinov2.py"))
    width = script["width_of"](Namespace(backbone=backbone, config=config, set=[]))
    assert int(width * script["swiglu_ratio"](width)) == 2 * hidden


@pytest.mark.parametrize("recipe", ["scenes_tiny", "dino_ir"])
def test_the_last_row_of_dino_ir_alone_has_its_loss(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the recipe has; layers and patches are those of another recipe than the usual one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "dino_ir.py"))
    kept: dict[str, dict[str, Any]] = {}

    def trained(options: Namespace, name: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
        kept[name] = given
        return {"numbers": defaultdict(float), "seconds": 1.0}

    monkeypatch.setitem(script["train"].__globals__, "trained", trained)
    chosen = {"config": f"restoration/{recipe}", "backbone": "dinov2_vits14", "weights": "FILE", "data": "scenes"}
    options = Namespace(**chosen, quick=False, set=[], seeds=1, steps=2, shallow=None)
    made = script["parts"](options)
    *others, last = kept.values()
    assert (last["model.perception.weight"], last["model.perception.layers"]) == (0.01, [2, 6])
    usual = recipe == "scenes_tiny"
    assert {one.get("model.perception.weight") for one in others} == {None if usual else 0.0}
    own = {"model.backbone.layers": "even4", "data.patches": [[0, 96, 8]]}
    assert all(one.get(key) == (value if usual else None) for one in kept.values() for key, value in own.items())
    assert made.said.endswith("model.backbone.layers=even4, data.patches=[[0, 96, 8]]") == usual


@pytest.mark.parametrize("there", [True, False])
def test_trained_backbones_are_measured_on_the_accelerator(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    assert runpy.run_path(str(FOLDER / "_study.py"))["device"]() == ("cuda" if there else "cpu")


@pytest.mark.slow
def test_layers_are_measured_in_two_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All readouts by one k-NN and one linear classification, with the numbers of a readout by itself."""
    import dense

    monkeypatch.syspath_prepend(str(FOLDER))
    classify = runpy.run_path(str(FOLDER / "dinov2.py"))["classify"]
    calls: list[str] = []
    evaluate = dense.evaluate

    def counted(backbone: Any, val: str, protocol: str, **options: Any) -> Any:
        calls.append(protocol)
        return evaluate(backbone, val, protocol, **options)

    monkeypatch.setattr(dense, "evaluate", counted)
    options = Namespace(output=tmp_path, knn=None, quick=True, resize=224)
    every = classify(options, "every", "scenes_tiny", None, ("class", "average"))
    assert calls == ["knn", "linear"]
    alone = [classify(options, kind, "scenes_tiny", None, (kind,))[0] for kind in ("class", "average")]
    assert [knn for knn, _ in every] == [knn for knn, _ in alone]
    assert every[0] == alone[0]
