"""Where the shipped YAML experiments are: inside the wheel, or at the top of a checkout."""

from __future__ import annotations

import re
from pathlib import Path

from dense.suggest import did_you_mean


def config_folder() -> Path:
    """Return the folder of the shipped configs."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str) -> Path:
    """Return a file, or a shipped config by its path below configs/, with or without "configs/" and ".yaml"."""
    given = Path(name)
    if given.is_file():
        return given
    relative = name.removeprefix("configs/").removesuffix(".yaml")
    shipped = config_folder() / f"{relative}.yaml"
    if shipped.is_file():
        return shipped
    known = [str(p.relative_to(config_folder()).with_suffix("")) for p in config_folder().rglob("*.yaml")]
    raise FileNotFoundError(f"no config {name}.{did_you_mean(relative, known)}")


def title(config: Path) -> str:
    """Return the first clause of a config's header, without parentheses."""
    lines = config.read_text().splitlines()
    header = " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    return re.split(r"[.:;](?: |$)", re.sub(r" \([^)]*\)", "", header))[0]
