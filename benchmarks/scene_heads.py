"""The gain of heads from pretraining: linear and DPT, depth and segmentation, on held-out embedded scenes.

Heads, losses and optimisers are those of the recipes scenes_linear and scenes_dpt, on frozen features of four kinds: a
pretrained backbone, the same network with random initialisation, positions alone (without image content), and none (the
mean depth, the most frequent class). Heads train on scenes from camera heights of 0.6 to 2.6 m. They are evaluated on
other scenes from the same heights, and from 3.0 to 4.5 m. Three seeds of heads and of random initialisation; the table
shows mean and range.

    python benchmarks/scene_heads.py --backbone DIRECTORY --markdown docs/results.md
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from _claims import record
from _measure import arguments, prose, spread, write_section
from torch import Tensor

import heads
from dense import losses
from dense.backbone import Backbone, load_backbone
from dense.backbone.spec import resolve_layers
from dense.data.labelled.sample import Batch
from dense.data.labelled.scenes import SceneSource
from dense.data.scenes import CLASSES
from dense.metrics import DepthMetrics, SegmentationMetrics
from dense.recipes import find_config
from dense.tasks.base import target_size
from dense.tasks.depth import depth_target
from dense.tasks.options import OptimOptions, TargetOptions
from heads import Features

UNSEEN = (3.0, 4.5)
CAP = (0.1, 60.0)
SIZE = 96
HEADS, TASKS = ("linear", "dpt"), ("depth", "segmentation")
TARGET = TargetOptions(size="grid4", min_depth=CAP[0], max_depth=CAP[1])
Numbers = dict[str, float]


def recipe(task: str, head_name: str) -> dict[str, Any]:
    """Return head, loss and optimiser of a recipe of the package."""
    return yaml.safe_load(find_config(f"{task}/scenes_{head_name}").read_text())["model"]["init_args"]


class Scenes:
    """Scenes in memory: images and targets."""

    def __init__(self, split: str, length: int, height: tuple[float, float] | None = None) -> None:
        source = SceneSource(split, length, SIZE, camera_height=height, remember=False)
        samples = [source.read(i) for i in range(length)]
        self.images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in samples])
        self.labels = torch.stack([torch.from_numpy(s.labels).long() for s in samples])  # type: ignore[arg-type]
        self.depth = torch.stack([torch.from_numpy(s.depth)[None] for s in samples])  # type: ignore[arg-type]


def features_of(backbone: Backbone, images: Tensor) -> Features:
    """Return features of four layers for all images."""
    layers = resolve_layers("even4", backbone.spec)
    with torch.inference_mode():
        parts = [backbone(backbone.normalise(some), layers=layers, norm=True) for some in images.split(50)]
    maps = tuple(torch.cat([p.maps[i] for p in parts]) for i in range(len(layers)))
    prefix = tuple(torch.cat([p.prefix[i] for p in parts]) for i in range(len(layers)))
    return replace(parts[0], maps=maps, prefix=prefix)


def positions(like: Features) -> Features:
    """Return sines and cosines of patch positions instead of features."""
    batch, _, height, width = like.maps[0].shape
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [f(math.pi * k * c) for k in (0.5, 1, 2, 4) for c in (x, y) for f in (torch.sin, torch.cos)]
    grid = torch.stack(waves).expand(batch, -1, -1, -1)  # B, 16, h, w
    return replace(like, maps=(grid,) * len(like.maps), prefix=tuple(t[..., :16] for t in like.prefix))


def rows(features: Features, index: Tensor) -> Features:
    """Return the features of some images."""
    return features.map(lambda t: t[index])


def train(head_name: str, task: str, features: Features, scenes: Scenes, steps: int, seed: int) -> heads.DenseHead:
    """Train a head on features in memory."""
    torch.manual_seed(seed)
    config = recipe(task, head_name)
    spec = config["head"] | {"in_channels": [m.shape[1] for m in features.maps]}
    if task == "segmentation":
        spec["outputs"] = {"labels": spec["outputs"]["labels"] | {"count": len(CLASSES)}}
    head, loss, optim = heads.build(spec).train(), losses.build(config["loss"]), OptimOptions(**config["optim"])
    kind = getattr(head.outputs.get("depth"), "kind", "metric")
    optimizer = torch.optim.AdamW(head.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    size = target_size(features, TARGET.size)
    assert size is not None
    targets = Batch(labels=scenes.labels, depth=scenes.depth).resized(size)
    for step in range(steps):
        index = torch.randint(len(scenes.images), (16,))
        maps = head(rows(features, index), size=size)
        assert targets.depth is not None and targets.labels is not None
        if task == "depth":
            target, mask = depth_target(targets.depth[index], "metric", kind, TARGET)
            value, _ = loss(maps["depth"], target, mask)
        else:
            value, _ = loss(maps["labels"], targets.labels[index])
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * optim.factor(step, steps)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), optim.clip or math.inf)
        optimizer.step()
    return head.eval()


@torch.inference_mode()
def evaluate(predict: Callable[[Tensor], Tensor], task: str, scenes: Scenes) -> Numbers:
    """Return the metrics of a function from image indices to predictions."""
    metric: Any = DepthMetrics(cap=CAP) if task == "depth" else SegmentationMetrics(len(CLASSES))
    for index in torch.arange(len(scenes.images)).split(50):
        if task == "depth":
            ground_truth = scenes.depth[index]
            metric.update(predict(index), ground_truth, ground_truth.isfinite())
        else:
            metric.update(predict(index), scenes.labels[index])
    found = metric.compute()
    return {k: found[k] for k in (("abs_rel", "delta1") if task == "depth" else ("miou",))}


def prediction(head: heads.DenseHead, features: Features, name: str, index: Tensor) -> Tensor:
    """Return logits, or depth in metres, of some images."""
    values = head(rows(features, index))[name]
    return values.exp() if getattr(head.outputs[name], "kind", "") == "log" else values


def constant(task: str, scenes: Scenes, evaluated: Scenes) -> Callable[[Tensor], Tensor]:
    """Return a function that always predicts the mean log depth, or the most frequent class."""
    if task == "depth":
        known = scenes.depth[(scenes.depth > CAP[0]) & (scenes.depth < CAP[1])]
        return lambda index: torch.full_like(evaluated.depth[index], float(known.log().mean().exp()))
    label = int(scenes.labels.flatten().bincount().argmax())
    return lambda index: torch.full_like(evaluated.labels[index], label)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="scenes_tiny", help="directory of a pretrained backbone, or a name")
    parser.add_argument("--weights", default=None, help="its weights, for a name")
    parser.add_argument("--train", type=int, default=300, help="training scenes")
    parser.add_argument("--val", type=int, default=100, help="evaluation scenes per camera height")
    parser.add_argument("--steps", type=int, default=150, help="training steps per head, 16 scenes each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--markdown", type=Path, default=None, help="file for the table")
    options = parser.parse_args()
    start = time.perf_counter()
    pretrained = load_backbone(options.backbone, options.weights, frozen=True)
    sets = {
        "train": Scenes("train", options.train),
        "seen heights": Scenes("val", options.val),
        "unseen heights": Scenes("val", options.val, UNSEEN),
    }

    def features(backbone: Backbone) -> dict[str, Features]:
        return {name: features_of(backbone, scenes.images) for name, scenes in sets.items()}

    known = features(pretrained)
    blind = {name: positions(one) for name, one in known.items()}
    found: dict[tuple[str, str, str], list[Numbers]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(1000 + seed)
        fresh = features(Backbone.from_spec(pretrained.spec).freeze())
        for kind, maps in (("pretrained", known), ("random", fresh), ("positions", blind)):
            for head_name in HEADS:
                for task in TASKS:
                    head = train(head_name, task, maps["train"], sets["train"], options.steps, seed)
                    for where in ("seen heights", "unseen heights"):
                        name = "depth" if task == "depth" else "labels"
                        predict = partial(prediction, head, maps[where], name)
                        found.setdefault((kind, head_name, where), []).append(evaluate(predict, task, sets[where]))
                    print(
                        f"seed {seed} {kind} {head_name} {task}: {found[(kind, head_name, 'seen heights')][-1]}",
                        flush=True,
                    )
    for where in ("seen heights", "unseen heights"):
        for task in TASKS:
            numbers = evaluate(constant(task, sets["train"], sets[where]), task, sets[where])
            found.setdefault(("mean", "none", where), []).append(numbers)
    for head_name in HEADS:
        for number, sign in (("abs_rel", -1), ("miou", 1)):
            ours, theirs = (
                [n[number] for n in found[(kind, head_name, "seen heights")] if number in n]
                for kind in ("pretrained", "random")
            )
            gain = sign * (statistics.mean(ours) - statistics.mean(theirs))
            record(
                f"{head_name} head on scenes, {number}", peer="the same network with random initialisation",
                ours=spread(ours), theirs=spread(theirs), value=gain, least=0,
            )  # fmt: skip
    text = table(found, options, time.perf_counter() - start)
    print(text)
    if options.markdown is not None:
        write_section(options.markdown, "scene_heads", text)


def table(found: dict[tuple[str, str, str], list[Numbers]], options: argparse.Namespace, seconds: float) -> str:
    """Return means and ranges over seeds as Markdown."""
    about = (
        f"{options.train} scenes of {SIZE} px to train on, {options.val} others to evaluate, {options.steps} steps of "
        f"16, {options.seeds} seeds of heads and of random initialisation; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {seconds:.0f} s. Mean (least to most)."
    )
    titles = {
        "pretrained": options.backbone, "random": "random initialisation", "positions": "positions only",
        "mean": "constant prediction", "dpt": "DPT", "none": "",
    }  # fmt: skip
    lines = [prose(about), ""]
    for where in ("seen heights", "unseen heights"):
        lines += [f"Cameras at {where}:", "", "| features | head | abs_rel | delta1 | mIoU |", "|---|---|---|---|---|"]
        for (kind, head, place), numbers in found.items():
            if place == where:
                cells = [spread([n[k] for n in numbers if k in n]) for k in ("abs_rel", "delta1", "miou")]
                lines.append(f"| {titles[kind]} | {titles.get(head, head)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
