"""Links lead somewhere, commands name what exists, and pages keep to the limits of their form."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dense.cli import VERBS
from dense.published import FAMILIES
from dense.recipes import find_config
from tests.docs.pages import DOCS, PAGES, PROSE, ROOT, blocks, commands, page, without_code
from tests.runs import call

LINES = [pytest.param(line, id=f"{path.stem}: {line}") for path in PAGES for line in commands(path)]
WORDS = re.compile(r"\b(?:pictures?|films?|answers?|damaged?|pile)\b", re.IGNORECASE)
METHODS = [path for path in PAGES if path.parent.name == "methods"]
NOT_WORDS = re.compile(r"`[^`]*`|\]\([^)]*\)|https?://\S+")  # code, targets of links


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    titles = [line.lstrip("#").strip().lower() for line in without_code(path) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    """Pages, headings, images and folders."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        if target.startswith(("http", "mailto")):
            continue
        found = path.parent / target if target else path
        assert found.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{path.name}: {target} has no heading {anchor}"


def test_every_page_is_linked_from_the_first() -> None:
    start = page("start").read_text()
    pages = [str(path.relative_to(DOCS)) for path in PAGES[1:]]
    assert [name for name in pages if name != "start.md" and f"({name}" not in start] == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_lines_end_at_120_columns(path: Path) -> None:
    """Outside code, tables and links."""
    lines = [line for line in without_code(path) if not line.startswith("|") and "](" not in line]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_lines_end_at_120_columns(path: Path) -> None:
    assert [line for code in blocks(path, "python") for line in code.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("path", PROSE[:-1], ids=lambda path: path.stem)  # the change log names old values
def test_the_words_of_the_field(path: Path) -> None:
    text = "\n".join(NOT_WORDS.sub("", line) for line in without_code(path))
    assert WORDS.findall(text) == []


def test_readme_is_short() -> None:
    lines = page("README").read_text().splitlines()
    assert len(lines) <= 150
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]
    assert [cell for cell in cells if len(cell.split()) > 12] == []


@pytest.mark.parametrize("line", LINES)
def test_commands_name_what_exists(line: str) -> None:
    """Verbs, options, and the keys of recipes."""
    verb, *rest = shlex.split(re.split(r" (?:>|\|) ", line)[0])[1:]
    assert verb in VERBS
    if verb in ("pretrain", "train"):
        assert find_config(rest[rest.index("--config") + 1]).is_file()
        done = call([verb, *rest, "--print_config"])
        assert done.returncode == 0, done.stderr
        return
    verb = f"{verb} {rest[0]}" if verb == "evaluate" else verb
    known = re.findall(r"--[\w-]+", call([*verb.split(), "--help"]).stdout.partition("examples:")[0])
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= set(known)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_recipes_exist(path: Path) -> None:
    """In commands, in prose and in Python calls."""
    text = path.read_text()
    named = re.findall(r"--config (\S+?)[`.,)]*(?:\s|$)", text)
    named += re.findall(r"dense\.(?:train|pretrain)\(\s*\"([^\"]+)\"", text)
    for name in named:
        if name not in ("NAME", "..."):
            assert find_config(name).is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_parses(path: Path) -> None:
    for code in blocks(path, "python"):
        ast.parse(code)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_named_files_exist(path: Path) -> None:
    """Source files and benchmarks that a page names."""
    code = r"(?:dense|heads|pretrain|tests|benchmarks|configs)/[\w/]+(?:\.py|/)"
    missing = [name for name in re.findall(code, path.read_text()) if not (ROOT / name).exists() and "NAME" not in name]
    assert missing == []


def test_every_published_family_has_a_row_with_its_options() -> None:
    rows = {found[1]: line for line in without_code(page("published")) if (found := re.match(r"\| `(\w+)`", line))}
    assert set(rows) == set(FAMILIES)
    for name, row in rows.items():
        values = {"relative", "metric", "nyu", "kitti", "cat"}
        named = set(re.findall(r"`(\w+)`", row.split("|")[3])) - values
        assert named <= {*FAMILIES[name].options, "family"}, name


def test_results_have_the_sections_that_benchmarks_write() -> None:
    text = (DOCS / "results.md").read_text()
    for name in ("scene_heads", "scene_objectives", "restoration_table"):
        assert (ROOT / f"benchmarks/{name}.py").is_file()
        assert text.index(f"<!-- {name} -->") < text.index(f"<!-- end of {name} -->")


def test_methods_name_what_the_code_has() -> None:
    """Classes, functions and options of the tables."""
    files = [file for folder in ("dense", "heads", "pretrain") for file in (ROOT / folder).rglob("*.py")]
    known = set(re.findall(r"\w+", " ".join(file.read_text() for file in files)))
    tables = [line for path in METHODS for line in without_code(path) if line.startswith("|")]
    assert {name for line in tables for name in re.findall(r"`([A-Za-z_]+)`", line)} - known == set()


def keys(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Dotted names of the options in a recipe, without `init_args`."""
    for key, value in tree.items():
        inside = before if key == "init_args" else f"{before}{key}."
        yield inside.rstrip(".")
        if isinstance(value, dict):
            yield from keys(value, inside)


def test_methods_name_options_recipes_and_files_that_exist() -> None:
    known = set[str]()
    for recipe in ("pretrain/dinov3_vit7b16_gram", "restoration/dino_ir", "depth/dpt_dinov2"):
        verb = "pretrain" if recipe.startswith("pretrain") else "train"
        done = call([verb, "--config", recipe, "--data.root", "IMAGES", "--print_config"])
        known |= set(keys(yaml.safe_load(done.stdout)))
    text = "\n".join(line for path in METHODS for line in without_code(path))
    options = re.findall(r"`(?:--)?((?:model|data|knn|trainer)(?:\.\w+)+)", text)
    assert {option.replace(".init_args", "") for option in options} - known == set()
    folders = {path.parent.name for path in (ROOT / "configs").rglob("*.yaml")}
    for name in re.findall(rf"`((?:{'|'.join(folders)})/\w+)`", text):
        assert find_config(name).is_file()
    files = {file.name for folder in ("dense", "heads", "pretrain") for file in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", text)) - files == set()


def test_papers_have_a_section_for_every_script() -> None:
    text = "".join(path.read_text() for path in METHODS)
    for script in (ROOT / "benchmarks/papers").glob("[a-z]*.py"):
        name = f"papers_{script.stem}"
        assert text.index(f"<!-- {name} -->") < text.index(f"<!-- end of {name} -->")
