"""What guides of metadata (FINO, 2026) change: k-NN of what is kept and of what is forgotten, with and without them.

    python benchmarks/papers/fino.py --markdown docs/methods/fino.md
    python benchmarks/papers/fino.py --data IMAGES --metadata IMAGES.csv --measure OTHERS --measured OTHERS.csv \\
        --keep compound --forget plate microscope --config pretrain/small_data_dinov2 --steps 20000 --output runs/fino

guides: pretraining without guides, with columns to keep, with columns to forget, and with both. Training images are the
memory of k-NN, and images of another folder are classified by their 20 nearest neighbours: into the classes of each
column, and into those of the kept columns with neighbours that differ in every column to forget (the question of an
experiment on several days or microscopes). Without --data, drawn cells: five kinds under three stains and three
microscopes, all independent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _cells import draw_cells
from _options import add_pretraining, parse, parser
from _study import Made, device, once, pretrain, pretrained, run, spread, table

IMAGES = (1000, 400)  # drawn for training and for measurement


def guides(options: argparse.Namespace) -> Made:
    """Pretrain the four variants; measure each with every seed."""
    from dense.data.metadata import read_metadata
    from dense.data.unlabelled import open_images

    keep, forget = {"model.guides.keep": options.keep}, {"model.guides.forget": options.forget}
    variants: dict[str, dict[str, Any]] = {
        "no guides": {},
        "keep": keep,
        "forget": forget,
        "keep and forget": keep | forget,
    }
    for root, file in ((options.data, options.metadata), (options.measure, options.measured)):  # before any training
        read_metadata(file, open_images(root), str(root), [*options.keep, *options.forget])
    given = {pair.split("=", 1)[0] for pair in options.set}
    usual = {key: value for key, value in DOMAIN.items() if key not in given}
    lines, found = [], dict[str, Any]()
    for name, changes in variants.items():
        file = {"data.metadata": str(options.metadata)} if changes else {}
        found = {}
        for seed in range(options.seeds):
            row = pretrain(options, f"guides {name}", seed, **usual, **file, **changes)
            for column, value in measure(options, f"guides measured {name}-{seed}", Path(row["folder"])).items():
                found.setdefault(column, []).append(value)
        lines.append((name, *(spread(values) for column, values in found.items() if column != "chance")))
    lines.append(("chance", *(f"{value:.3f}" for value in found["chance"][0])))
    columns = [column for column in found if column != "chance"]
    said = f"keep {', '.join(options.keep)}; forget {', '.join(options.forget)}; {pretrained(options)}"
    return Made(table(("k-NN", *columns), lines), said)


def measure(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """Return the k-NN accuracies of the teacher's class tokens by column, and those of a guess."""
    import torch

    from dense.backbone import load_backbone
    from dense.data.metadata import read_metadata
    from dense.data.transforms import resize_image
    from dense.data.unlabelled import open_images

    columns = [*options.keep, *options.forget]
    sets = ((options.data, options.metadata), (options.measure, options.measured))

    def make() -> dict[str, Any]:
        backbone = load_backbone(folder / "backbone", frozen=True).to(device())
        size, features, labels = backbone.spec.image_size, list[Any](), list[Any]()
        for root, file in sets:
            images = open_images(root)
            metadata = read_metadata(file, images, str(root), columns)
            labels.append([[None if v != v else c.classes[int(v)] for c, v in zip(metadata.columns, row, strict=True)]
                           for row in metadata.values])  # fmt: skip
            parts = []
            for start in range(0, len(images), 100):
                some = range(start, min(start + 100, len(images)))
                pixels = torch.stack([torch.tensor(resize_image(images.read(i), size)).permute(2, 0, 1) for i in some])
                parts.append(backbone.image_features([backbone.normalise(pixels.to(device()))])[0].cpu())
            features.append(torch.nn.functional.normalize(torch.cat(parts).float(), dim=1))
        close = features[1] @ features[0].T  # queries, memory
        result: dict[str, Any] = {}
        for place, column in enumerate(columns):
            result[column] = accuracy(close, *([row[place] for row in rows] for rows in labels))
            if column in options.keep:
                places = [columns.index(other) for other in options.forget]
                memory, queries = ([[row[p] for p in places] for row in rows] for rows in labels)
                apart = torch.tensor(
                    [[all(a != b for a, b in zip(q, m, strict=True)) for m in memory] for q in queries]
                )
                result[f"{column}, from other {' and '.join(options.forget)}"] = accuracy(
                    close.masked_fill(~apart, -torch.inf), *([row[place] for row in rows] for rows in labels)
                )
        most = [
            max(map(own.count, own)) / len(own) for own in ([row[p] for row in labels[1]] for p in range(len(columns)))
        ]
        chance = [
            c for column, c in zip(columns, most, strict=True) for c in [c] * (2 if column in options.keep else 1)
        ]
        return result | {"chance": chance}

    row = once(options, name, make)
    return {key: value for key, value in row.items() if key not in ("minutes", "used")}


def accuracy(
    close: Any, memory: Sequence[Any], queries: Sequence[Any], k: int = 20, temperature: float = 0.07
) -> float:
    """Return the accuracy of weighted k-NN; close (queries, memory): cosines, -inf for what is no neighbour."""
    import torch

    classes = sorted({*memory, *queries} - {None})
    values, nearest = close.topk(min(k, len(memory)), dim=1)
    index = torch.tensor([-1 if label is None else classes.index(label) for label in memory])[nearest]
    votes = torch.zeros(len(queries), len(classes) + 1).scatter_add_(1, index + 1, (values / temperature).exp())
    right = [
        classes[int(best)] == own for best, own in zip(votes[:, 1:].argmax(1), queries, strict=True) if own is not None
    ]
    return sum(right) / len(right)


DOMAIN: dict[str, Any] = {"data.domain": "microscopy", "knn.train": None, "knn.val": None}
PARTS = {"guides": guides}


def main() -> int:
    of_script = parser(__doc__, list(PARTS), "cells")
    add_pretraining(of_script, steps=300)
    of_script.add_argument("--metadata", type=Path, help="CSV file of --data")
    of_script.add_argument("--measure", type=Path, help="folder of other images, on which k-NN is measured")
    of_script.add_argument("--measured", type=Path, help="their CSV file")
    of_script.add_argument("--keep", nargs="+", default=["cell"], metavar="COLUMN", help="columns of classes to keep")
    of_script.add_argument("--forget", nargs="+", default=["stain", "microscope"], metavar="COLUMN", help="to forget")
    options = parse(of_script)
    if options.data == "cells":
        counts = (48, 30) if options.quick else IMAGES
        options.data, options.measure = (str(options.output / name) for name in ("cells", "others"))
        options.metadata, options.measured = (
            draw_cells(Path(place), count, seed)
            for seed, (place, count) in enumerate(zip((options.data, options.measure), counts, strict=True))
        )
    elif None in (options.metadata, options.measure, options.measured):
        of_script.error("--data needs --metadata, and other images to measure: --measure with --measured")
    return run(options, "papers_fino", PARTS)


if __name__ == "__main__":
    raise SystemExit(main())
