"""Queries against connected parts of classes, and against masks without labels, on held-out embedded scenes.

One panoptic model per row is measured as instances (mask AP of COCO, and AP of objects whatever their class), as a
partition (PQ) and by classes (mIoU). Its queries are in the last blocks of the backbone, which are frozen, trained, or
trained with all others. Beside it stand a DPT head, whose connected parts of a class are taken as instances, and
MaskCut, which knows no classes. The detector trained on MaskCut's masks follows instance/maskcut.

    python benchmarks/scene_masks.py --output runs/scene_masks --markdown docs/mask_queries.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _claims import record
from _measure import arguments, once, prose, spread, table, write_section

import dense
from dense.cli import main as verb
from dense.data.labelled.scenes import SceneSource
from dense.data.scenes import CLASSES
from dense.data.transforms import resize_image
from dense.discover.methods import discover
from dense.discover.tokencut import MaskCut
from dense.evaluate.masks import connected, partition
from dense.media.draw import write_picture
from dense.metrics import MaskAP, PanopticQuality, SegmentationMetrics
from dense.model.network import DenseModel
from dense.model.queries import Found, Partition, instances, panoptic, semantic

SIDE, TRAIN, VAL = 168, 1000, 100
LAST = "EoMT, last 2 blocks"
EOMT: dict[str, dict[str, Any]] = {  # which blocks are trained; the queries run through two
    "EoMT, frozen blocks": {"unfreeze": "none", "layer_decay": 1.0, "lr_scale": 1.0},
    LAST: {"unfreeze": 2},
    "EoMT, all blocks": {"unfreeze": "all"},
}
DPT, CUT, DETECTOR = "DPT, connected parts", "MaskCut, no labels", "EoMT trained on MaskCut"
ROWS = (*EOMT, DPT, CUT, DETECTOR)
COLUMNS = ("ap", "any", "pq", "miou")
NAMES = {"ap": "mask AP", "any": "mask AP of any class", "pq": "PQ"}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all if left out: {', '.join(ROWS)}")
    parser.add_argument("--backbone", default="photos_tiny")
    parser.add_argument("--weights", help="file of the backbone's weights, where it is not a shipped one")
    parser.add_argument("--steps", type=int, default=400, help="of every training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="32-true", help="of every training, such as bf16-mixed")
    parser.add_argument("--output", type=Path, help="folder of runs and rows, of which finished ones are kept")
    parser.add_argument("--markdown", type=Path, help="page whose section is replaced")
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if options.output is None:
        options.scratch = tempfile.TemporaryDirectory()
        options.output = Path(options.scratch.name)
    lines, measured = [], {}
    for name in options.rows or ROWS:
        found = [
            once(options, f"{name}-{seed}", lambda name=name, seed=seed: row(options, name, seed), used(options))
            for seed in range(1 if name == CUT else options.seeds)
        ]
        cells = (spread([one[key] for one in found]) if key in found[0] else "" for key in COLUMNS)
        measured[name] = found
        minutes = statistics.median(one["minutes"] for one in found)
        lines.append((name, *cells, f"{minutes:.1f}"))
        print(*lines[-1], sep="  ", flush=True)
    for peer, key in ((DPT, "ap"), (DPT, "pq"), (CUT, "any")):
        if LAST in measured and peer in measured:
            ours, theirs = ([one[key] for one in measured[name]] for name in (LAST, peer))
            record(
                f"queries on scenes, {NAMES[key]}", peer=peer, ours=spread(ours), theirs=spread(theirs),
                ratio=statistics.mean(ours) / statistics.mean(theirs),
            )  # fmt: skip
    text = table(("", "mask AP", "AP, any class", "PQ", "mIoU", "minutes"), lines)
    said = (
        f"{options.backbone}, {TRAIN} training and {VAL} validation scenes of {SIDE} px, {options.steps} steps, "
        f"{'seed 0' if options.seeds == 1 else f'{options.seeds} seeds: mean (least to most)'}."
    )
    if options.markdown:
        section = "scene_masks" if options.weights is None else f"scene_masks_{options.backbone}"
        write_section(options.markdown, section, f"{prose(said)}\n\n{text}")
    print(f"{said}\n\n{text}")
    return 0


def used(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "backbone": options.backbone, "weights": options.weights, "steps": options.steps,
        "precision": options.precision, "side": SIDE, "scenes": [TRAIN, VAL],
    }  # fmt: skip


def row(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Train a row and measure it on the validation scenes."""
    folder = options.output / "runs" / f"{ROWS.index(name)}-{seed}"
    common = {
        "model.backbone.name": options.backbone, "model.steps": options.steps, "model.seed": seed, "data.seed": seed,
        "val_every": options.steps, "trainer.precision": options.precision, "data.batch_size": 8,
    }  # fmt: skip
    if options.weights:
        common["model.backbone.weights"] = options.weights
    scenes = {"data.scenes": [TRAIN, VAL], "data.scene_size": SIDE}
    if name == CUT:
        backbone, cut = dense.load_backbone(options.backbone, weights=options.weights, frozen=True), MaskCut()

        def objects(images: torch.Tensor) -> dict[str, Any]:
            return {"any": without_labels(backbone, images, cut)}

        return measure(objects, backbone)
    if name in EOMT:
        changes = {f"model.tune.{key}": value for key, value in EOMT[name].items()}
        dense.train("panoptic/scenes_eomt", data="scenes", output=folder, **common, **scenes, **changes)
        model = DenseModel.from_pretrained(folder / "model").eval()
        return measure(lambda images: of_queries(model, images), model.backbone)
    if name == DPT:
        dense.train("segmentation/scenes_dpt", data="scenes", output=folder, **common, **scenes)
        model = DenseModel.from_pretrained(folder / "model").eval()
        return measure(lambda images: of_classes(model, images), model.backbone)
    images, annotations = cut_masks(options)
    changes = {
        "data.annotations": str(annotations), "data.resize": None, "data.crop_size": None, "data.workers": 0,
        "data.augment.scale": [1.0, 1.0], "model.backbone.weights": None, "model.head.queries": 20,
        "model.head.blocks": 2, "model.optim.lr": 1e-3, "model.optim.clip": 1.0,
        "model.tune": {"unfreeze": "all", "layer_decay": 0.8, "lr_scale": 0.1},
    }  # fmt: skip
    dense.train("instance/maskcut", data=str(images), output=folder, **(changes | common))
    model = DenseModel.from_pretrained(folder / "model").eval()
    return measure(lambda images: {"any": instances(*model(images).values(), (SIDE, SIDE))[0]}, model.backbone)


def cut_masks(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return a folder of the training scenes, and MaskCut's masks of them as `dense discover` writes them."""
    images, found = options.output / "scenes", options.output / "maskcut"
    if not (found / "annotations.json").is_file():
        source = SceneSource("train", TRAIN, SIDE, remember=False)
        for index in range(TRAIN):
            write_picture(images / f"{index:04}.png", source.read(index).image)
        words = ["--method", "maskcut", "--backbone", options.backbone, "--size", str(SIDE), "--output", str(found)]
        words += ["--weights", options.weights] if options.weights else []
        if verb(["discover", str(images), *words]):
            raise SystemExit("dense discover could not cut the scenes")
    return images, found / "annotations.json"


def measure(predict: Callable[[torch.Tensor], dict[str, Any]], backbone: Any) -> dict[str, float]:
    """Return the numbers of what `predict` gives of one normalised image."""
    source = SceneSource("val", VAL, SIDE, remember=False, segments=True)
    assert source.things is not None
    metrics: dict[str, Any] = {
        "ap": MaskAP(CLASSES), "any": MaskAP(("object",)), "pq": PanopticQuality(source.things, CLASSES),
        "miou": SegmentationMetrics(len(CLASSES)),
    }  # fmt: skip
    seen: set[str] = set()
    for index in range(VAL):
        sample = source.read(index)
        assert sample.segments is not None
        assert sample.labels is not None
        pixels = torch.from_numpy(resize_image(sample.image, SIDE))[None]
        with torch.inference_mode():
            found = predict(backbone.normalise(pixels))
        seen |= set(found)
        objects = sample.segments.of_things(source.things)
        anonymous = objects._replace(classes=torch.zeros_like(objects.classes))
        truth = {"ap": objects, "any": anonymous, "pq": sample.segments}
        for name, value in found.items():
            if name == "miou":
                metrics[name].update(value, torch.from_numpy(sample.labels)[None].long())
            else:
                metrics[name].update([value], [truth[name]])
    return {name: float(metrics[name].compute()[name if name != "any" else "ap"]) for name in COLUMNS if name in seen}


def of_queries(model: DenseModel, images: torch.Tensor) -> dict[str, Any]:
    """Return instances, segments and classes of a panoptic model of queries."""
    masks, classes = model(images).values()
    output = model.outputs["masks"]
    found = instances(masks, classes, (SIDE, SIDE))[0]
    thing = torch.tensor(output.things)[found.classes]
    objects = Found(*(values[thing] for values in found))
    things = torch.tensor([*output.things, False])
    object_or_not = torch.stack([classes[..., kind].logsumexp(-1) for kind in (things, ~things)], -1)
    return {
        "ap": objects, "any": instances(masks, object_or_not, (SIDE, SIDE))[0],
        "pq": panoptic(masks, classes, (SIDE, SIDE), output.things)[0],
        "miou": semantic(masks, classes, (SIDE, SIDE)).argmax(1),
    }  # fmt: skip


def of_classes(model: DenseModel, images: torch.Tensor) -> dict[str, Any]:
    """Return connected parts, segments and classes of a model of classes."""
    scores = model(images).softmax(1)[0]
    things = tuple(name not in ("sky", "ground") for name in CLASSES)
    found = connected(scores, things)
    segments: Partition = partition(found, scores, things)
    anything = found._replace(classes=torch.zeros_like(found.classes))
    return {"ap": found, "any": anything, "pq": segments, "miou": scores.argmax(0)[None]}


def without_labels(backbone: Any, images: torch.Tensor, cut: MaskCut) -> Found:
    """Return MaskCut's objects, the most certain first."""
    found = discover(backbone, images, cut)
    masks, scores = found.masks[0], found.scores[0]
    order = [k for k in scores.argsort(descending=True).tolist() if masks[k].any()]
    return Found(masks[order], torch.zeros(len(order), dtype=torch.long), scores[order])


if __name__ == "__main__":
    sys.exit(main())
