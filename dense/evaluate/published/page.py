"""The tables of docs/published_numbers.md."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

from dense.evaluate.published.needs import DATA
from dense.evaluate.published.numbers import HEADS, NOT_HERE, PRETRAINED
from dense.evaluate.published.rows import Row, rows


def markdown(reproduced: Path) -> str:
    """Return tables of rows that share a protocol, with the commands of the first row of each.

    reproduced: folder of files that `dense reproduce` wrote; a row without one says what it needs.
    """
    facts = [json.loads(path.read_text()) for path in sorted(reproduced.rglob("*.json"))]
    here = {fact["row"]: fact for fact in facts}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows().values():
        groups.setdefault((row.measure, row.data, row.source, row.protocol), []).append(row)
    parts: list[str] = []
    for (measure, data, source, protocol), inside in groups.items():
        commands = inside[0].filled(data="DATA", weights="FILE", output="RUN")
        unit = "percent" if inside[0].factor == 100 else "metres"
        words = fill(f"{DATA[data].title}, in {unit}: {protocol}.", 120)
        parts += [
            f"### {measure}/{data}, {source}", "", words, "", "```text",
            *(_wrapped(["dense", *command]) for command in commands), "```", "",
            "| backbone | published | measured here |", "|---|---|---|",
            *(f"| {row.backbone} | {row.published} | {_measured(row, here)} |" for row in inside), "",
        ]  # fmt: skip
    parts += [
        "### Pretraining by a recipe", "",
        "k-NN and linear classification of ImageNet-1k, in percent, by these commands, the first on every node:", "",
        "```text",
        "dense pretrain --config NAME --data.root IMAGES --trainer.devices 8 --trainer.num_nodes NODES "
        "--output RUN",
        "dense evaluate knn --backbone RUN/backbone --train IMAGENET/train --val IMAGENET/val",
        "dense evaluate linear --backbone RUN/backbone --train IMAGENET/train --val IMAGENET/val OPTIONS", "```", "",
        "| NAME | nodes | images | k-NN | linear | options |", "|---|---|---|---|---|---|",
        *(f"| pretrain/{' | '.join(map(str, line[:-1]))} | `{line[-1]}` |" for line in PRETRAINED), "",
        "### Heads that were published", "",
        "A file is converted, then measured:", "",
        "```text", "dense convert FILE MODEL OPTIONS", "dense evaluate MEASURE", "```", "",
        "| head | published | options | measure |", "|---|---|---|---|",
        *(f"| {head} | {values} | `{options}` | `{measure}` |" for head, values, options, measure in HEADS), "",
    ]  # fmt: skip
    parts += ["### Not reproducible here", "", "| number | published | why |", "|---|---|---|"]
    return "\n".join(parts + [f"| {' | '.join(line)} |" for line in NOT_HERE])


def _measured(row: Row, here: dict[str, dict[str, Any]]) -> str:
    if row.name not in here:
        return f"not run: needs {DATA[row.data].title}"
    fact = here[row.name]
    changed = f"; changed: {', '.join(fact['changed'])}" if fact.get("changed") else ""
    judged = fact.get("other images") or f"{'within' if fact['within'] else 'outside'} {row.tolerance:g}"
    return f"{row.like_published(fact['here'])}, {judged}{changed}"


def _wrapped(words: list[str], width: int = 118) -> str:
    """Return a command on lines that end in a backslash."""
    lines, line = [], ""
    for word in (f'"{w}"' if " " in w else w for w in words):
        if line and len(line) + len(word) + 3 > width:
            lines.append(f"{line} \\")
            line = " "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])
