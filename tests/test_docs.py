"""Every page of docs/: its links lead somewhere, its commands name what exists, and those of the first page run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dense
from dense.cli import VERBS
from dense.data.scenes import render
from dense.recipes import find_config
from tests.runs import call

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:srun |\$ )?(dense [a-z].*?)(?:  #.*)?$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language; without one, commands."""
    return [text for kind, text in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL) if kind == language]


def commands(page: Path) -> list[str]:
    """Lines that start with `dense`, those that continue joined."""
    return [line for text in blocks(page, "") for line in COMMAND.findall(text.replace("\\\n", " "))]


LINES = [pytest.param(line, id=f"{page.stem}: {line}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Pages, images and folders."""
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_first() -> None:
    """Or nobody finds it."""
    start = (ROOT / "docs/start.md").read_text()
    missing = [page.name for page in PAGES[1:] if page.name != "start.md" and f"({page.name})" not in start]
    assert missing == []


@pytest.mark.parametrize("line", LINES)
def test_commands_name_what_exists(line: str) -> None:
    """Verbs, options, and the keys of recipes."""
    verb, *rest = shlex.split(re.split(r" (?:>|\|) ", line)[0])[1:]
    assert verb in VERBS
    if verb in ("pretrain", "train"):
        assert (
            find_config(rest[rest.index("--config") + 1] if "--config" in rest else "NAME").is_file() or "NAME" in rest
        )
        done = call([verb, *rest, *([] if "--print_config" in rest else ["--print_config"])])
        assert done.returncode == 0, done.stderr
        return
    verb = f"{verb} {rest[0]}" if verb == "evaluate" else verb
    known = re.findall(r"--[\w-]+", call([*verb.split(), "--help"]).stdout.partition("examples:")[0])
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= set(known)


@pytest.mark.slow
def test_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no weights of others, shortened, in order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURES").mkdir()
    Image.fromarray(render(0, 1, (48, 64)).image).save("IMAGES/a.png")
    ran = 0
    for line in commands(ROOT / "docs/start.md"):
        verb, *rest = shlex.split(line)[1:]
        if "NAME" in rest or verb in ("completion", "VERB"):
            continue
        extra = {
            "train": ["--model.steps", "2", "--data.scenes=[8,4]", "--data.scene_size=32"],
            "evaluate": ["--scenes", "3", "--size", "32"],
            "demo": ["--size", "48"],
        }.get(verb, [])
        done = call([verb, *rest, *extra])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran == 4


@pytest.mark.slow
def test_python_of_the_page_of_weights_runs() -> None:
    """As it stands."""
    for code in blocks(ROOT / "docs/weights.md", "python"):
        exec(code, {})


@pytest.mark.slow
def test_python_of_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The shapes in its comments."""
    (code,) = blocks(ROOT / "README.md", "python")
    exec(code, {})
    said = re.findall(r"print.*# .*?(\([\d, ]+\))", code)
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == len(printed) == 3
    assert all(shape in line for shape, line in zip(said, printed, strict=True))


@pytest.mark.slow
def test_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, discovery, evaluation and export: their commands with files and models that stand in for yours, shortened."""
    monkeypatch.chdir(tmp_path)
    Path("PICTURES").mkdir()
    for number in range(2):
        Image.fromarray(render(0, number, (48, 64)).image).save(f"IMAGES/{number}.png")
    backbone = dense.load_backbone("dino_vits16")
    backbone.export_official("FILE.pth")
    dense.load_backbone("scenes_tiny").save_pretrained("runs/mine/backbone")
    train = ["--config", "depth/scenes_linear", "--model.steps", "2", "--data.scenes=[8,4]", "--data.scene_size=32"]
    assert call(["train", *train, "--output", "RUN"]).returncode == 0
    yours = {
        "NAME": "dino_vits16",
        "FILE": "FILE.pth",
        "VOCdevkit/VOC2012": None,
        "NYU": None,
        "ADE": None,
        "...": None,
    }
    short = {
        "discover": ["--size", "64"],
        "evaluate discovery": ["--scenes", "2", "--side", "32", "--steps", "2"],
        "export": ["--size", "32", "48"],
    }
    ran = []
    for page in ("weights", "discovery", "evaluation", "export"):
        for line in commands(ROOT / f"docs/{page}.md"):
            words = [yours.get(word, word) for word in shlex.split(line)[1:]]
            if (
                None in words or words[0] == "track" or words[:2] == ["evaluate", "video"]
            ):  # those have a test of their own
                continue
            verb = " ".join(words[:2]) if words[0] == "evaluate" else words[0]
            done = call([*words, *short.get(verb, [])])
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran.append(verb)
    assert len(ran) == 9
    for code in blocks(ROOT / "docs/export.md", "python"):
        exec(code, {"picture": np.zeros((1, 3, 32, 48), np.uint8)})


TINY = ["--trainer.accelerator", "cpu", "--data.workers", "0", "--trainer.precision", "32-true"]
RUN = [*TINY, "--model.steps", "2", "--data.batch_size", "4", "--knn.train", "null", "--knn.val", "null"]
RUN += [
    "--model.head.out_dim",
    "32",
    "--model.head.hidden_dim",
    "32",
    "--trainer.devices",
    "1",
    "--trainer.num_nodes",
    "1",
]


def small(patch: int) -> list[str]:
    """Options that make a student tiny, for crops of the recipe."""
    return [
        "--model.backbone.name",
        "vit_tiny_patch16_224",
        "--model.backbone.arguments",
        f"{{patch_size: {patch}, depth: 1}}",
    ]


@pytest.mark.slow
def test_pretraining_as_the_pages_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining, scale and results: every command, stages in their order, shortened to two steps; and the Python."""
    monkeypatch.chdir(tmp_path)
    for place in ("PICTURES", "MINE/images", "MINE/depth"):
        Path(place).mkdir(parents=True)
    for number in range(8):
        scene = render(0, number, (48, 64))
        for place in ("PICTURES", "MINE/images"):
            Image.fromarray(scene.image).save(f"{place}/{number}.png")
        Image.fromarray((scene.depth.clip(0, 60) * 1000).astype(np.uint16)).save(f"MINE/depth/{number}.png")
    Path("MINE/depth.yaml").write_text("{kind: metric, scale: 1000}")
    measure = {
        "probe": ["--train-scenes", "20", "--val-scenes", "10"],
        "discovery": ["--scenes", "2", "--side", "32", "--steps", "2"],
        "video": ["--clips", "1", "--frames", "3", "--side", "32"],
    }
    ran: list[str] = []
    for page in ("pretraining", "scale", "results"):
        for line in commands(ROOT / f"docs/{page}.md"):
            verb, *rest = shlex.split(line)[1:]
            if "NAME" in rest or line in ran or "'/data/shards/{0000..0511}.tar'" in line:
                continue
            if verb == "pretrain":
                student = small(14 if "vitg14" in line else 16) if "PICTURES" in rest else ["--data.scenes", "16"]
                extra = [*RUN, *student]
            elif verb == "train":
                extra = [
                    *TINY,
                    "--model.steps",
                    "1",
                    "--data.batch_size",
                    "2",
                    "--trainer.devices",
                    "1",
                    "--data.crop_size",
                    "28",
                ]
                extra += ["--model.backbone.weights", "null"]
            else:
                extra = measure[rest[0]]
            done = call([verb, *rest, *extra])
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran.append(line)
    assert len(ran) == 16
    for code in blocks(ROOT / "docs/pretraining.md", "python"):
        shorter = code.replace("epochs=100", "steps=1").replace("batch_size=64", "batch_size=4").replace("4096", "32")
        shorter = shorter.replace("runs/mine", "runs/python")
        assert shorter.count("=1)") == 1
        exec(shorter, {})
