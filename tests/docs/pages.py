"""The pages of the documentation, and what stands in their code blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("methods/*.md"))]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
COMMAND = re.compile(r"^(?:srun |\$ )?(dense [a-z].*?)(?:  #.*)?$", re.MULTILINE)


def page(name: str) -> Path:
    """`README` or a page of docs/ by its name; of a page in docs/methods with the same name, that of docs/."""
    return next(path for path in PAGES if path.stem == name)


def blocks(path: Path, language: str) -> list[str]:
    """Code blocks of a language; "" for those without one."""
    return [code for found, code in re.findall(r"```(\w*)\n(.*?)```", path.read_text(), re.DOTALL) if found == language]


def commands(path: Path) -> list[str]:
    """Lines that start with `dense`, with continued lines joined."""
    shell = [*blocks(path, ""), *blocks(path, "bash")]
    return [line for text in shell for line in COMMAND.findall(text.replace("\\\n", " "))]


def without_code(path: Path) -> list[str]:
    """Lines outside code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines()
