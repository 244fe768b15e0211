"""Manners of the command line that every verb has: examples, quiet, one-line errors, Ctrl-C, progress, completion."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense import console
from dense.cli import VERBS, completion, helps, main
from dense.cli.evaluate import VERBS as MEASURES
from dense.cli.parser import EXAMPLES
from dense.cli.trainings import HELP
from dense.console import progress, voice
from dense.suggest import UnknownOption
from dense.training.checkpoints import Checkpoints
from dense.training.cli import of_union
from tests.pretrain.runs import command, run, write_config
from tests.runs import assert_same, call, environment

TINY = ["--set", "embed_dim=32", "--set", "depth=2", "--set", "num_heads=4"]
EVERY_VERB = [*VERBS, *(f"evaluate {name}" for name in MEASURES)]


# ---- examples


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_every_help_ends_with_examples(verb: str) -> None:
    """Each of them, and what every verb takes."""
    shown = call([*verb.split(), "--help"]).stdout
    assert EXAMPLES[f"dense {verb}"]
    for line, words in EXAMPLES[f"dense {verb}"]:
        assert f"  {line}\n" in shown
        assert words in shown
    assert "--debug" in shown
    assert "--quiet" in shown


def test_kept_help_is_that_of_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every verb but the trainings, whatever the width. If it is not: python -m dense.cli.helps"""
    assert {path.stem for path in HELP.iterdir()} == {*EVERY_VERB} - {"train", "pretrain"}
    monkeypatch.setenv("COLUMNS", helps.WIDTH)
    for verb in helps.kept():
        shown = call([*verb.split(), "--help"]).stdout
        assert shown.split() == helps.help_of(verb).split(), verb


def test_help_comes_at_once() -> None:
    """Without the libraries, also among other options; what is no verb is still told."""
    code = "import sys; from dense.cli import main\n"
    code += f"for verb in {EVERY_VERB}: assert main([*verb.split(), '--flip', '-h']) == 0, verb\n"
    code += "assert not {'torch', 'numpy', 'jsonargparse'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert call(["evaluate", "dept", "--help"]).returncode == 2


def test_verbs_that_do_not_train_need_no_lightning() -> None:
    """It takes as long to import as all else that a prediction needs."""
    modules = (
        "predict.cli",
        "discovering",
        "tracking",
        "features",
        "convert",
        "export.cli",
        "curate.cli",
        "evaluate.cli",
    )
    code = f"import sys; import dense.{', dense.'.join(modules)}; assert 'lightning' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line, _ in lines])
def test_examples_name_what_exists(line: str) -> None:
    """Recipes parse as they are; of others, each option is one that the help lists."""
    _, verb, *rest = shlex.split(line.partition(" > ")[0])
    if verb in ("pretrain", "train"):
        done = call([verb, *rest, "--print_config"])
        assert done.returncode == 0, done.stderr
        return
    verb = f"{verb} {rest[0]}" if verb == "evaluate" else verb
    known = re.findall(r"--[\w-]+", call([*verb.split(), "--help"]).stdout.partition("examples:")[0])
    assert {word for word in rest if word.startswith("--")} <= set(known)


# ---- errors


def test_errors_are_one_line_and_debug_shows_where_they_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those that nobody thought of."""

    def wrong(argv: list[str]) -> int:
        raise KeyError("blocks.0.attn\nand more")

    monkeypatch.setattr("dense.cli.convert.main", wrong)
    assert main(["convert"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "KeyError" in told
    assert "--debug" in told
    for place in (["--debug", "convert"], ["convert", "x", "--debug"]):
        with pytest.raises(KeyError):
            main(place)


def test_a_value_that_may_be_left_out_says_why_it_is_wrong() -> None:
    """Lines that belong together stay so; what leaving it out would need is not told."""
    message = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - steps=-5: expected\n    at least 1\n"
        "  - Expected a <class 'NoneType'>\nGiven value type: <class 'int'>"
    )
    assert of_union(message) == "steps=-5: expected at least 1"
    assert of_union("steps=-5") == "steps=-5"


def test_wrong_usage_is_told_from_a_mistake_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that something does not take has status 2 and its words alone, any other TypeError 1 and a way to learn more."""

    def raises(error: Exception) -> tuple[int, str]:
        def wrong(argv: list[str]) -> int:
            raise error

        monkeypatch.setattr("dense.cli.convert.main", wrong)
        return main(["convert"]), capsys.readouterr().err

    assert raises(UnknownOption("dpt takes no 'x'")) == (2, "dense convert: error: dpt takes no 'x'\n")
    status, told = raises(TypeError("unsupported operand"))
    assert status == 1
    assert "TypeError: unsupported operand (--debug" in told


def test_misspelt_common_options_are_named() -> None:
    """As others are."""
    done = call(["convert", "a", "b", "--deubg"])
    assert done.returncode == 2
    assert "Did you mean --debug" in done.stderr


# ---- quiet


def test_quiet_leaves_results(tmp_path: Path) -> None:
    """No notices, wherever --quiet stands."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    features = ["features", str(tmp_path / "a.png"), "--backbone", "dino_vits16", "--output", str(tmp_path), *TINY]
    assert "1 images written" in call(["--quiet", *features]).stdout
    config = write_config(tmp_path, **{"model.steps": 2})
    loud, quiet = run(config, tmp_path / "loud"), run(config, tmp_path / "quiet", "--quiet")
    assert "starting" in loud.stdout
    assert "img/s" in loud.stdout
    assert quiet.stdout.startswith("wrote")
    assert quiet.stderr == ""


def test_progress_is_for_verbs_that_may_speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing from Python or with quiet; lines with the time left in a log; a bar on a terminal."""
    monkeypatch.setattr(console, "EVERY", 0)
    assert list(progress(range(3), "pictures")) == [0, 1, 2]
    with voice(quiet=True):
        assert list(progress(range(3), "pictures")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    with voice(quiet=False):
        assert list(progress(iter("ab"), "pictures", 2)) == ["a", "b"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "images: 1 of 2, 0:00:00 left"
    assert "\x1b" not in err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with voice(quiet=False):
        list(progress(range(3), "pictures"))
    assert "3/3" in capsys.readouterr().err


# ---- Ctrl-C


def test_interrupts_end_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And say how to go on."""

    def stop(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("dense.cli.convert.main", stop)
    assert main(["convert"]) == 130
    assert "interrupted; the same command starts it again" in capsys.readouterr().err


def test_a_second_interrupt_stops_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first waits for the step."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints._on_signal(signal.SIGINT, None)
    assert checkpoints.stopped_by == signal.SIGINT
    assert "saving" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        checkpoints._on_signal(signal.SIGINT, None)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    """Sent to the whole group, as a terminal does, workers included; the end is that of a run which was not stopped."""
    config = write_config(tmp_path, **{"checkpoint.every_steps": 0, "data.workers": 1})
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(config, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    metrics = output / "metrics.csv"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "stopped by Ctrl-C at step" in errors
    assert f"continues from {output / 'checkpoints/last.ckpt'}" in errors
    assert run(config, output).returncode == 0
    assert run(config, tmp_path / "whole").returncode == 0
    assert_same(output, tmp_path / "whole")


# ---- completion

KNOWN: completion.Words = {
    "": {"train": [], "evaluate": [], "completion": []},
    "evaluate": {"knn": [], "probe": []},
    "completion": {"bash": [], "zsh": [], "fish": []},
    "train": {"--config": ["depth/dpt", "joint/dpt"], "--output": [], "--data.root": []},
    "evaluate knn": {"--readout": ["class", "average"], "--train": []},
}
CASES = [
    (["dense", "tr"], ["train"]),
    (["dense", "evaluate", ""], ["knn", "probe"]),
    (["dense", "train", "--da"], ["--data.root"]),
    (["dense", "train", "--config", "de"], ["depth/dpt"]),
    (["dense", "evaluate", "knn", "--r"], ["--readout"]),
    (["dense", "evaluate", "knn", "--readout", "a"], ["average"]),
    (["dense", "completion", "b"], ["bash"]),
    (["dense", "train", "--output", ""], []),
]


def test_options_are_read_from_help() -> None:
    """With choices, and the names of configs."""
    found = completion.options_of(helps.help_of("convert"))
    assert found["--branch"] == ["teacher", "student"]
    assert {"--backbone", "--official", "--set", "--quiet", "--debug", "--help"} <= set(found)
    training = completion.options_for("train")
    assert "segmentation/scenes_linear" in training["--config"]
    assert {"--model.steps", "--data.root", "--help_all"} <= set(training)


@pytest.mark.parametrize(("typed", "expected"), CASES)
def test_bash_completes(typed: list[str], expected: list[str]) -> None:
    """In bash itself; where files are expected it is left to bash."""
    words = " ".join(map(shlex.quote, typed))
    ask = f'COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _dense; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{completion.bash(KNOWN)}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("typed", "expected"), CASES[:-1])
def test_fish_completes(typed: list[str], expected: list[str], tmp_path: Path) -> None:
    """In fish itself."""
    script = f"{completion.fish(KNOWN)}\ncomplete -C {shlex.quote(' '.join(typed))}"
    env = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True, env=env)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(("typed", "expected"), CASES)
def test_zsh_completes(typed: list[str], expected: list[str]) -> None:
    """In zsh, with what would show candidates replaced by what prints them."""
    words = " ".join(map(shlex.quote, typed))
    ask = (
        'compdef() { :; }; _files() { :; }; compadd() { shift; for w in "$@"; do [[ "$w" == "$PREFIX"* ]] && print -- $w; done }\n'
        f"{completion.zsh(KNOWN)}\n"
        f"words=({words}); CURRENT={len(typed)}; PREFIX={shlex.quote(typed[-1])}; _dense; true"
    )
    done = subprocess.run(["zsh", "-fc", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_the_verb_prints_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shell that is named."""
    monkeypatch.setattr(completion, "words", lambda: KNOWN)
    assert "complete -o default -F _dense dense" in call(["completion", "bash"]).stdout
    assert call(["completion", "zsh"]).stdout.startswith("#compdef dense")
    assert "complete -c dense" in call(["completion", "fish"]).stdout
    assert "Did you mean fish" in call(["completion", "fihs"]).stderr
