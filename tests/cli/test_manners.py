"""Manners of the command line that every verb has: examples, quiet, one-line errors, Ctrl-C, progress, completion."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from dense import console
from dense.cli import GROUPS, VERBS, WAYS_IN, discover_options, evaluate, main
from dense.cli.evaluate import classification, labelled
from dense.cli.parser import Parser
from dense.console import progress, voice
from dense.data.retrieval import LAYOUTS as RETRIEVAL_LAYOUTS
from dense.discover.attention import Foreground, Mode
from dense.discover.methods import FITTED_METHODS, METHODS
from dense.discover.refine import Refinement
from dense.discover.source import FeatureKind
from dense.discover.track import PROTOCOLS, DecisionSize, Shape, Tracking
from dense.evaluate import dense as dense_protocols
from dense.evaluate import retrieval
from dense.evaluate.classification.features import READOUTS
from dense.evaluate.classification.finetune import FineTuneRecipe
from dense.evaluate.classification.knn import NEIGHBOURS, TEMPERATURE
from dense.metrics import CROPS
from dense.model.inference import Network, slide
from dense.predict.predictor import torch_precision
from dense.suggest import UnknownOption
from dense.training.checkpoints import Checkpoints
from dense.training.cli import of_union
from tests.predict.models import model
from tests.pretrain.runs import command, run, write_config
from tests.runs import assert_same, call, environment

TINY = ["--set", "embed_dim=32", "--set", "depth=2", "--set", "num_heads=4"]


# ---- examples


def parsers() -> dict[str, Parser]:
    """The parser of each verb and measure."""
    found = {verb: import_module(module).parser() for verb, (module, _) in VERBS.items() if verb != "evaluate"}
    return found | {f"evaluate {name}": parser for name, parser in evaluate.parsers().items()}


PARSERS = parsers()


@pytest.mark.parametrize("verb", PARSERS)
def test_every_help_ends_with_examples(verb: str) -> None:
    """The examples of the verb and the options of every verb."""
    shown = call([*verb.split(), "--help"]).stdout
    assert PARSERS[verb].examples
    for line, words in PARSERS[verb].examples:
        assert f"  {line}\n" in shown
        assert words in shown
    assert "--debug" in shown
    assert "--quiet" in shown


def test_dense_alone_shows_three_ways_in_and_groups() -> None:
    """Every verb is in one group; the ways in name verbs."""
    shown = call([]).stdout
    assert sorted(verb for inside in GROUPS.values() for verb in inside) == sorted(VERBS)
    for verb, (_, line) in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(line)}$", shown, re.MULTILINE)
    assert [command.split()[1] for _, command in WAYS_IN] == ["look", "train", "pretrain"]
    assert all(f"  {command}\n" in shown for _, command in WAYS_IN)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "completion"])  # its output is a script
def test_verbs_name_the_next_command(verb: str) -> None:
    module = "pretrain.run" if verb == "pretrain" else VERBS[verb][0]
    assert "hint(" in Path(str(import_module(module).__file__)).read_text()


HERE = str(Path(__file__).parent)
WRONG_PATHS = [  # a path that does not exist, in every verb that reads one
    ["predict", "./no/model", HERE],
    ["predict", HERE, "no.png"],
    ["discover", HERE, "--backbone", "./no/backbone"],
    ["look", "no.jpg"],
    ["explore", "./no/images"],
    ["track", "no.mp4", "--mask", __file__, "--backbone", "dino_vits16"],
    ["features", HERE, "--backbone", "dino_vits16", "--weights", "no.pth", "--output", "x"],
    ["convert", "no.pth", "x"],
    ["export", "./no/model", "--output", "x.onnx", "--size", "8", "8"],
    ["curate", "no", "--backbone", "scenes_tiny"],
    ["evaluate", "knn", "--backbone", "scenes_tiny", "--train", HERE, "--val", "no"],
    ["evaluate", "depth", "./no/model", "--data", HERE],
    ["train", "--config", "depth/small_data", "--data.root", "no/images"],
    ["train", "--config", "depth/small_data", "--data.root", HERE, "--model.backbone.weights=no.pth"],
    ["pretrain", "--config", "pretrain/small_data", "--data.root", "no"],
]


def test_help_and_wrong_options_import_nothing_heavy() -> None:
    """Only the standard library and this project's light modules, so that they answer in a fraction of a second."""
    code = "import sys\nfrom dense import cli\n"
    code += "def main(argv):\n"
    code += "  try:\n    return cli.main(argv)\n"
    code += "  except SystemExit as end:\n    return end.code or 0\n"
    code += f"for verb in {[*PARSERS, 'evaluate']}:\n"
    code += "  for wrong, status in (('-h', 0), ('--no-such-option', 2)):\n"
    code += "    assert main([*verb.split(), wrong]) == status, (verb, wrong)\n"
    code += "assert main(['train', '--config', 'depth/no_such_recipe']) == 1\n"
    code += "assert not {'torch', 'numpy', 'jsonargparse', 'yaml', 'cv2'} & set(sys.modules)\n"
    code += f"for argv in {WRONG_PATHS}:\n"
    code += "    assert main(argv) == 1, argv\n"
    code += "assert not {'torch', 'numpy', 'jsonargparse', 'cv2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: no such ") == len(WRONG_PATHS)
    assert call(["evaluate", "dept", "--help"]).returncode == 2


def test_choices_of_parsers_are_those_of_the_code() -> None:
    """Parsers repeat the names instead of importing them."""
    assert set(labelled.PROTOCOLS) == set(dense_protocols.PROTOCOLS)
    assert set(labelled.CROPS) == set(CROPS)
    assert classification.READOUTS == READOUTS
    recipe = asdict(FineTuneRecipe())
    assert {name: recipe[name] for name in classification.FINETUNING} == classification.FINETUNING
    k = PARSERS["evaluate knn"].parse_args(["--backbone", "x", "--train", "a", "--val", "b"])
    assert (tuple(k.k), k.temperature) == (NEIGHBOURS, TEMPERATURE)
    assert (*METHODS, *FITTED_METHODS) == discover_options.METHODS
    assert set(discover_options.ATTENTION_MODES) == set(get_args(Mode))
    assert set(discover_options.FOREGROUNDS) == set(get_args(Foreground))
    assert set(discover_options.FEATURES) == set(get_args(FeatureKind))
    assert set(discover_options.SHAPES) == set(get_args(Shape))
    assert set(discover_options.DECISIONS) == set(get_args(DecisionSize))
    assert set(discover_options.PROTOCOLS) == set(PROTOCOLS)
    assert set(discover_options.REFINEMENTS) == set(get_args(Refinement))
    assert set(discover_options.SETTINGS_OF_TRACKING) == {field.name for field in fields(Tracking)}
    of_retrieval = import_module("dense.cli.evaluate.retrieval")
    for name in ("READOUTS", "VIEWS"):
        assert getattr(of_retrieval, name) == getattr(retrieval, name)
    assert of_retrieval.LAYOUTS == RETRIEVAL_LAYOUTS
    assert set(torch_precision) == {"fp32", "bf16", "fp16"}


def test_verbs_that_do_not_train_need_no_lightning(tmp_path: Path) -> None:
    """Lightning takes as long to import as everything else that a prediction needs; the front end of torch.compile
    alone takes as long as torch."""
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    model("depth", "labels").save_pretrained(tmp_path / "model")
    predict = ["predict", str(tmp_path / "model"), str(image), "--output", str(tmp_path / "predicted")]
    heavy = {
        "torch._dynamo", "torch._inductor", "lightning", "torchmetrics", "albumentations", "scipy", "sklearn", "pandas",
        "segmentation_models_pytorch", "transformers", "faiss", "onnx",
    }  # fmt: skip
    features = ["features", str(image), "--backbone", "dino_vits16", "--output", str(tmp_path / "features"), *TINY]
    code = f"import sys; from dense.cli import main; assert main({predict}) == 0\n"
    code += f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)\n"
    code += f"assert main({features}) == 0; import dense.predict\n"
    code += "import dense.evaluate.model, dense.discover, dense.published, dense.export, dense.curate\n"
    code += "assert 'lightning' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LINES = [line for parser in PARSERS.values() for line, _ in parser.examples]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("dense ")])
def test_examples_name_what_exists(line: str) -> None:
    """Recipes parse as they are; other options are among those that the help lists."""
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
    """An unforeseen exception is also reported on one line."""

    def wrong(argv: list[str]) -> int:
        raise KeyError("blocks.0.attn\nand more")

    monkeypatch.setattr("dense.cli.convert.main", wrong)
    assert main(["convert"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "KeyError" in message
    assert "--debug" in message
    for place in (["--debug", "convert"], ["convert", "x", "--debug"]):
        with pytest.raises(KeyError):
            main(place)


def test_an_optional_value_has_one_reason_for_its_error() -> None:
    """A reason of several lines stays complete; the message omits what null would require."""
    message = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - steps=-5: expected\n    at least 1\n"
        "  - Expected a <class 'NoneType'>\nGiven value type: <class 'int'>"
    )
    assert of_union(message) == "steps=-5: expected at least 1"
    assert of_union("steps=-5") == "steps=-5"


def test_wrong_usage_differs_from_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown keyword argument has status 2 and its message; any other TypeError has status 1 and a hint."""

    def raises(error: Exception) -> tuple[int, str]:
        def wrong(argv: list[str]) -> int:
            raise error

        monkeypatch.setattr("dense.cli.convert.main", wrong)
        return main(["convert"]), capsys.readouterr().err

    assert raises(UnknownOption("dpt takes no 'x'")) == (2, "dense convert: error: dpt takes no 'x'\n")
    status, message = raises(TypeError("unsupported operand"))
    assert status == 1
    assert "TypeError: unsupported operand (--debug" in message


@pytest.mark.parametrize("typed", ["--model.optim.lrr", "--model.init_args.optim.lrr", "yaml"])
def test_suggestions_are_typed_as_they_stand(typed: str, tmp_path: Path) -> None:
    """The whole key of an option of the chosen class, with dashes where it was not in a file."""
    extra = [typed, "1"]
    if typed == "yaml":
        (tmp_path / "more.yaml").write_text("model: {optim: {lrr: 1}}\n")
        extra = ["--config", str(tmp_path / "more.yaml")]
    done = call(["train", "--config", "segmentation/scenes_linear", *extra])
    dashes = "" if typed == "yaml" else "--"
    assert done.returncode == 2
    assert f"unknown option {dashes}model.optim.lrr. Did you mean {dashes}model.optim.lr," in done.stderr


@pytest.mark.parametrize(
    ("verb", "extra", "words"),
    [
        ("train", ["--model.optim.lr", "abc"], "--model.optim.lr: Expected float or 'auto', got abc"),
        ("train", ["yaml"], "model.optim.lr: Expected float or 'auto', got abc"),
        ("train", ["--data.augment.flip", "abc"], "--data.augment.flip: Expected float, got abc"),
        ("pretrain", ["--data.views.local_crops", "abc"], "--data.views.local_crops: Expected int, got abc"),
        ("pretrain", ["--data.views.local_cropz", "1"], "--data.views.local_cropz. Did you mean --data.views.local_c"),
    ],
)
def test_wrong_values_name_the_whole_key(verb: str, extra: list[str], words: str, tmp_path: Path) -> None:
    """Also where the value is of an inner parser, which knows only the end of its key."""
    if extra == ["yaml"]:
        (tmp_path / "more.yaml").write_text("model: {optim: {lr: abc}}\n")
        extra = ["--config", str(tmp_path / "more.yaml")]
    recipe = {"train": "segmentation/scenes_linear", "pretrain": "pretrain/scenes_tiny"}[verb]
    done = call([verb, "--config", recipe, *extra])
    assert done.returncode == 2
    assert f" {words}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """Without the name of Lightning's exception."""
    argv = ["train", "--config", "segmentation/scenes_linear", "--output", str(tmp_path / "run")]
    done = call([*argv, "--trainer.accelerator", "gpu"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--trainer.accelerator gpu: No supported gpu backend found; leave out" in done.stderr


def test_misspelt_common_options_are_named() -> None:
    """They get the same suggestions as options of a verb."""
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
    assert list(progress(range(3), "images")) == [0, 1, 2]
    with voice(quiet=True):
        assert list(progress(range(3), "images")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    with voice(quiet=False):
        assert list(progress(iter("ab"), "images", 2)) == ["a", "b"]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"images: 1 of 2, [\d.e+]+ per second, 0:00:00 left", err.splitlines()[0])
    assert "\x1b" not in err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with voice(quiet=False):
        list(progress(range(3), "images"))
    assert "3/3" in capsys.readouterr().err


def test_progress_counts_the_parts_of_an_item(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The windows of a large image stand on the line of the images, with the time left by the windows alone."""
    monkeypatch.setattr(console, "EVERY", 0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    clock = iter(range(0, 1000, 10))
    network: Network = lambda images: {"depth": images[:, :1]}  # noqa: E731
    image = torch.zeros(3, 20, 12)

    def windows() -> None:
        slide(network, image, 12, 4, lambda *_: None)

    windows()
    with voice(quiet=False):
        for _ in progress(range(1), "images"):
            windows()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", 0:")[0] for line in lines] == [
        "images: 0 of 1, windows 1 of 3", "images: 0 of 1, windows 2 of 3", "images: 0 of 1, windows 3 of 3",
        "images: 1 of 1, 0.00909 per second",
    ]  # fmt: skip
    assert "1 of 3, 0:00" in lines[0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with voice(quiet=False):
        for _ in progress(range(1), "images"):
            windows()
    assert "1/1" in capsys.readouterr().err


# ---- signals

WORKS = """
import multiprocessing, os, signal, sys, time
from dense import cli
def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN), signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
def verb(argv):
    worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(600)
import dense.cli.convert
dense.cli.convert.main = verb
sys.argv = ["dense", "convert"]
cli.process()
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_ends_any_verb_with_a_line_and_its_workers(number: signal.Signals, name: str) -> None:
    """Workers too that ignore it; no traceback, and the status that shells expect."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    line = f"dense convert: stopped by {name}; no file is incomplete, and the same command starts again"
    assert errors.strip() == line
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_handlers_are_those_from_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A verb called in a process that goes on leaves no handler; what it kept is its own message."""

    def stop(argv: list[str]) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("dense.cli.convert.main", stop)
    assert main(["convert"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---- folders of results


def test_a_used_folder_keeps_its_settings(tmp_path: Path) -> None:
    """Features, objects and tracks of other settings are refused; --overwrite removes the former files alone."""
    image = tmp_path / "in/a.png"
    image.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image)
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "mask.png")
    (image.parent / "b.png").write_bytes(image.read_bytes())
    verbs = {
        "features": ["features", str(image), "--format", "npz"],
        "discover": ["discover", str(image), "--size", "32"],
        "track": ["track", str(image.parent), "--mask", str(tmp_path / "mask.png"), "--no-video"],
    }
    for verb, argv in verbs.items():
        out = tmp_path / verb
        command = [*argv, "--backbone", "dino_vits16", *TINY, "--output", str(out)]
        for _ in range(2):
            assert call(command).returncode == 0
        done = call([*command, "--seed", "1"])
        assert done.returncode == 1
        assert "other settings (seed: 1 now, 0 then); choose another --output, or let --overwrite" in done.stderr
        (out / "mine.txt").touch()
        done = call([*command, "--seed", "1", "--overwrite"])
        assert done.returncode == 0, done.stderr
        assert (out / "mine.txt").is_file()
        assert not list(out.rglob("*.partial"))


def test_a_full_disk_leaves_no_broken_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file; nothing with its name is there."""

    def full(file: Path, **arrays: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    done = call(["features", str(tmp_path / "a.png"), "--backbone", "dino_vits16", "--output", str(out), *TINY])
    assert done.returncode == 1
    assert f"cannot write {out / 'a.npz'}: the disk is full, with" in done.stderr
    assert not out.exists()


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


CASES = [
    ("dense tr", {"train", "track"}),
    ("dense evaluate vi", {"video"}),
    ("dense train --data.ro", {"--data.root"}),
    ("dense train --config depth/sc", {"depth/scenes_dpt", "depth/scenes_linear", "depth/scenes_relative"}),
    ("dense evaluate knn --rea", {"--readout"}),
    ("dense evaluate knn --readout class", {"class", "class_average"}),
    ("dense convert a b --branch t", {"teacher"}),
    ("dense completion b", {"bash"}),
]


@pytest.mark.parametrize(("typed", "expected"), CASES)
def test_completion_answers(typed: str, expected: set[str], tmp_path: Path) -> None:
    """As a shell asks, in a process of its own that imports nothing heavy."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "_ARGCOMPLETE_IFS": "\n"}
    code = "import sys; import dense.cli.completion as c; from dense.cli import process\n"
    code += "import os; leave = os._exit\n"
    code += "os._exit = lambda status: leave(9 if 'torch' in sys.modules else status)\nprocess()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in (tmp_path / "out").read_text().split("\n")} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_verb_prints_a_script(shell: str) -> None:
    """A script that asks `dense` itself."""
    assert "_ARGCOMPLETE" in call(["completion", shell]).stdout
    assert "Did you mean fish" in call(["completion", "fihs"]).stderr


def test_bash_reads_the_script() -> None:
    """The script runs in bash and registers the command."""
    script = call(["completion", "bash"]).stdout + "\ncomplete -p dense"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "dense" in done.stdout
    assert done.stderr == ""


def test_output_that_nobody_reads_any_more_ends_quietly() -> None:
    """As in `dense --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dense", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
