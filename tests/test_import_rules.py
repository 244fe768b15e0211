"""One total order of packages: a module imports its own package or earlier ones, and no package has a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "dense._moved",
    "dense._version",
    "dense.suggest",
    "dense.ranks",
    "dense.console",
    "dense.files",
    "dense.items",
    "dense.recipes",
    "heads",
    "dense.losses",
    "dense.metrics",
    "dense.data",
    "dense.backbone",
    "dense.training",
    "dense.model",
    "dense.published",
    "dense.media",
    "dense.discover",
    "dense.memory",
    "dense.tasks",
    "dense.evaluate",
    "dense.predict",
    "dense.explore",
    "dense.export",
    "dense.curate",
    "pretrain",
    "dense.cli",
    "dense.demo",
    "dense",
    "dense.__main__",
]
HEADS_MAY = {"torch": "heads", "segmentation_models_pytorch": "heads.pyramid", "scipy": "heads.insid3"}


def modules() -> dict[str, Path]:
    """Every source file by its module name."""
    paths = [path for package in ("heads", "dense", "pretrain") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


MODULES = modules()


def package(module: str) -> str:
    """The entry of ORDER that holds a module; a module that none holds fails."""
    return max((p for p in ORDER[:-2] if f"{module}.".startswith(f"{p}.")), key=len, default="") or {
        m: m for m in ORDER[-2:]
    }.get(module, f"{module} has no place in ORDER")


def imported(source: str) -> Iterator[str]:
    """Modules that a file imports, inside functions too; imports for type checking alone are left out."""
    tree = ast.parse(source)
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(inner) for guard in guards for inner in ast.walk(guard)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in skipped:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            assert node.level == 0 and node.module, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def later(name: str, source: str) -> list[str]:
    """What a module imports although its package comes first, and what a decoder imports besides torch."""
    wrong = []
    for target in imported(source):
        if target.split(".")[0] not in ("heads", "dense", "pretrain"):
            top = target.split(".")[0]
            if (
                name.startswith("heads")
                and top not in sys.stdlib_module_names
                and not name.startswith(HEADS_MAY.get(top, "nothing"))
            ):
                wrong.append(f"{name} imports {target}; heads import torch alone")
        elif package(target) not in ORDER or ORDER.index(package(target)) > ORDER.index(package(name)):
            wrong.append(f"{name} imports {target}, which comes later")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_order(name: str) -> None:
    """Functions' own imports count as well."""
    assert later(name, MODULES[name].read_text()) == []


def test_no_verb_imports_another() -> None:
    """Verbs share the files of dense.cli that are no verbs."""
    from dense.cli import VERBS

    verbs = {module for module, _ in VERBS.values()}
    found = [(v, t) for v in verbs if v in MODULES for t in imported(MODULES[v].read_text()) if t in verbs - {v}]
    assert found == []


def parents(name: str) -> list[str]:
    """The packages that a module lies in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_no_circles() -> None:
    """Inside the packages and across them, whichever module is imported first: a package is imported before its own."""
    graph = {}
    for name, path in MODULES.items():
        targets = {t for t in imported(path.read_text()) if t in MODULES}
        packages = {p for t in targets for p in parents(t)} - set(parents(name))
        graph[name] = (targets | packages) - {name}
    circle = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("heads.dpt", "from dense.backbone import load_backbone"),
        ("heads.dpt", "import timm"),
        ("heads.dpt", "import segmentation_models_pytorch"),
        ("dense.data.image", "from dense.backbone.spec import BackboneSpec"),
        ("dense.backbone.vit", "def f():\n    from dense.tasks import base"),
        ("dense.evaluate.protocol", "from pretrain.views import MultiCrop"),
        ("pretrain.module", "from dense.cli import main"),
        ("dense.tasks.base", "import dense"),
        ("dense.tasks.base", "import dense.nowhere"),
    ],
)
def test_the_rule_can_fail(name: str, line: str) -> None:
    """Each kind of forbidden import is seen."""
    assert later(name, line)
