"""A curation from end to end: embed, deduplicate, retrieve, write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dense.console import say
from dense.curate.alignment import Alignment, Keypoints, align
from dense.curate.duplicates import Compare, duplicate_groups, held_out_matches, representatives
from dense.curate.embeddings import Embedder, Embeddings
from dense.curate.filters import STATES, Preparation
from dense.curate.images import Form, check_output, resolve_form, write_images
from dense.curate.pool import Pool, PoolWithCrops
from dense.curate.report import REASONS, Decisions, describe_source, filter_counts, write_dropped, write_sheet
from dense.curate.retrieval import Retrieved, balance, resolve_retrieve, retrieve
from dense.curate.search import Indices, import_faiss, resolve_index
from dense.curate.settings import Settings
from dense.files import check_writable, write
from dense.ranks import Ranks

KEPT_KEYPOINTS = 1024  # images whose keypoints stay in memory, about 0.1 MB each
SUSPICIOUS = 0.2  # of the pool: a larger share of duplicates by cosine alone causes a warning


def curate(
    pool: Pool,
    output: str | Path,
    embedder: Embedder,
    *,
    like: Pool | None = None,
    held_out: Pool | None = None,
    crops: Sequence[float] = (),
    settings: Settings | None = None,
    prepare: Preparation | None = None,
    with_curated: bool = False,
    form: Form | None = None,
) -> dict[str, Any]:
    """Write the usable images of a pool that are similar to curated ones, without duplicates or held-out images.

    like: curated set; without it all images that are no copies are kept. with_curated: the curated images join the
    result and are kept instead of their copies in the pool. prepare: applies to the pool and to the curated images;
    held-out images are compared as they are. crops: shares of the sides of held-out images; crops of these sizes are
    embedded too. form: a list or shards; by default a list if every image is a file.

    Returns the report, which `output` holds as report.json beside images.txt or shards/, dropped.jsonl, sheet.html.
    """
    import_faiss()  # a missing package is reported before any image is embedded
    output, settings, prepare = Path(output), settings or Settings(), prepare or Preparation()
    if with_curated and like is None:
        raise ValueError("with_curated needs curated images; name them with like")
    everything = pool + like if with_curated and like is not None else pool
    form = resolve_form(everything, form)
    missing = missing_boxes(prepare, pool if like is None else pool + like)
    check_writable(output)
    check_output((pool, like, held_out), output)
    embeddings = embedder(pool, prepare, "pool")
    curated = embedder(like, prepare, "curated") if like is not None else None
    views = PoolWithCrops(held_out, crops) if held_out is not None else None
    tested = embedder(views, Preparation(), "held out") if views is not None else None
    if with_curated and curated is not None:
        embeddings = embeddings + curated
    check_usable(embeddings, "images")
    if curated is not None:
        check_usable(curated, "curated images")
    if tested is not None:
        check_usable(tested, "held-out images and crops of them" if crops else "held-out images")
    decisions = decide(everything, len(pool), embeddings, like, curated, views, tested, settings)
    if not len(decisions.kept):
        raise ValueError(f"none of {len(pool)} images is kept: {decisions.summary()}")
    output.mkdir(parents=True, exist_ok=True)
    written = write_images(decisions, prepare, output, form)
    report = {
        "pile": pool.lengths,
        "curated": describe_source(like, curated),
        "held_out": describe_source(views, tested),
        "counts": {"images": len(everything), "kept": len(decisions.kept), **decisions.counts()},
        "duplicates that hashes miss": decisions.by_cosine,
        "filters": filter_counts(embeddings),
        "boxes of no image": missing,
        "kept of": decisions.kept_per_source(),
        "settings": asdict(settings) | {"with_curated": with_curated, "crops": list(crops)},
        "preparation": prepare.key(),
        "search": resolve_index(settings.index, len(embeddings.usable)),
        "retrieval": resolve_retrieve(settings, len(curated.usable)) if curated is not None else None,
        "features": embedder.key(),
        "written": written,
    }
    # The report is written first: it tells the next run that the other files may be replaced.
    write(output / "report.json", json.dumps(report, indent=2) + "\n")
    write_dropped(decisions, views, tested, output / "dropped.jsonl")
    write_sheet(decisions, prepare, like, views, tested, output / "sheet.html")
    say(f"{len(everything)} images; dropped: {decisions.summary() or 'none'}")
    if not settings.agreement and decisions.by_cosine > SUSPICIOUS * len(everything):
        say(
            f"warning: {decisions.by_cosine} images are duplicates by cosine alone, more than a fifth of the pool. The "
            f"right threshold depends on the backbone: look at {output / 'sheet.html'}, which shows the least similar "
            f"pairs first, and raise --threshold {settings.threshold:g} if they differ"
        )
    return report


def embed_share(
    embedder: Embedder, pools: Sequence[Pool | None], prepare: Preparation, crops: Sequence[float], ranks: Ranks
) -> None:
    """Store a process's share of the embeddings that `curate` will read: of the pool, curated and held-out images."""
    pool, like, held_out = pools
    if pool is not None:
        embedder.fill(pool, prepare, "pool", ranks)
    if like is not None:
        embedder.fill(like, prepare, "curated", ranks)
    if held_out is not None:
        embedder.fill(PoolWithCrops(held_out, crops), Preparation(), "held out", ranks)


def decide(
    everything: Pool,
    length: int,
    embeddings: Embeddings,
    like: Pool | None,
    curated: Embeddings | None,
    views: PoolWithCrops | None,
    tested: Embeddings | None,
    settings: Settings,
) -> Decisions:
    """Decide on every image; those from index `length` on are curated. views: held-out images and their crops."""
    reasons = embeddings.columns["state"].astype(np.int8) - 1
    matches = np.full(len(reasons), -1, np.int64)
    usable = embeddings.usable
    of_pool = usable[usable < length]
    mean = embeddings.vectors.subset(of_pool if len(of_pool) else usable).mean_vector(seed=settings.seed)
    images = embeddings.signatures(mean)
    keypoints = keypoints_of(everything, usable)
    group, hash_group = duplicate_groups(images, settings, lambda a, b: align(keypoints(a), keypoints(b)))
    alignments: dict[int, Alignment] = {}
    if tested is not None and views is not None:
        compare = comparison(keypoints, views, tested.usable)
        copy_of, aligned = held_out_matches(images, tested.signatures(mean), settings, compare)
        alignments = {int(usable[row]): alignment for row, alignment in aligned.items()}
        leaked = np.isin(group, group[copy_of >= 0])
        reasons[usable[leaked]] = REASONS.index("held out")
        matches[usable[leaked]] = np.where(copy_of >= 0, tested.usable[copy_of], -1)[leaked]
    columns = embeddings.columns[usable]
    pixels = columns["height"].astype(np.int64) * columns["width"]
    ranking = (usable >= length, pixels, columns["sharpness"], settings.keep)
    kept = representatives(group, *ranking)
    duplicate = (kept != np.arange(len(usable))) & (reasons[usable] < 0)
    by_hash = representatives(hash_group, *ranking) != np.arange(len(usable))
    reasons[usable[duplicate]], matches[usable[duplicate]] = REASONS.index("duplicate"), usable[kept[duplicate]]
    candidates = np.flatnonzero((reasons < 0) & (np.arange(len(reasons)) < length))
    if curated is None or like is None:
        order = np.random.default_rng(settings.seed).permutation(candidates)  # a total keeps the first of these
        retrieved = Retrieved(order, np.full(len(order), -1), np.zeros(len(order), np.int64))
    else:
        queries = curated.signatures(mean).vectors
        found = retrieve(
            embeddings.vectors.centred(mean).subset(candidates), queries, like.source_of(curated.usable), settings
        )
        retrieved = Retrieved(candidates[found.indices], curated.usable[found.queries], found.sets)
        reasons[np.setdiff1d(candidates, retrieved.indices)] = REASONS.index("not retrieved")
    if settings.total:
        labels = [retrieved.sets, everything.source_of(retrieved.indices)]
        reasons[retrieved.indices[~balance(labels, settings.total)]] = REASONS.index("over the total")
    by_cosine = int((duplicate & ~by_hash).sum())
    return Decisions(everything, embeddings, reasons, matches, alignments, retrieved, mean, by_cosine)


def keypoints_of(images: Pool, usable: Indices) -> Callable[[int], Keypoints]:
    """Return what finds the keypoints of a usable image of a pool, and keeps those of the last ones."""
    return lru_cache(KEPT_KEYPOINTS)(lambda place: Keypoints(images.read(int(usable[place]))))


def comparison(of_image: Callable[[int], Keypoints], held_out: PoolWithCrops, tested: Indices) -> Compare:
    """Return what lays a held-out image, or the image that it is a crop of, over an image of a pool."""
    of_held_out = lru_cache(KEPT_KEYPOINTS)(lambda index: Keypoints(held_out.read(index)))
    whole = tested // held_out.views * held_out.views
    return lambda image, place: align(of_image(image), of_held_out(int(whole[place])))


def check_usable(embeddings: Embeddings, name: str) -> None:
    """Raise if no image is usable, with the counts and the first reason."""
    if len(embeddings.usable):
        return
    counts = Counter(STATES[state] for state in embeddings.columns["state"])
    words = ", ".join(f"{number} {state}" for state, number in counts.items())
    first = f"; the first: {next(iter(embeddings.reasons.values()))}" if embeddings.reasons else ""
    raise ValueError(f"none of {len(embeddings.columns)} {name} is usable: {words}{first}")


def missing_boxes(prepare: Preparation, pool: Pool) -> int:
    """Return the number of images that have boxes but are not in the pool; raise if that is all of them."""
    if not prepare.boxes:
        return 0
    missing = prepare.missing(pool.name(index) for index in range(len(pool)))
    if len(missing) == len(prepare.boxes):
        raise ValueError(
            f"no image with boxes is in the pool, for instance {min(missing)}; paths are relative to the file of boxes"
        )
    return len(missing)
