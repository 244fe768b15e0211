"""Who may import whom: read from the code's own imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# room -> floor; a module may import from lower floors, and on floor 2 only from its own room
FLOORS = {
    "dense._version": 0, "dense.suggest": 0, "dense.arguments": 0, "dense.recipes": 0, "dense": 0,
    "dense.console": 0, "dense.examples": 0,
    "heads": 1,
    "dense.backbone": 2, "dense.data": 2, "dense.losses": 2, "dense.metrics": 2, "dense.training": 2,
    "dense.evaluate": 3, "dense.discover": 3, "dense.tasks": 3, "dense.published": 3,
    "pretrain": 4, "dense.predict": 4, "dense.export": 4, "dense.visual": 4, "dense.curate": 4,
    "dense.features": 4, "dense.convert": 4, "dense.train": 4, "dense.discovering": 4, "dense.tracking": 4,
    "dense.cli": 5, "dense.demo": 5, "dense.__main__": 5, "dense.completion": 5, "dense.helps": 5,
}  # fmt: skip


def room(module: str) -> str:
    """The longest known room that holds a module."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS:
            return ".".join(parts[:n])
    raise AssertionError(f"{module} belongs to no room; name it in FLOORS")


def files() -> Iterator[tuple[Path, str]]:
    """Every source file with its module name."""
    for package in ("heads", "dense", "pretrain"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield path, name.removesuffix(".__init__")


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules imported anywhere in a file, but for type checking alone."""
    skipped = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(name: str, tree: ast.Module) -> list[str]:
    """Imports of a module that its floor does not allow."""
    wrong, own = [], room(name)
    allowed = {"torch", "segmentation_models_pytorch"} if name == "heads.pyramid" else {"torch"}
    for target in imports(tree):
        top = target.split(".")[0]
        if top in ("heads", "dense", "pretrain"):
            if target.split(".")[-1][:1].isupper() or (
                (ROOT / Path(*target.split("."))).with_suffix(".py").exists() is False
                and not (ROOT / Path(*target.split("."))).is_dir()
            ):
                continue  # a name inside a module, which is yielded by itself
            other = room(target)
            if other == own or (other == "dense" and target != "dense"):
                continue
            if FLOORS[other] > FLOORS[own] or (FLOORS[other] == FLOORS[own] == 2):
                wrong.append(f"{name} (floor {FLOORS[own]}) imports {target} (floor {FLOORS[other]})")
        elif own == "heads" and top not in {*sys.stdlib_module_names, *allowed}:
            wrong.append(f"{name} imports {target}; heads import torch alone")
    return wrong


@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=n) for p, n in files()])
def test_imports_go_down(path: Path, name: str) -> None:
    """Rooms import lower rooms only."""
    assert violations(name, ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("heads.dpt", "from dense.backbone import load_backbone"),
        ("heads.dpt", "import timm"),
        ("dense.data.images", "from dense.backbone.spec import BackboneSpec"),
        ("dense.evaluate.knn", "from pretrain.views import MultiCrop"),
        ("pretrain.module", "from dense.cli import main"),
    ],
)
def test_the_rule_can_fail(name: str, line: str) -> None:
    """Each kind of forbidden import is seen."""
    module = line.split()[1]
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    if module.split(".")[0] in ("dense", "pretrain") and not path.exists() and not path.with_suffix("").is_dir():
        pytest.skip(f"{module} does not exist yet")
    assert violations(name, ast.parse(line))


def test_everything_imports_without_the_network() -> None:
    """No module touches the network, in a process of its own with sockets blocked."""
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/import_everything.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "imported without the network" in done.stdout
