"""Claims: planted copies are found, planted leaks are removed, retrieval finds similar images, a million vectors fit.

On embedded scenes, with the backbone that comes with the package:

- every scene is planted with copies (see `_planted.COPIES`) among others. Measured: recall by kind of copy, and
  precision, the share of dropped images that are copies of the image kept instead; by hashes, by features, by both.
- copies of held-out scenes are planted in a pool; all must be dropped, and few other images.
- the four nearest neighbours of each scene in a pool of four kinds (low or high camera, few or many solids), by kind
  and class, beside chance.

On synthetic vectors (`--vectors`, 384 channels, in clumps, a twentieth of them copies) on disk: memory and seconds of
the index, the graph of duplicates, hashes, k-means and retrieval; recall of the index against exact search, and its
time. Memory is the resident peak beyond the start; pages of mapped files, which the system may drop, are reported
separately.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _claims import record, versioned
from _measure import arguments, resident
from _planted import COPIES
from numpy.typing import NDArray
from PIL import Image

from dense.backbone import load_backbone
from dense.curate import Embedder, Pool, Preparation, Settings
from dense.curate.duplicates import (
    Signatures,
    duplicate_groups,
    feature_pairs,
    hash_pairs,
    held_out_matches,
    representatives,
)
from dense.curate.embeddings import Embeddings
from dense.curate.pool import PoolWithCrops
from dense.curate.run import comparison
from dense.curate.search import IVFPQ, Flat, Vectors, assign, cluster
from dense.data.scenes import Scenes, dominant_class, sample
from dense.data.scenes.looks import FLOORS
from dense.evaluate.classification.data import CenterCrop

Array = NDArray[Any]
THRESHOLDS = (0.95, 0.96, 0.97, 0.98, 0.99)
KINDS = {
    "low camera, few solids": {"camera_height": (0.4, 0.7), "objects": (1, 2)},
    "low camera, many solids": {"camera_height": (0.4, 0.7), "objects": (8, 10)},
    "high camera, few solids": {"camera_height": (3.5, 4.5), "objects": (1, 2)},
    "high camera, many solids": {"camera_height": (3.5, 4.5), "objects": (8, 10)},
}


def embed(name: str, images: Iterator[Array], folder: Path, crops: Sequence[float] = ()) -> Embeddings:
    """Write images as files and return their embeddings, and those of their crops."""
    root = folder / name
    root.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(root / f"{number:06d}.png")
    backbone = load_backbone("scenes_tiny", frozen=True)
    pool = PoolWithCrops(Pool.open([root]), crops) if crops else Pool.open([root])
    return Embedder(backbone, folder / "vectors", CenterCrop(96, 96))(pool, Preparation(), name)


def with_copies(scenes: Scenes) -> Iterator[Array]:
    """Yield every scene, followed by its copies."""
    for number in range(len(scenes)):
        image = scenes[number].image
        yield image
        yield from (change(image) for change in COPIES.values())


def duplicates(count: int, folder: Path) -> None:
    """Print the table of recall and precision."""
    found = embed("copies", with_copies(Scenes("train", count, 128)), folder)
    each = 1 + len(COPIES)
    scene, kind = np.divmod(np.arange(len(found.usable)), each)
    images = found.signatures(found.vectors.mean_vector())
    columns = found.columns
    pixels = columns["height"].astype(np.int64) * columns["width"]
    none, nothing = Settings(threshold=1.0, neighbours=1), np.zeros(len(scene), bool)
    rows = [("hashes alone, 6 bits", duplicate_groups(images, none)[0])]
    random = np.random.default_rng(0).integers(0, 256, images.hashes.shape, np.uint8)
    alone = Signatures(images.vectors, random, random)
    rows += [
        (f"features alone, {t}", duplicate_groups(alone, Settings(hash_distance=0, threshold=t))[0]) for t in THRESHOLDS
    ]
    rows += [(f"both, 6 bits, {t}", duplicate_groups(images, Settings(threshold=t))[0]) for t in THRESHOLDS]
    print(f"\n{count} scenes, each with {len(COPIES)} copies\n")
    print(f"| found by | {' | '.join(COPIES)} | all | precision | scenes lost |")
    print("|---" * (len(COPIES) + 4) + "|")
    for words, group in rows:
        together = group == np.repeat(group[kind == 0], each)
        recall = [together[kind == number].mean() for number in range(1, each)]
        stays = representatives(group, nothing, pixels, columns["sharpness"], "largest")
        dropped = stays != np.arange(len(stays))
        right = (scene[stays] == scene)[dropped].mean() if dropped.any() else 1.0
        lost = count - len(np.unique(scene[~dropped]))
        cells = " | ".join(f"{value:.2f}" for value in [*recall, together[kind > 0].mean(), right])
        print(f"| {words} | {cells} | {lost} |", flush=True)
        if words == f"both, 6 bits, {Settings().threshold}":
            record(
                "planted copies, recall",
                ours=f"{together[kind > 0].mean():.3f}",
                value=together[kind > 0].mean(),
                least=0.9,
            )
            record("planted copies, precision", ours=f"{right:.3f}", value=right, least=0.9)


def held_out(count: int, folder: Path, seed: int = 0) -> None:
    """Print the leaks that are kept, by kind."""
    views = {"as they are": (), "with crops": (0.9, 0.8)}
    scenes = [Scenes("test", count, 128, seed)[i].image for i in range(count)]
    tests = {words: embed(words, iter(scenes), folder, crops) for words, crops in views.items()}
    planted = embed("planted", with_copies(Scenes("test", count, 128, seed)), folder)
    innocent = embed("innocent", (Scenes("train", 4 * count, 128, seed)[i].image for i in range(4 * count)), folder)
    pool = innocent + planted
    mean = pool.vectors.mean_vector()
    others = len(innocent.columns)
    kind = np.arange(len(planted.columns)) % (1 + len(COPIES))
    files = Pool.open([folder / "innocent", folder / "planted"])
    print(f"\n{count} held-out scenes, their copies planted among {others} others\n")
    print(f"| held-out images, decision | {' | '.join(COPIES)} | leaks left, by group | others dropped |")
    print("|---" * (len(COPIES) + 3) + "|")
    default = Settings()
    rows = [("as they are", f"cosine {default.held_out_threshold} and correlation {default.agreement}", default)]
    rows += [
        (words, f"cosine {threshold} alone", Settings(held_out_threshold=threshold, agreement=0))
        for words in tests
        for threshold in (0.9, 0.93, 0.95, 0.97)
    ]
    for words, decision, settings in rows:
        images, tested = pool.signatures(mean), tests[words]
        held = PoolWithCrops(Pool.open([folder / words]), views[words])
        compare = comparison(files, pool.usable, held, tested.usable)
        leaked = held_out_matches(images, tested.signatures(mean), settings, compare)[0] >= 0
        group = duplicate_groups(images, settings)[0]
        gone = np.isin(group, group[leaked])
        found = [leaked[others:][kind == number].mean() for number in range(1, len(COPIES) + 1)]
        left, innocents = int((~gone[others:]).sum()), int(gone[:others].sum())
        cells = " | ".join(f"{value:.2f}" for value in found)
        print(f"| {words}, {decision} | {cells} | {left} of {len(kind)} | {innocents} of {others} |", flush=True)
        if settings is default:
            record("planted leaks that stay", ours=f"{left} of {len(kind)}", value=left, most=2)


def retrieval(count: int, folder: Path) -> None:
    """Print the shares of the four nearest neighbours that are of the query's kind and class."""
    images: list[Array] = []
    kinds, classes, grounds, hills = [], [], [], []
    for number, options in enumerate(KINDS.values()):
        scenes = Scenes("val", count, 128, **options)  # type: ignore[arg-type]
        for i in range(count):
            world = sample(scenes.seed, scenes.index(i), camera_height=scenes.camera_height, objects=scenes.objects)
            scene = scenes[i]
            images.append(scene.image)
            kinds.append(number)
            classes.append(dominant_class(scene))
            grounds.append(FLOORS.index(world.ground.pattern))
            hills.append(int(world.sky.hills > 0))
    found = embed("kinds", iter(images), folder)
    kind, label = np.array(kinds), np.array(classes)
    vectors = Vectors(found.vectors.arrays, None, found.vectors.mean_vector())
    _, places = Flat(vectors).search(vectors.take(np.arange(len(vectors))), 5)
    print(f"\n{len(vectors)} scenes of {len(KINDS)} kinds; the four nearest of each\n")
    print("| shares with its four nearest | found | by chance |\n|---|---|---|")
    for words, known in (
        ("kind", kind),
        ("camera", kind // 2),
        ("number of solids", kind % 2),
        ("pattern of the ground, of 6", np.array(grounds)),
        ("hills at the horizon", np.array(hills)),
        ("class of largest solid", label),
    ):
        others = np.stack([row[row != number][:4] for number, row in enumerate(places)])
        found_share = (known[others] == known[:, None]).mean()
        chance = float((np.bincount(known) / len(known)) @ (np.bincount(known) / len(known)))
        print(f"| {words} | {found_share:.3f} | {chance:.3f} |", flush=True)
        record(
            f"retrieval on scenes: {words}",
            peer="chance",
            ours=f"{found_share:.3f}",
            theirs=f"{chance:.3f}",
            ratio=found_share / chance,
        )


def synthetic(count: int, folder: Path, dim: int = 384) -> Vectors:
    """Write vectors in clumps, a twentieth of them copies of others, in files of 16384."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, count // 100), dim)).astype(np.float32)
    arrays = []
    for start in range(0, count, 16384):
        size = min(16384, count - start)
        part = centres[rng.integers(len(centres), size=size)] + rng.standard_normal((size, dim)).astype(np.float32)
        copies = size // 20
        part[:copies] = part[size - copies :] + 0.05 * rng.standard_normal((copies, dim)).astype(np.float32)
        np.save(folder / f"{start:09d}.npy", part.astype(np.float16))
        arrays.append(np.load(folder / f"{start:09d}.npy", mmap_mode="r"))
    return Vectors(arrays)


def measured(words: str, count: int, work: Callable[[], Any]) -> Any:
    """Return the result of `work` and print its seconds and memory."""
    Path("/proc/self/clear_refs").write_text("5")
    before, mapped = resident("VmRSS"), resident("RssFile")
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak, pages = resident("VmHWM") - before, resident("RssFile") - mapped
    print(f"| {words} | {seconds:.1f} | {peak:.0f} | {max(0, pages):.0f} |", flush=True)
    record(f"{words}, {count} vectors", ours=f"{seconds:.1f} s, {peak:.0f} MB at the peak")
    return result


def scale(count: int, folder: Path) -> None:
    """Print seconds and memory of each stage."""
    vectors = synthetic(count, folder)
    settings = Settings(index="ivfpq")
    queries = vectors.take(np.sort(np.random.default_rng(1).choice(count, min(1000, count), replace=False)))
    print(f"\n{count} vectors of {vectors.dim}, {count * vectors.dim * 2 / 1e6:.0f} MB on disk\n")
    print("| stage | seconds | MB at the peak | of them mapped |\n|---|---|---|---|")
    search = measured("IVF-PQ built", count, lambda: IVFPQ(vectors))
    _, places = measured("1000 queries, IVF-PQ, 4 nearest", count, lambda: search.search(queries, 4))
    _, exact = measured("1000 queries, exact, 4 nearest", count, lambda: Flat(vectors).search(queries, 4))
    _, ours = search.search(queries, 17)
    _, exact_wide = Flat(vectors).search(queries, 17)
    first, *_ = measured("graph of duplicates, IVF-PQ", count, lambda: feature_pairs(vectors, settings))
    hashes = np.random.default_rng(2).integers(0, 256, (count, 8), np.uint8)
    measured("hashes, 6 bits", count, lambda: hash_pairs(hashes, hashes, 6))
    centres = measured("k-means", count, lambda: cluster(vectors, max(1, count // 100), 0))
    measured("clusters assigned", count, lambda: assign(vectors, centres))
    recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(places.tolist(), exact.tolist(), strict=True)])
    wide = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ours.tolist(), exact_wide.tolist(), strict=True)])
    found = f"{recall:.3f} of 4 nearest, {wide:.3f} of 17; {len(first)} pairs of copies"
    print(f"\nrecall of IVF-PQ against exact search: {found}")
    record(
        "recall of IVF-PQ, 4 nearest",
        peer=versioned("faiss-cpu") + " flat",
        ours=f"{recall:.3f}",
        theirs="1",
        value=recall,
        least=0.9,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="scenes with planted copies")
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out scenes")
    parser.add_argument("--vectors", type=int, default=200_000, help="synthetic vectors of the part scale")
    parts = ["duplicates", "held_out", "retrieval", "scale"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    work: dict[str, Callable[[Path], None]] = {
        "duplicates": lambda folder: duplicates(options.scenes, folder),
        "held_out": lambda folder: held_out(options.scenes // 4, folder, options.seed),
        "retrieval": lambda folder: retrieval(options.scenes, folder),
        "scale": lambda folder: scale(options.vectors, folder),
    }
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            work[part](Path(folder))


if __name__ == "__main__":
    main()
