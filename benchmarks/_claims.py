"""Claims as plain data: what a benchmark measured, beside its peer and its target."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

WHERE = "DENSE_CLAIMS"  # the file in which `make bench` collects claims, one per line


@dataclass(frozen=True)
class Claim:
    """A row of the table; `met` is None without a target."""

    claim: str
    peer: str
    ours: str
    theirs: str
    ratio: float | None
    target: str
    met: bool | None


def record(
    claim: str,
    *,
    ours: str,
    peer: str = "",
    theirs: str = "",
    ratio: float | None = None,
    value: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Claim:
    """Record a claim. The bounds `least` and `most` apply to `value`, or to the ratio if there is no value.

    ours, theirs: measurements with units. ratio: how many times better ours is.
    """
    judged = ratio if value is None else value
    if judged is None and (least is not None or most is not None):
        raise ValueError(f"{claim}: a target needs a ratio or a value")
    target = ", ".join(f"{word} {n:g}" for word, n in (("at least", least), ("at most", most)) if n is not None)
    met = None
    if judged is not None and target:
        met = (least is None or judged >= least) and (most is None or judged <= most)
    noted = Claim(claim, peer, ours, theirs, ratio, target, met)
    if os.environ.get(WHERE):
        with Path(os.environ[WHERE]).open("a") as file:
            file.write(json.dumps(asdict(noted)) + "\n")
    return noted


def versioned(package: str) -> str:
    """'timm 1.0.31'."""
    return f"{package} {version(package)}"
