"""The decision on every image, and how it is reported: counts, dropped.jsonl and sheet.html."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.curate.alignment import Alignment, Box, Keypoints, align
from dense.curate.embeddings import Embeddings
from dense.curate.filters import STATES, Preparation
from dense.curate.pool import Pool
from dense.curate.retrieval import Retrieved
from dense.curate.search import Indices
from dense.files import replacing, write
from dense.media.draw import Picture, contain
from dense.media.html import document, figures, table

REASONS = (*STATES[1:], "held out", "duplicate", "not retrieved", "over the total")
CHUNK = 8192
PAIRS, ROWS, COLUMNS, SIDE = 60, 20, 6, 176  # of the sheet: pairs per reason, curated images, images per row, pixels
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2rem auto;padding:0 1rem;color:#222}"
    ".pairs{display:flex;flex-wrap:wrap;gap:1.2rem}.row{display:flex;gap:.4rem;margin:0 0 .8rem}"
    "figure{margin:0;width:176px}img{display:block}figcaption{font-size:.72rem;color:#666;overflow-wrap:anywhere}"
    "td,th{text-align:left;padding:.1rem 1.5rem .1rem 0}"
)
ORANGE = (255, 120, 0)
Match = tuple[int, float, int]  # index of the dropped image; cosine and differing bits to the image it is a copy of
Row = list[tuple[str, Picture]]  # captions and pictures


@dataclass(frozen=True)
class Decisions:
    """Which images of a pool are kept, and why the others are dropped.

    reasons: index into REASONS, -1 for kept images. matches: the image that is kept instead, or for "held out" the
    index of the held-out image; -1 for none, also for images in a group with a copy of a held-out image
    alignments: how copies of held-out images lie over these, where that decided
    """

    pool: Pool
    embeddings: Embeddings
    reasons: NDArray[np.int8]  # N
    matches: Indices  # N
    alignments: dict[int, Alignment]  # by index
    retrieved: Retrieved  # indices of the pool
    mean: NDArray[np.float32]  # D, centres the vectors that are compared
    by_cosine: int  # duplicates that perceptual hashes alone would have kept

    @property
    def kept(self) -> Indices:
        """Indices of the kept images."""
        return np.flatnonzero(self.reasons < 0)

    def counts(self) -> dict[str, int]:
        """Return the number of images dropped per reason."""
        numbers = np.bincount(self.reasons[self.reasons >= 0], minlength=len(REASONS)).tolist()
        return dict(zip(REASONS, numbers, strict=True))

    def kept_per_source(self) -> dict[str, int]:
        """Return the number of kept images per source."""
        numbers = np.bincount(self.pool.source_of(self.kept), minlength=len(self.pool.roots)).tolist()
        return dict(zip(self.pool.roots, numbers, strict=True))

    def summary(self) -> str:
        """Return the counts in words, with the number of duplicates that hashes miss."""
        notes = {"duplicate": f" ({self.by_cosine} of them missed by hashes)"} if self.by_cosine else {}
        return ", ".join(f"{n} {reason}{notes.get(reason, '')}" for reason, n in self.counts().items() if n)


def describe_source(pool: Pool | None, embeddings: Embeddings | None) -> dict[str, Any] | None:
    """Return the sources, their lengths and the first of the unusable images."""
    if pool is None or embeddings is None:
        return None
    unused = {pool.name(index): reason for index, reason in embeddings.reasons.items()}
    return {"sources": pool.lengths, "unused": len(unused), "some of these": dict(list(unused.items())[:20])}


def filter_counts(embeddings: Embeddings) -> dict[str, dict[str, int]]:
    """Return how many images each filter dropped and changed."""
    filtered = np.flatnonzero(embeddings.columns["state"] == STATES.index("filtered"))
    dropped = Counter(embeddings.reasons[int(index)] for index in filtered)
    changed = Counter(name for names in embeddings.edits.values() for name in names)
    return {name: {"dropped": dropped[name], "changed": changed[name]} for name in sorted({*dropped, *changed})}


def matches_of(decisions: Decisions, held_out: Embeddings | None, indices: Indices) -> list[Match]:
    """Return the match of each of these images that was dropped as a copy of another."""
    found: list[Match] = []
    embeddings, mean = decisions.embeddings, decisions.mean
    for reason, other in (("duplicate", embeddings), ("held out", held_out)):
        dropped = (decisions.reasons[indices] == REASONS.index(reason)) & (decisions.matches[indices] >= 0)
        mine = indices[dropped]
        if other is None or not len(mine):
            continue
        theirs = decisions.matches[mine]
        ours, others = embeddings.vectors.centred(mean).take(mine), other.vectors.centred(mean).take(theirs)
        columns, hashes = embeddings.columns[mine], other.columns[theirs]["hash"]
        bits = np.minimum(*(np.unpackbits(columns[name] ^ hashes, axis=1).sum(1) for name in ("hash", "mirrored")))
        found += zip(mine.tolist(), (ours * others).sum(1).tolist(), bits.astype(int).tolist(), strict=True)
    return found


def write_dropped(decisions: Decisions, held_out: Pool | None, tested: Embeddings | None, path: Path) -> None:
    """Write one JSON line per dropped image: name, reason, and the image it is a copy of with cosine and bits."""
    dropped = np.flatnonzero(decisions.reasons >= 0)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        for start in range(0, len(dropped), CHUNK):
            some = dropped[start : start + CHUNK]
            matches = {index: (cosine, bits) for index, cosine, bits in matches_of(decisions, tested, some)}
            for index in some.tolist():
                reason = REASONS[decisions.reasons[index]]
                line: dict[str, Any] = {"picture": decisions.pool.name(index), "why": reason}
                if index in decisions.embeddings.reasons:
                    line["words"] = decisions.embeddings.reasons[index]
                if index in matches:
                    cosine, bits = matches[index]
                    names = held_out if reason == "held out" and held_out is not None else decisions.pool
                    line |= {"of": names.name(int(decisions.matches[index])), "cosine": round(cosine, 4), "bits": bits}
                    if alignment := decisions.alignments.get(index):
                        line |= {"correlation": round(alignment.correlation, 4), "mirrored": alignment.mirrored}
                elif reason == "held out":
                    line["words"] = "in a group with a copy of a held-out image"
                lines.write(json.dumps(line) + "\n")


def write_sheet(
    decisions: Decisions, prepare: Preparation, like: Pool | None, held_out: Pool | None, tested: Embeddings | None,
    path: Path,
) -> None:  # fmt: skip
    """Write an HTML page of dropped images beside those kept, least similar first, and of retrieved images.

    Images that filters dropped are not shown.
    """
    counts = {"images": len(decisions.pool), "kept": len(decisions.kept), **decisions.counts()}
    sections = [("Counts", table(list(counts.items())))]
    for reason, title, names in (
        ("held out", "Held-out images in the pool", held_out),
        ("duplicate", "Duplicates", decisions.pool),
    ):
        pairs = doubtful(decisions, tested, reason)
        if pairs and names is not None:
            shown = Preparation() if reason == "held out" else prepare
            rows = [_pair(decisions, prepare, names, shown, *pair) for pair in pairs]
            words = (
                f"{len(rows)} of {counts[reason]}, the least similar first; the dropped image on the left. Boxes show "
                "the part that both share, and correlation how well it agrees; without boxes no such part was found"
            )
            sections.append((title, f"<p>{words}</p><div class='pairs'>{_rows(rows)}</div>"))
    if like is not None:
        rows = [row for query in _shown_queries(decisions) if (row := _retrieved(decisions, prepare, like, query))]
        sections.append(("Retrieved", f"<p>a curated image on the left, then images retrieved for it</p>{_rows(rows)}"))
    body = "".join(f"<h2>{title}</h2>{text}" for title, text in sections)
    write(path, document("Curation", STYLE, f"<h1>Curation</h1>{body}").encode(errors="replace"))


def doubtful(decisions: Decisions, tested: Embeddings | None, reason: str) -> list[Match]:
    """Return the least similar matches among the images dropped for one reason."""
    worst: list[Match] = []
    dropped = np.flatnonzero(decisions.reasons == REASONS.index(reason))
    for start in range(0, len(dropped), CHUNK):
        worst += matches_of(decisions, tested, dropped[start : start + CHUNK])
        worst = sorted(worst, key=lambda match: (match[1], match[0]))[:PAIRS]
    return worst


def _shown_queries(decisions: Decisions) -> list[int]:
    """Return evenly chosen curated images for which something was retrieved."""
    queries = np.unique(decisions.retrieved.queries)
    return queries[np.linspace(0, len(queries) - 1, min(ROWS, len(queries))).round().astype(int)].tolist()


def _retrieved(decisions: Decisions, prepare: Preparation, like: Pool, query: int) -> Row:
    indices = decisions.retrieved.indices[decisions.retrieved.queries == query]
    kept = indices[decisions.reasons[indices] < 0][: COLUMNS - 1].tolist()
    found = [cell for index in kept for cell in _cell(decisions.pool, prepare, index)]
    return [*_cell(like, prepare, query), *found] if found else []


def _pair(
    decisions: Decisions, prepare: Preparation, names: Pool, shown: Preparation, index: int, cosine: float, bits: int
) -> Row:
    """Return a dropped image beside its match, with boxes around what both show; empty if one cannot be read."""
    other = int(decisions.matches[index])
    image, match = prepare(decisions.pool, index).image, shown(names, other).image
    if image is None or match is None:
        return []
    alignment = align(Keypoints(image), Keypoints(match))
    words = f"{Path(names.name(other)).name}: cosine {cosine:.3f}, {bits} bits"
    if alignment.correlation:
        words += f", correlation {alignment.correlation:.2f}{', mirrored' if alignment.mirrored else ''}"
        image, match = _boxed(image, alignment.boxes[0]), _boxed(match, alignment.boxes[1])
    name = Path(decisions.pool.name(index)).name
    return [(name, contain(image, SIDE)), (words, contain(match, SIDE))]


def _boxed(image: Picture, box: Box) -> Picture:
    """Return a copy with a box, whose sides are fractions of the image's, in it."""
    height, width = image.shape[:2]
    thick = max(1, round(max(height, width) / SIDE * 2))
    left, top, right, bottom = (round(side * length) for side, length in zip(box, (width, height) * 2, strict=True))
    corner = max(left, right - thick), max(top, bottom - thick)  # of the lower right, inside the image
    return np.asarray(cv2.rectangle(image.copy(), (left, top), corner, ORANGE, thick), np.uint8)


def _cell(pool: Pool, prepare: Preparation, index: int) -> Row:
    """Return a thumbnail with the name of its file; empty if the image can no longer be read."""
    image = prepare(pool, index).image
    return [] if image is None else [(Path(pool.name(index)).name, contain(image, SIDE))]


def _rows(rows: Sequence[Row]) -> str:
    return "".join(f"<div class='row'>{figures(row)}</div>" for row in rows)
