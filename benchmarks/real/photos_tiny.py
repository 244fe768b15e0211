"""The backbone that ships beside its teacher, `scenes_tiny` and its own random initialisation; and its images.

    python benchmarks/real/photos_tiny.py REAL --weights dinov2_vits14.pth --output runs/photos_tiny
    python benchmarks/real/photos_tiny.py REAL list --weights dinov2_vits14.pth --output runs/photos_tiny

REAL holds camvid/, kitchen/, photos/ and cifar10/train/ (README.md of this folder names their public sources). The
first line measures the stored file; finished rows are kept in --output. The second writes list.txt there, the training
images for `dense pretrain --config pretrain/photos_tiny`: all photographs, CamVid's training images, every third one of
the kitchen's, 1,200 of CIFAR-10 without those on which benchmarks/real/cifar10.py validates or trains, and 300 embedded
scenes of 192 px, which are written beside the list.

Every number is of frozen features, the same recipe for all: a linear probe of patches on CamVid and ridge regression of
log depth in the kitchen (`dense evaluate probe --data`, the last layer, and four even layers or all three together),
k-NN of CIFAR-10 enlarged to 112 px, and probes of embedded scenes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path

import _rows
import torch
from _measure import table
from cifar10 import draw

import dense
from dense.backbone import Backbone
from dense.evaluate.classification.features import randomly_initialised
from dense.evaluate.probe import SceneProbe

LIST = "list"  # in place of a row
NAMES = {"photos_tiny": "photos_tiny", "teacher": "DINOv2-S", "scenes_tiny": "scenes_tiny", "random": "random init."}
MEASURES = ("camvid", "kitchen", "cifar10", "scenes")
SIDE = 224  # of the images whose time is measured


def write_list(real: Path, path: Path) -> None:
    """Write the list of training images."""
    from PIL import Image

    from dense.data.scenes import render

    chosen = random.Random(0)
    lists = draw(real / "cifar10/train", path.parent, 5000, 1000, 0)
    held = {line.split("\t")[0] for file in lists for line in Path(file).read_text().splitlines()}
    small = [p for p in sorted((real / "cifar10/train").rglob("*.jpg")) if str(p.resolve()) not in held]
    images = sorted((real / "photos").glob("*")) + sorted((real / "camvid/train/images").glob("*"))
    images += sorted((real / "kitchen/train/images").glob("*"))[::3] + chosen.sample(small, 1200)
    for number in range(300):
        images.append(path.parent / "scenes" / f"{number:04d}.png")
        images[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(render(1000, number, (192, 192)).image).save(images[-1])
    chosen.shuffle(images)
    path.write_text("".join(f"{image.resolve()}\n" for image in images))


def labelled(backbone: Backbone, data: Path, measure: str, size: int, seed: int) -> _rows.Row:
    """Return the linear probe of the last layer and of several layers, on labelled images."""
    layers = ["last", "even4"]
    found = dense.evaluate(backbone, data, "probe", layers=layers, norm=True, size=size, seed=seed)
    scores = [v for k, v in found.numbers["scores"].items() if k.endswith(f"linear {measure}")]
    return {"last": scores[0], "several": scores[1]}


def neighbours(backbone: Backbone, lists: tuple[str, str], folder: Path, seed: int) -> _rows.Row:
    """Return k-NN accuracies by the class token and by the average of patches."""
    found = dense.evaluate(
        backbone, lists[1], "knn", train=lists[0], resize=112, crop=112, readout=["class", "average"], holdout=0,
        cache=folder, seed=seed, workers=0,
    )  # fmt: skip
    scores = {k: v for k, v in found.numbers["scores"].items() if k.endswith("top1 k=20")}
    return {name: next(v for k, v in scores.items() if k.startswith(name)) for name in ("class", "average")}


def scenes(backbone: Backbone, probes: list[SceneProbe]) -> _rows.Row:
    """Return the probes of embedded scenes, a list over seeds each."""
    found = [probe(backbone) for probe in probes]
    return {key: [each[key] for each in found] for key in found[0]}


def seconds(backbones: dict[str, Backbone], rounds: int = 15) -> _rows.Row:
    """Return the median time of each for an image of 224 px, alternating."""
    from _measure import alternate

    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        times = alternate([lambda b=b: b(image) for b in backbones.values()], rounds, warm_up=2)
    return {name: statistics.median(own) for name, own in zip(backbones, times, strict=True)}


def main() -> int:
    parser = _rows.parser(__doc__, NAMES)
    parser.add_argument("--student", default="photos_tiny", help="a name, or the directory of another candidate")
    parser.add_argument("--bank", type=int, default=2000, help="images of CIFAR-10 in the bank of k-NN")
    parser.add_argument("--val", type=int, default=500, help="images that it classifies; with --bank at most 6,000")
    parser.add_argument("--measures", nargs="+", default=MEASURES, choices=MEASURES, help="all if left out")
    parser.add_argument("--seeds", type=int, default=3, help="of the probes of scenes")
    options = parser.parse_args()
    if options.rows == [LIST]:
        options.output.mkdir(parents=True, exist_ok=True)
        write_list(options.data, options.output / "list.txt")
        return 0
    student = dense.load_backbone(options.student, frozen=True)
    backbones = {
        "photos_tiny": student,
        "teacher": dense.load_backbone(options.backbone, options.weights, frozen=True),
        "scenes_tiny": dense.load_backbone("scenes_tiny", frozen=True),
        "random": randomly_initialised(student, options.seed),
    }
    wanted = {name: backbones[name] for name in options.rows or NAMES}
    lists = draw(options.data / "cifar10/train", options.output, options.bank, options.val, options.seed)
    probes: list[SceneProbe] = []
    found: dict[str, _rows.Row] = {}
    for name, backbone in wanted.items():

        def of_scenes(b: Backbone = backbone) -> _rows.Row:
            if not probes:
                probes.extend(SceneProbe(300, 150, 112, seed) for seed in range(options.seeds))
            return scenes(b, probes)

        plan: dict[str, Callable[[], _rows.Row]] = {
            "camvid": lambda b=backbone: labelled(b, options.data / "camvid", "miou", 224, options.seed),
            "kitchen": lambda b=backbone: labelled(b, options.data / "kitchen", "abs_rel", 224, options.seed),
            "cifar10": lambda b=backbone: neighbours(b, lists, options.output / "features", options.seed),
            "scenes": of_scenes,
        }
        for what in options.measures:
            row = _rows.once(options, f"{name}-{what}", plan[what])
            found.setdefault(name, {})[what] = row
            print(name, what, row, flush=True)
    if len(wanted) < len(NAMES):
        return 0
    for name in NAMES:  # rows of earlier calls
        for what in set(MEASURES) - set(options.measures):
            if (options.output / "rows" / f"{name}-{what}.json").is_file():
                found[name][what] = _rows.once(options, f"{name}-{what}", dict)
    times = _rows.once(options, "seconds", lambda: seconds(backbones))
    return _rows.finish(options, "photos_tiny", markdown(found, times))


def markdown(found: dict[str, _rows.Row], times: _rows.Row) -> str:
    """The table of docs/results.md."""
    from _measure import spread

    lines: list[tuple[str, str, Callable[[_rows.Row], str]]] = [
        ("CamVid val, linear mIoU, last layer", "camvid", lambda row: f"{row['last']:.3f}"),
        ("the same, even4", "camvid", lambda row: f"{row['several']:.3f}"),
        ("kitchen val, ridge depth abs_rel, last layer", "kitchen", lambda row: f"{row['last']:.3f}"),
        ("the same, even4", "kitchen", lambda row: f"{row['several']:.3f}"),
        ("CIFAR-10 k-NN, class token", "cifar10", lambda row: f"{row['class']:.3f}"),
        ("CIFAR-10 k-NN, average of patches", "cifar10", lambda row: f"{row['average']:.3f}"),
        ("scenes, linear patch mIoU", "scenes", lambda row: spread(row["segmentation_miou"])),
        ("scenes, ridge depth abs_rel", "scenes", lambda row: spread(row["depth_abs_rel"])),
        ("scenes, k-NN of the largest object, its patches", "scenes", lambda row: spread(row["knn_object"])),
    ]
    cells = [
        (words, *(value(found[name][what]) if what in found[name] else "-" for name in NAMES))
        for words, what, value in lines
    ]
    cells.append(("ms per image of 224 px", *(f"{1000 * times[name]:.0f}" for name in NAMES)))
    return table(("measured", *NAMES.values()), cells)


if __name__ == "__main__":
    raise SystemExit(main())
