"""Claim: features of a frozen ViT-S/14 at 518 px are read from the cache at least 20x as fast as they are computed.

The peer is the same training without a cache, which runs the backbone at every step. Random initialisation costs the
same as trained weights. Steps train a linear head (last layer) and a DPT (four layers, width 64) on 21 classes, with
the loss at four times the token grid and at full size; both alternate. The gain of an epoch assumes complete records;
the gain of a whole training includes its first epoch, which computes and writes them.

Reading includes checksums, and files that the system may hold in memory, as in the second epoch of a set that fits into
memory. Prints medians, and the medians of the ratios of alternating runs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from _claims import record
from _measure import alternate, arguments, median_ratio
from torch import Tensor

import heads
from dense.backbone import load_backbone
from dense.data.cache import FeatureCache, weights_digest
from dense.data.labelled.sample import Identity
from heads import Features

CLASSES = 21
LAYERS = (2, 5, 8, 11)
HEADS = {
    "linear": ({"name": "linear", "in_channels": [384]}, LAYERS[-1:]),
    "DPT": ({"name": "dpt", "in_channels": [384] * 4, "width": 64, "reassemble": [48, 96, 192, 384]}, LAYERS),
}


def compare(runs: Sequence[Callable[[], object]], rounds: int) -> tuple[list[float], float]:
    """Return the median seconds of each run, and the median ratio of the first to the last."""
    times = alternate(runs, rounds, warm_up=1)
    return [statistics.median(column) for column in times], median_ratio(times[0], times[-1])


class Case:
    """Features of a frozen backbone, computed or read, and a head that trains on them."""

    def __init__(self, name: str, folder: str, size: int, batch: int, precision: torch.dtype) -> None:
        spec, self.layers = HEADS[name]
        torch.manual_seed(0)
        self.backbone = load_backbone("vit_small_patch14_dinov2").requires_grad_(False).eval()
        self.head = heads.build({**spec, "outputs": {"labels": {"name": "classes", "count": CLASSES}}})
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-3)
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        self.labels = torch.randint(0, CLASSES, (batch, size, size))
        self.precision = precision
        self.template = self.features()
        key = {
            "weights": weights_digest(self.backbone.state_dict()), "spec": self.backbone.spec.to_dict(),
            "layers": self.layers, "norm": True, "precision": str(precision), "transform": f"as it is, {size} px",
        }  # fmt: skip
        self.cache = FeatureCache(folder, key, self.compute)
        self.identities = [Identity(f"{name} {i}", "") for i in range(batch)]

    def features(self) -> Features:
        """Compute features from the images."""
        with torch.no_grad(), torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            return self.backbone(self.backbone.normalise(self.images), layers=self.layers, norm=True)

    def compute(self, images: Tensor) -> list[Tensor]:
        """Return maps, then prefixes of `self.images`."""
        features = self.features()
        return [*features.maps, *features.prefix]

    def write(self) -> None:
        """Compute and write features, as in the first epoch."""
        features = self.compute(self.images)
        for i, identity in enumerate(self.identities):
            self.cache.put(identity, [tensor[i] for tensor in features])

    def read(self) -> Features:
        """Read features from the cache, in fp32 as in the training of a head."""
        records = [self.cache.get(identity) or [] for identity in self.identities]
        tensors = [torch.stack(same).float() for same in zip(*records, strict=True)]
        count = len(self.layers)
        return Features(
            tuple(tensors[:count]), tuple(tensors[count:]), self.template.image_size, self.template.padded_size,
            self.template.padding, self.template.strides, self.layers, True, True,
        )  # fmt: skip

    def step(self, source: Callable[[], Features], loss_size: int) -> None:
        """Run one training step of the head."""
        features = source().map(lambda t: t.float())
        logits = self.head(features, size=(loss_size, loss_size))["labels"]
        labels = self.labels
        if loss_size != labels.shape[-1]:
            labels = F.interpolate(labels[:, None].float(), (loss_size, loss_size), mode="nearest-exact")[:, 0].long()
        F.cross_entropy(logits, labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of a whole training")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the backbone")
    options = parser.parse_args()
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.precision]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, ViT-S/14 in {options.precision}, "
        f"{options.size} px, batch {options.batch}, medians of {options.rounds}; milliseconds per image"
    )
    for name in HEADS:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, folder, options.size, options.batch, precision)
            each = 1e3 / options.batch
            (computing, writing, reading), ratio = compare([case.features, case.write, case.read], options.rounds)
            size = case.cache.path(case.identities[0]).stat().st_size / 1e6
            print(
                f"{name}, {len(case.layers)} layer(s), {size:.1f} MB per image: compute {computing * each:.1f}, "
                f"compute and write {writing * each:.1f}, read {reading * each:.2f}: {ratio:.0f}x"
            )
            record(
                f"cached features, {name}, ViT-S/14, {options.size} px", peer="computing them",
                ours=f"{reading * each:.2f} ms", theirs=f"{computing * each:.1f} ms", ratio=ratio, least=20,
            )  # fmt: skip
            grid = 4 * (options.size // 14)
            for words, loss_size in ((f"4x the grid ({grid} px)", grid), ("full size", options.size)):
                runs = [partial(case.step, source, loss_size) for source in (case.features, case.read)]
                (plain, cached), gain = compare(runs, options.rounds)
                whole = options.epochs * plain / (plain + writing - computing + (options.epochs - 1) * cached)
                print(
                    f"  step, loss at {words}: without cache {plain * each:.0f}, with {cached * each:.0f}: an epoch "
                    f"{gain:.1f}x as fast, {options.epochs} epochs {whole:.1f}x"
                )
                record(
                    f"epoch with cached features, {name}, loss at {words}", peer="no cache",
                    ours=f"{cached * each:.0f} ms an image", theirs=f"{plain * each:.0f} ms", ratio=gain,
                )  # fmt: skip


if __name__ == "__main__":
    main()
