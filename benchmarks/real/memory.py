"""Segmentation without training: one annotated dog and nine others, memories of CamVid, and the speed of their search.

    python benchmarks/real/memory.py dogs PHOTOS --weights dinov2_vits14.pth
    python benchmarks/real/memory.py camvid CAMVID --weights dinov2_vits14.pth --size 364
    python benchmarks/real/memory.py speed CAMVID --weights dinov2_vits14.pth --size 364

dogs: ten photographs of the imagenet-sample-images repository, whose outlines (dogs.json, in tenths of width and
height) were drawn by hand and moved to the edges by GrabCut. Each is the annotated one for the nine others; mean IoU.
camvid: mIoU of the validation images against layer, number of remembered patches and neighbours.
speed: one image among all training patches, repeated with noise up to --patches: exact, in lists, and torch.cdist.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import arguments, seconds, table, write_section

import dense
from dense.backbone.spec import resolve_layers
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import Labelled
from dense.discover.refine import grab_cut
from dense.memory import remember
from dense.memory.budget import Budget
from dense.memory.build import annotated
from dense.metrics import SegmentationMetrics
from dense.model.network import Inference
from dense.predict import Predictor
from heads import MemoryHead
from heads.outputs import Classes

MARGIN = 0.009  # of the longer side, within which GrabCut moves an outline


class One:
    """One annotated image."""

    title, depth_kind, classes = "one", None, ("background", "object")

    def __init__(self, image: Any, mask: Any) -> None:
        self.image, self.mask = image, mask

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "one"

    def read(self, index: int) -> Labelled:
        return Labelled(self.image, self.mask, None, "one")


def dogs(options: Namespace) -> str:
    """Each dog by each other one, by both methods, with and without refinement."""
    backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
    items = []
    for name, outline in json.loads(Path(__file__).with_name("dogs.json").read_text()).items():
        image = cv2.imread(str(next(options.data.glob(f"{name}.*"))))[..., ::-1]
        height, width = image.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [(np.array(outline) / 10 * (width, height)).astype(np.int32)], 1)
        margin = max(2, round(MARGIN * max(height, width)))
        items.append((np.ascontiguousarray(image), grab_cut(image, mask > 0, margin).astype(np.uint8)))
    lines, sheets = [], {}
    for method, side in (("knn", options.size), ("insid3", options.size), ("insid3", (options.size, options.size))):
        found: dict[str, list[float]] = {"none": [], "guided": []}
        start = time.perf_counter()
        for i, (image, mask) in enumerate(items[: options.references]):
            model = remember(method, backbone, One(image, mask), resize=side)  # type: ignore[arg-type]
            for j, (other, truth) in enumerate(items):
                for refine in found if i != j else ():
                    labels = Predictor.of(model, refine=refine)(other).labels
                    found[refine].append((labels & truth).sum() / (labels | truth).sum())
                    if options.figure and i == options.shown and refine == "guided":
                        sheets[method, j] = labels
        minutes = (time.perf_counter() - start) / 60
        row = [f"{statistics.mean(v):.3f} ({min(v):.2f} to {max(v):.2f})" for v in found.values()]
        lines.append((method, "square" if isinstance(side, tuple) else "shorter side", *row, f"{minutes:.1f}"))
        print(*lines[-1], flush=True)
    if options.figure:
        draw(items, sheets, options)
    return table(("method", str(options.size), "IoU", "IoU, refined", "minutes"), lines)


def draw(items: list[Any], sheets: dict[tuple[str, int], Any], options: Namespace) -> None:
    """Write the annotated dog and what each method finds in the others."""
    from dense.media.draw import contain, sheet, write_picture

    def shown(image: Any, mask: Any) -> Any:
        return contain(np.where(mask[..., None] > 0, image, image // 4), 190)

    first = items[options.shown]
    others = [contain(image, 190) for i, (image, _) in enumerate(items) if i != options.shown]
    rows = [[shown(*first), *others[:5]]]
    for method in ("knn", "insid3"):
        found = [shown(items[j][0], m) for (name, j), m in sorted(sheets.items()) if name == method][:5]
        rows.append([np.full_like(rows[0][0], 255), *found])
    write_picture(options.figure, sheet(rows))


@torch.inference_mode()
def patches(options: Namespace, split: str, layers: list[int]) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the images and, for each, the unit vectors (L, N, D) and the shares of classes of its patches."""
    backbone = dense.load_backbone(options.backbone, options.weights, frozen=True)
    source = open_labelled(options.data, split, targets=("labels",))
    found = []
    chosen = resolve_layers(layers, backbone.spec)
    for features, shares in annotated(backbone, source, chosen, True, Inference(resize=options.size)):
        maps = torch.stack([F.normalize(m[0].float(), dim=0) for m in features.maps])  # L, D, h, w
        found.append((maps.half(), shares))
    return source, found


def camvid(options: Namespace) -> str:
    """mIoU of the validation images; features are computed once."""
    layers = options.layers
    source, train = patches(options, "train", layers)
    val_source, val = patches(options, "val", layers)
    classes, lines = len(source.classes), []

    def score(place: int, most: int, neighbours: int, temperature: float) -> float:
        budget, bank, held = Budget(most, len(train), "balanced", 0), [], []
        for maps, shares in train:
            own, known = maps[place].flatten(1).T, shares.sum(1) > 0
            own, share = own[known], shares[known] / shares[known].sum(1, keepdim=True)
            chosen = budget.of_image(len(own), share)
            bank.append(own[chosen])
            held.append(share[chosen])
        vectors = torch.cat(bank).float()
        head = MemoryHead(vectors.shape[1], {"labels": Classes(classes)}, len(vectors), neighbours, temperature)
        head.fill(vectors, torch.cat(held))
        metric = SegmentationMetrics(classes)
        for index, (maps, _) in enumerate(val):
            query = maps[place].float()
            cosines, places = head.nearest(query.flatten(1).T)
            weights = (cosines / temperature).softmax(1)
            votes = torch.einsum("qk,qkc->qc", weights, head.shares[places].float()).T.unflatten(1, query.shape[1:])
            truth = torch.from_numpy(val_source.read(index).labels)[None].long()
            votes = F.interpolate(votes[None], size=truth.shape[1:], mode="bilinear")
            metric.update(votes.argmax(1), truth)
        print(layers[place], len(vectors), neighbours, temperature, metric.compute()["miou"], flush=True)
        return metric.compute()["miou"]

    best = 0
    for place, layer in enumerate(layers):
        lines.append((str(layer), "10,240", "30", "0.02", f"{score(place, 10_240, 30, 0.02):.3f}"))
        best = place if float(lines[-1][-1]) > float(lines[best][-1]) else best
    for most, neighbours, temperature in options.sweep:
        value = score(best, most, neighbours, temperature)
        lines.append((str(layers[best]), f"{most:,}", str(neighbours), str(temperature), f"{value:.3f}"))
    return table(("block, from 0", "patches", "neighbours", "temperature", "mIoU"), lines)


def speed(options: Namespace) -> str:
    """Search one validation image."""
    _, train = patches(options, "train", options.layers[:1])
    _, val = patches(options, "val", options.layers[:1])
    bank = torch.cat([maps[0].flatten(1).T for maps, _ in train]).float()
    query, noise = val[0][0][0].flatten(1).T.float(), torch.Generator().manual_seed(0)
    own = bank
    while len(bank) < options.patches:
        more = F.normalize(own + 0.01 * torch.randn(own.shape, generator=noise), dim=1)
        bank = torch.cat([bank, more[: options.patches - len(bank)]])
    outputs, shares = {"labels": Classes(2)}, torch.zeros(len(bank), 2)
    exact = MemoryHead(bank.shape[1], outputs, len(bank))
    exact.fill(bank, shares)
    truth = exact.nearest(query)[1]
    times = {"exact": seconds(lambda: exact.nearest(query)), "torch.cdist": seconds(lambda: brute(query, bank, 30))}
    count = int(4 * len(bank) ** 0.5)
    lists = MemoryHead(bank.shape[1], outputs, len(bank), lists=count, probes=32)
    building = seconds(lambda: lists.fill(bank, shares)) + seconds(lists.index)
    lines = [(name, f"{t:.2f}", f"{times['torch.cdist'] / t:.1f}", "1.000") for name, t in times.items()]
    for probes in (16, 32, 64):
        lists.index().nprobe = probes
        found = lists.nearest(query)[1]
        recall = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / truth.numel()
        took = statistics.median(seconds(lambda: lists.nearest(query)) for _ in range(3))
        words = f"{count} lists, {probes} probes"
        lines.append((words, f"{took:.2f}", f"{times['torch.cdist'] / took:.1f}", f"{recall:.4f}"))
    memory = f"{len(bank):,} patches of {bank.shape[1]}: {bank.numel() * 2 / 1e6:.0f} MB exact, "
    memory += f"{bank.numel() * 6 / 1e6:.0f} MB with lists, built in {building:.0f} s"
    header = (f"{len(query)} queries", "seconds", "times faster than torch.cdist", "recall of 30")
    return f"{memory}.\n\n{table(header, lines)}"


def brute(query: torch.Tensor, bank: torch.Tensor, k: int, step: int = 10_000) -> torch.Tensor:
    """Return the k nearest by torch.cdist, in parts."""
    best = None
    for start in range(0, len(bank), step):
        values, places = torch.cdist(query, bank[start : start + step]).topk(k, largest=False)
        values, places = (values, places + start) if best is None else (
            torch.cat([best[0], values], 1), torch.cat([best[1], places + start], 1)
        )  # fmt: skip
        values, order = values.topk(k, largest=False)
        best = values, places.gather(1, order)
    assert best is not None
    return best[1]


def triple(text: str) -> tuple[int, int, float]:
    most, neighbours, temperature = text.split(",")
    return int(most), int(neighbours), float(temperature)


def main() -> int:
    parts = {"dogs": dogs, "camvid": camvid, "speed": speed}
    parser = arguments(__doc__)
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("data", type=Path, help="folder of the photographs, or of CamVid")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int, default=448, help="shorter side")
    parser.add_argument("--references", type=int, default=10, help="annotated dogs, each for all others")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 11], help="blocks, from 0; the best is swept")
    parser.add_argument(
        "--sweep", type=triple, nargs="+", metavar="PATCHES,NEIGHBOURS,TEMPERATURE",
        default=[(1024, 30, 0.02), (102_400, 30, 0.02), (102_400, 10, 0.02), (102_400, 30, 0.07), (10**7, 30, 0.02)],
    )  # fmt: skip
    parser.add_argument("--patches", type=int, default=1_000_000, help="of the speed test")
    parser.add_argument("--figure", type=Path, help="file for what the dogs look like")
    parser.add_argument("--shown", type=int, default=7, help="the annotated dog of the figure")
    parser.add_argument("--markdown", type=Path, help="page whose section is replaced")
    options = parser.parse_args()
    text = parts[options.part](options)
    print(f"\n{text}\n")
    if options.markdown:
        write_section(options.markdown, f"memory {options.part}", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
