"""A page for the eyes: copies beside what stays, the most doubtful first, and what was retrieved for which picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dense.curate.decisions import FATES, Curation, alike
from dense.curate.embeddings import Embedded
from dense.curate.filters import Preparation
from dense.curate.pool import Pool
from dense.media.draw import Picture, contain

PAIRS, ROWS, ACROSS, SIDE = 60, 20, 8, 128
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2rem auto;padding:0 1rem;color:#222}"
    ".pairs{display:flex;flex-wrap:wrap;gap:1.2rem}.row{display:flex;gap:.4rem;margin:0 0 .8rem}"
    "figure{margin:0;width:128px}img{display:block}figcaption{font-size:.72rem;color:#666;overflow-wrap:anywhere}"
    "td,th{text-align:left;padding:.1rem 1.5rem .1rem 0}"
)
Row = Sequence[tuple[Picture, str]]


def write_sheet(
    done: Curation, prepare: Preparation, like: Pool | None, held_out: Pool | None, tested: Embedded | None,
    report: Mapping[str, Any], path: Path,
) -> None:  # fmt: skip
    """One HTML file that needs no network. Pictures that filters dropped are not shown."""
    sections = [("Counts", table(report["counts"]))]
    for fate, title, names in (
        ("held out", "Held-out pictures in the pool", held_out),
        ("duplicate", "Duplicates", done.pool),
    ):
        pairs = doubtful(done, tested, FATES.index(fate))
        if pairs and names is not None:
            rows = [pair(done, prepare, names, *one, fate) for one in pairs]
            words = f"{len(rows)} of {report['counts'][fate]}, the least alike first; dropped on the left"
            sections.append((title, f"<p>{words}</p><div class='pairs'>{''.join(map(figures, rows))}</div>"))
    if like is not None:
        rows = [row for query in asked(done) if (row := retrieved(done, prepare, like, query))]
        words = "a curated picture on the left, then some of those that it brought"
        sections.append(("Retrieved", f"<p>{words}</p>{''.join(map(figures, rows))}"))
    body = "".join(f"<h2>{title}</h2>{text}" for title, text in sections)
    head = f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Curation</title><style>{STYLE}</style></head>"
    path.write_text(f"{head}<body><h1>Curation</h1>{body}</body></html>\n", errors="replace")


def doubtful(done: Curation, tested: Embedded | None, fate: int) -> list[tuple[int, float, int]]:
    """Pairs that differ most among those of one fate: the index of the one that was dropped, cosine and bits."""
    worst: list[tuple[int, float, int]] = []
    dropped = np.flatnonzero(done.fates == fate)
    for start in range(0, len(dropped), 8192):
        worst += alike(done, tested, dropped[start : start + 8192])
        worst = sorted(worst, key=lambda one: (one[1], one[0]))[:PAIRS]
    return worst


def pair(done: Curation, prepare: Preparation, names: Pool, index: int, cosine: float, bits: int, fate: str) -> Row:
    """The picture that was dropped, and the one that it shows."""
    other = int(done.of[index])
    shown = Preparation() if fate == "held out" else prepare
    words = f"{Path(names.name(other)).name}: cosine {cosine:.3f}, {bits} bits"
    return [*cell(done.pool, prepare, index), *cell(names, shown, other, words)]


def asked(done: Curation) -> list[int]:
    """Some curated pictures, evenly chosen among those that brought something."""
    queries = np.unique(done.retrieved.queries)
    return queries[np.linspace(0, len(queries) - 1, min(ROWS, len(queries))).round().astype(int)].tolist()


def retrieved(done: Curation, prepare: Preparation, like: Pool, query: int) -> Row:
    """A curated picture and what it brought."""
    places = done.retrieved.places[done.retrieved.queries == query]
    brought = [
        one
        for index in places[done.fates[places] < 0][: ACROSS - 1].tolist()
        for one in cell(done.pool, prepare, index)
    ]
    return [*cell(like, prepare, query), *brought] if brought else []


def cell(pool: Pool, prepare: Preparation, index: int, words: str = "") -> Row:
    """A picture, small, with its name; none if it can no longer be read."""
    found = prepare(pool, index).image
    return [] if found is None else [(contain(found, SIDE), words or Path(pool.name(index)).name)]


def figures(row: Row) -> str:
    """A row of pictures."""
    cells = "".join(
        f"<figure><img src='{inline(picture)}' width='{SIDE}' height='{SIDE}' alt=''><figcaption>{html.escape(words)}</figcaption></figure>"
        for picture, words in row
    )
    return f"<div class='row'>{cells}</div>"


def inline(picture: Picture) -> str:
    """A picture as a data address."""
    data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 85])[1]
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def table(counts: Mapping[str, int]) -> str:
    """Numbers by name."""
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{number}</td></tr>" for name, number in counts.items())
    return f"<table>{rows}</table>"
