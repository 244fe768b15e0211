"""Copies of held-out photographs in a pool: how many are found, and how many other photographs are dropped with them.

    python benchmarks/real/curation.py PHOTOGRAPHS --weights WEIGHTS --backbone dinov2_vits14

The photographs may be those of the imagenet-sample-images repository (1,000, one per class, many of related animals).
They are shuffled with --seed and halved: settings were chosen on the first half, and the second verifies them. Half of
each half is the pool, half is held out. Planted are copies and crops of held-out photographs in the pool, and crops of
photographs of the pool among the held-out ones, at random positions. All other photographs of the pool are innocent;
the most similar held-out ones are compared with them, and must not be taken for copies.

The copies of one photograph in the pool are also duplicates of one another: all but one of each photograph should go.

Printed per decision: recall by kind; precision, the share of dropped images that are copies of the held-out image
found; other photographs that are dropped. "cosine alone" decides without a comparison of pixels; with --crops 0.9 0.8,
which embeds ten crops of each held-out image besides, "cosine alone, 0.9" is the former default.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from _all import machine
from _measure import arguments, prose, write_section
from _planted import COPIES, cropped

from dense.backbone import load_backbone
from dense.curate import Embedder, Pool, Preparation, Settings
from dense.curate.alignment import align
from dense.curate.duplicates import duplicate_groups, held_out_matches
from dense.curate.pool import PoolWithCrops
from dense.curate.run import comparison, keypoints_of
from dense.data.image import list_images, read_image

LEAKS = {
    "resized": COPIES["half the size"],
    "JPEG 30": COPIES["JPEG of quality 30"],
    "mirrored": COPIES["mirrored"],
    "brightened": lambda image: np.minimum(image * 1.3, 255).astype(np.uint8),
    "crop 90 %": cropped(0.9),
    "crop 80 %": cropped(0.8),
    "crop 60 %": cropped(0.6),
    "crop 80 %, mirrored, half the size, JPEG 30": lambda image: COPIES["JPEG of quality 30"](
        COPIES["half the size"](COPIES["mirrored"](cropped(0.8)(image)))
    ),
}
HELD_OUT_CROPS = {f"held-out crop {round(100 * share)} %": cropped(share) for share in (0.9, 0.8, 0.6)}
KINDS = (*LEAKS, *HELD_OUT_CROPS)


class Planted:
    """A pool and held-out images with planted copies, embedded.

    kind: of each image of the pool, "" for photographs without a copy among the held-out ones; relatives: the name of
    the photograph that each image of the pool, and each held-out one, was made of
    """

    def __init__(self, files: Sequence[Path], count: int, embedder: Embedder, folder: Path, crops: Sequence[float]):
        half = len(files) // 2
        self.folder, self.kinds = folder, dict[str, str]()
        for number, file in enumerate(files):
            image = read_image(file)
            name = f"{number:04d}.png"
            if number < half:  # held out
                save(folder / "tests" / name, image)
                for kind, change in LEAKS.items() if number < count else ():
                    save(folder / "pool" / kind.replace(" ", "_") / name, change(image))
            else:
                save(folder / "pool" / name, image)
                place = number - half
                if place < count * len(HELD_OUT_CROPS):  # one crop of each, since others would help
                    kind = list(HELD_OUT_CROPS)[place % len(HELD_OUT_CROPS)]
                    save(folder / "tests" / name, HELD_OUT_CROPS[kind](image))
                    self.kinds[name] = kind
        start = time.perf_counter()
        self.pool, tests = Pool.open([folder / "pool"]), Pool.open([folder / "tests"])
        self.views = PoolWithCrops(tests, crops)
        self.images = embedder(self.pool, Preparation(), "pool")
        self.tests = embedder(self.views, Preparation(), "held out")
        self.rate = (len(self.pool) + len(self.views)) / (time.perf_counter() - start)
        mean = self.images.vectors.mean_vector()
        self.signatures = self.images.signatures(mean), self.tests.signatures(mean)
        assert len(self.images.usable) == len(self.pool), "a photograph of the pool cannot be used"
        self.seconds: list[float] = []
        keypoints = keypoints_of(self.pool, self.images.usable)
        exact = comparison(keypoints, self.views, self.tests.usable)

        @cache
        def compare(image: int, place: int) -> Any:
            start = time.process_time()
            found = exact(image, place)
            self.seconds.append(time.process_time() - start)
            return found

        self.compare = compare
        self.compare_pool = cache(lambda a, b: align(keypoints(a), keypoints(b)))

    def kind(self, index: int) -> str:
        path = Path(self.pool.name(index))
        if path.parent.name == "pool":
            return self.kinds.get(path.name, "")
        return path.parent.name.replace("_", " ")

    def measure(self, settings: Settings) -> dict[str, Any]:
        """Return recall by kind, precision, and the number of other photographs that are dropped."""
        matches, _ = held_out_matches(*self.signatures, settings, self.compare)
        kinds = np.array([self.kind(index) for index in range(len(self.pool))])
        names = [Path(self.pool.name(index)).name for index in range(len(self.pool))]
        right = np.array([
            match >= 0 and Path(self.views.name(int(self.tests.usable[match]))).name == name
            for name, match in zip(names, matches.tolist(), strict=True)
        ])  # fmt: skip
        dropped = matches >= 0
        recall = {kind: float(dropped[kinds == kind].mean()) for kind in KINDS}
        others = kinds == ""
        return {
            "recall": recall, "all": float(dropped[~others].mean()), "precision": float(right[dropped].mean()),
            "others dropped": int(dropped[others].sum()), "others": int(others.sum()), "copies": int((~others).sum()),
        }  # fmt: skip

    def duplicates(self, settings: Settings) -> tuple[float, int]:
        """Return the share of repeated photographs that are found, and how many different ones share a group."""
        group = duplicate_groups(self.signatures[0], settings, self.compare_pool)[0].tolist()
        names = [Path(self.pool.name(index)).name for index in range(len(self.pool))]
        together = set(zip(group, names, strict=True))
        return (len(names) - len(together)) / (len(names) - len(set(names))), len(together) - len(set(group))


def save(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


DECISIONS = {
    "default": Settings(),
    **{f"cosine alone, {t}": Settings(held_out_threshold=t, agreement=0) for t in (0.8, 0.9, 0.95)},
}
SWEEP = {
    f"cosine {t}, correlation {a}": Settings(held_out_threshold=t, agreement=a)
    for t, a in [*((t, 0.7) for t in (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)), *((0.5, a) for a in (0.01, 0.5, 0.6, 0.8, 0.9))]
}


DUPLICATES = {
    f"cosine {t}{words}": Settings(threshold=t, agreement=a)
    for words, a in ((" alone", 0), (", correlation 0.7", 0.7))
    for t in (0.97, 0.95, 0.9, 0.8)
}


def by_kind(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table of kinds (rows) and decisions (columns)."""
    columns = list(found.values())
    rows = [["", *found], ["---"] * (len(found) + 1)]
    rows += [[kind, *(f"{column['recall'][kind]:.2f}" for column in columns)] for kind in KINDS]
    rows.append([f"all {columns[0]['copies']}", *(f"{column['all']:.3f}" for column in columns)])
    rows.append(["precision", *(f"{column['precision']:.3f}" for column in columns)])
    others = [f"{column['others dropped']} of {column['others']}" for column in columns]
    return [f"| {' | '.join(row)} |" for row in [*rows, ["other photographs dropped", *others]]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=1000, help="photographs in all")
    parser.add_argument("--copied", type=int, default=40, help="photographs of each half that are copied, per kind")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    parser.add_argument("--halves", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--crops", type=float, nargs="*", default=[], help="crops of held-out images, embedded too")
    parser.add_argument("--work", type=Path, help="folder that keeps images and embeddings between runs")
    parser.add_argument("--sweep", action="store_true", help="measure other thresholds on the first half")
    parser.add_argument("--markdown", type=Path, help="page whose section real_curation is replaced")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    start, where, lines, results = time.monotonic(), machine(), list[str](), dict[str, Any]()
    files = list_images(options.photographs)
    files = [files[i] for i in np.random.default_rng(options.seed).permutation(len(files))[: options.images]]
    backbone = load_backbone(options.backbone, options.weights, frozen=True)
    for half in options.halves:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.work or Path(temporary)) / f"half-{half}"
            embedder = Embedder(backbone, folder / "embeddings")
            planted = Planted(files[half - 1 :: 2], options.copied, embedder, folder, options.crops)
            found = {words: planted.measure(settings) for words, settings in DECISIONS.items()}
            cost = (
                f"{planted.rate:.1f} images embedded per second, {len(planted.seconds)} pairs compared of "
                f"{len(planted.pool)} images and {len(planted.views)} held-out ones, "
                f"{1000 * np.mean(planted.seconds or [0]):.0f} ms of one core each"
            )
            if options.sweep and half == 1:
                found |= {words: planted.measure(settings) for words, settings in SWEEP.items()}
            repeated = {words: planted.duplicates(settings) for words, settings in DUPLICATES.items()}
            results[f"half {half}"] = found | {"cost": cost, "duplicates in the pool": repeated}
            table = by_kind({words: found[words] for words in DECISIONS})
            swept = [
                f"| {words} | {found[words]['all']:.3f} | {found[words]['precision']:.3f} | "
                f"{found[words]['others dropped']} of {found[words]['others']} |"
                for words in SWEEP
                if words in found
            ]
            if swept:
                swept = ["", "| decision | recall | precision | others dropped |", "|---|---|---|---|", *swept]
            swept += ["", "| duplicates in the pool | found | different photographs in one group |", "|---|---|---|"]
            swept += [f"| {words} | {share:.3f} | {wrong} |" for words, (share, wrong) in repeated.items()]
            chosen = "settings were chosen here" if half == 1 else "verification"
            lines += ["", prose(f"Half {half} ({chosen}): {cost}."), "", *table, *swept]
            print("\n".join(lines[-len(table) - len(swept) - 3 :]), flush=True)
    minutes = (time.monotonic() - start) / 60
    facts = (
        f"{options.backbone}, {len(files)} photographs, seed {options.seed}, {options.copied} copied per kind and "
        f"half, {where['threads']} threads, {minutes:.0f} minutes."
    )
    print(facts)
    if options.markdown:
        write_section(options.markdown, "real_curation", "\n".join([facts, *lines]))
    if options.json:
        content = {"machine": where, "minutes": round(minutes, 1), "protocol": facts, "results": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
