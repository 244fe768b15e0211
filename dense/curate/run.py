"""A curation from end to end: embed, drop, retrieve, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.console import check_writable, say
from dense.curate.decisions import FATES, Curation, write_dropped, write_report
from dense.curate.duplicates import Described, best, groups_and_hashed, leaks
from dense.curate.embeddings import Embedded, Embedder
from dense.curate.filters import STATES, Preparation
from dense.curate.pool import Pool, WithCrops
from dense.curate.retrieval import Retrieved, balanced, mode, retrieve
from dense.curate.search import faiss, resolve
from dense.curate.settings import Settings
from dense.curate.sheet import write_sheet
from dense.curate.writing import Form, check_apart, form_of, write_images

MANY = 0.2  # of the pool; more duplicates by cosine alone than that are doubted


def curate(
    pool: Pool,
    output: str | Path,
    embedder: Embedder,
    *,
    like: Pool | None = None,
    held_out: Pool | None = None,
    crops: Sequence[float] = (0.9, 0.8),
    settings: Settings | None = None,
    prepare: Preparation | None = None,
    with_curated: bool = False,
    form: Form | None = None,
) -> dict[str, Any]:
    """Write the images of a pool that are fit, no copies of others or of held-out ones, and like the curated ones.

    like: curated images; without them all that is no copy stays. with_curated: they join the result, and stay where the
    pool has a copy of them. prepare: of the pool and of curated images; held-out ones are compared as they are, and
    so are parts of them, of so much of their sides as `crops` says. form:
    a list, or shards; a list if every image is a file. Returns the report, which `output` holds as report.json beside
    images.txt or shards/, dropped.jsonl and sheet.html.
    """
    faiss()  # or its absence would be noticed after everything was embedded
    output, settings, prepare = Path(output), settings or Settings(), prepare or Preparation()
    if with_curated and like is None:
        raise ValueError("with_curated needs curated images; name them with like")
    everything = pool + like if with_curated and like is not None else pool
    form = form_of(everything, form)
    unknown = boxes_of_none(prepare, pool if like is None else pool + like)
    check_writable(output)
    check_apart((pool, like, held_out), output)
    found = embedder(pool, prepare, "pile")
    liked = embedder(like, prepare, "curated") if like is not None else None
    views = WithCrops(held_out, crops) if held_out is not None else None
    tested = embedder(views, Preparation(), "held out") if views is not None else None
    if with_curated and liked is not None:
        found = found + liked
    if not len(found.fit):
        counts = Counter(STATES[state] for state in found.columns["state"])
        words = ", ".join(f"{number} {state}" for state, number in counts.items())
        raise ValueError(f"none of {len(found.columns)} images is fit: {words}{first_words(found)}")
    if liked is not None and not len(liked.fit):
        raise ValueError(f"none of {len(liked.columns)} curated images is fit{first_words(liked)}")
    if tested is not None and not len(tested.fit):
        raise ValueError(f"none of the held-out images can be read{first_words(tested)}")
    done = decide(everything, len(pool), found, liked, like, tested, settings)
    if not len(done.kept):
        raise ValueError(f"nothing of {len(pool)} images is left: {', '.join(told(done))}")
    output.mkdir(parents=True, exist_ok=True)
    written = write_images(done, prepare, output, form)
    report = {
        "pile": {root: len(source) for root, source in zip(pool.roots, pool.sources, strict=True)},
        "curated": describe(like, liked),
        "held_out": describe(views, tested),
        "counts": {"pictures": len(everything), "kept": len(done.kept), **counted(done)},
        "duplicates by cosine alone": done.by_cosine,
        "filters": filter_counts(found),
        "boxes of no image": unknown,
        "kept of": kept_of(done),
        "settings": asdict(settings) | {"with_curated": with_curated, "crops": list(crops)},
        "preparation": prepare.key(),
        "search": resolve(settings.index, len(found.fit)),
        "retrieval": mode(settings, len(liked.fit)) if liked is not None else None,
        "features": embedder.key(),
        "written": written,
    }
    write_report(report, output / "report.json")  # first: by it the next run knows what it may replace
    write_dropped(done, views, tested, output / "dropped.jsonl")
    write_sheet(done, prepare, like, views, tested, report, output / "sheet.html")
    say(f"looked at {len(everything)} images; dropped: {', '.join(told(done)) or 'none'}")
    if done.by_cosine > MANY * len(everything):
        say(
            f"{done.by_cosine} of them are duplicates by cosine alone, more than a fifth of the pool: the threshold belongs to "
            f"the backbone. Look at {output / 'sheet.html'}, whose first pairs are the most doubtful, and raise --threshold "
            f"{settings.threshold:g} if they differ"
        )
    return report


def decide(
    everything: Pool,
    length: int,
    found: Embedded,
    liked: Embedded | None,
    like: Pool | None,
    tested: Embedded | None,
    settings: Settings,
) -> Curation:
    """The fate of every image; those from `length` on are curated."""
    fates = found.columns["state"].astype(np.int8) - 1
    of = np.full(len(fates), -1, np.int64)
    fit = found.fit
    mean = found.vectors.chosen(fit[fit < length] if (fit < length).any() else fit).average(seed=settings.seed)
    images = described(found, mean)
    group, hashed = groups_and_hashed(images, settings)
    if tested is not None:
        shows = leaks(images, described(tested, mean), settings)
        lost = np.isin(group, group[shows >= 0])
        shown = np.where(shows >= 0, tested.fit[shows] if len(tested.fit) else -1, -1)
        fates[fit[lost]], of[fit[lost]] = FATES.index("held out"), shown[lost]
    columns = found.columns[fit]
    pixels = columns["height"].astype(np.int64) * columns["width"]
    stays = best(group, fit >= length, pixels, columns["sharpness"], settings.keep)
    copy = (stays != np.arange(len(fit))) & (fates[fit] < 0)
    by_hash = best(hashed, fit >= length, pixels, columns["sharpness"], settings.keep) != np.arange(len(fit))
    fates[fit[copy]], of[fit[copy]] = FATES.index("duplicate"), fit[stays[copy]]
    candidates = np.flatnonzero((fates < 0) & (np.arange(len(fates)) < length))
    if liked is None or like is None:
        drawn = np.random.default_rng(settings.seed).permutation(candidates)  # of which a total takes the first
        chosen = Retrieved(drawn, np.full(len(drawn), -1), np.zeros(len(drawn), np.int64))
    else:
        queries = described(liked, mean).vectors
        chosen = retrieve(found.vectors.less(mean).chosen(candidates), queries, like.source_of(liked.fit), settings)
        chosen = Retrieved(candidates[chosen.places], liked.fit[chosen.queries], chosen.sets)
        fates[np.setdiff1d(candidates, chosen.places)] = FATES.index("not retrieved")
    if settings.total:
        labels = [chosen.sets, everything.source_of(chosen.places)]
        fates[chosen.places[~balanced(labels, settings.total)]] = FATES.index("over the total")
    return Curation(everything, found, fates, of, chosen, mean, int((copy & ~by_hash).sum()))


def described(found: Embedded, mean: NDArray[np.float32]) -> Described:
    """The fit images, as duplicates are found by."""
    fit = found.fit
    columns = found.columns[fit]
    return Described(
        found.vectors.less(mean).chosen(fit),
        np.ascontiguousarray(columns["hash"]),
        np.ascontiguousarray(columns["mirrored"]),
    )


def counted(done: Curation) -> dict[str, int]:
    """How many images each fate has."""
    numbers = np.bincount(done.fates[done.fates >= 0], minlength=len(FATES)).tolist()
    return dict(zip(FATES, numbers, strict=True))


def told(done: Curation) -> list[str]:
    """The same in words, and how many duplicates only the cosine of their vectors makes."""
    alone = {"duplicate": f" ({done.by_cosine} by cosine alone)"} if done.by_cosine else {}
    return [f"{number} {fate}{alone.get(fate, '')}" for fate, number in counted(done).items() if number]


def kept_of(done: Curation) -> dict[str, int]:
    """How many images stay of each source."""
    numbers = np.bincount(done.pool.source_of(done.kept), minlength=len(done.pool.roots)).tolist()
    return dict(zip(done.pool.roots, numbers, strict=True))


def describe(pool: Pool | None, found: Embedded | None) -> dict[str, Any] | None:
    """Sources, their lengths, and what could not be used of them."""
    if pool is None or found is None:
        return None
    unused = {pool.name(index): words for index, words in found.words.items()}
    lengths = {root: len(source) for root, source in zip(pool.roots, pool.sources, strict=True)}
    return {"sources": lengths, "unused": len(unused), "some of these": dict(list(unused.items())[:20])}


def filter_counts(found: Embedded) -> dict[str, dict[str, int]]:
    """How many images each filter dropped and changed."""
    filtered = np.flatnonzero(found.columns["state"] == STATES.index("filtered"))
    dropped = Counter(found.words[int(index)] for index in filtered)
    changed = Counter(name for names in found.edits.values() for name in names)
    return {name: {"dropped": dropped[name], "changed": changed[name]} for name in sorted({*dropped, *changed})}


def first_words(found: Embedded) -> str:
    """Why the first of those that are not fit is not."""
    return f"; the first: {next(iter(found.words.values()))}" if found.words else ""


def boxes_of_none(prepare: Preparation, pool: Pool) -> int:
    """Boxes of how many images that are not there; an error if that is all of them."""
    if not prepare.boxes:
        return 0
    unknown = prepare.unknown(pool.name(index) for index in range(len(pool)))
    if len(unknown) == len(prepare.boxes):
        raise ValueError(
            f"boxes are of no image that is here, for instance {min(unknown)}; paths are relative to the file of boxes"
        )
    return len(unknown)
