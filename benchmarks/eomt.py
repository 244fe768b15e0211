"""Queries in the last blocks of a ViT against EoMT of transformers: time, memory, and equal predictions.

Both have the same random weights: ViT-S/16 with four registers, 100 queries in the last three blocks.
- image: one image of 640 x 640 px, without masked attention, as trained models predict;
- masked: the same with masked attention in every block;
- step: a training step of one image of 320 x 320 px with 20 objects: forward, loss of all predictions, backward;
- matching: costs and assignment of 100 queries and 50 objects of 640 x 640 px at 12,544 points.

Points are drawn at random on each side, by which values of a step and matches differ.

Each number is the median of paired runs, alternating with ours; memory is the peak of resident memory during one call,
in a process of its own, beyond what was resident before it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from _claims import record, versioned  # noqa: E402
from _measure import alternate, arguments, last_number, median_ratio, peak_memory  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dense.losses import MaskLoss  # noqa: E402
from dense.model.network import DenseModel  # noqa: E402
from dense.published.recognise import load_published  # noqa: E402

Call = Callable[[], Tensor]
CLASSES, QUERIES = 80, 100


def models(size: int, masked: bool) -> tuple[DenseModel, Any]:
    """Return ours and theirs, with the same weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.EomtConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=size, patch_size=16, num_blocks=3,
        num_queries=QUERIES, num_labels=CLASSES,
    )  # fmt: skip
    peer = transformers.EomtForUniversalSegmentation(config).eval()
    for module in peer.modules():  # initialise so that masks have both signs
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
    peer.attn_mask_probs.fill_(float(masked))
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return load_published(folder, kind="instance"), peer


def objects_of(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return masks (N, H, W) of random boxes, and their classes."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(count, 2, 2, generator=generator) * size).sort(1).values
    rows = torch.arange(size)
    inside = [(rows >= corners[:, 0, k, None]) & (rows <= corners[:, 1, k, None] + 8) for k in range(2)]
    return inside[0][:, :, None] & inside[1][:, None], torch.randint(CLASSES, (count,), generator=generator)


def image_ways(masked: bool) -> tuple[Call, Call]:
    """Return ours and theirs: an image to masks."""
    model, peer = models(640, masked)
    images = torch.randn(1, 3, 640, 640)

    def ours() -> Tensor:
        with torch.inference_mode():
            return model(images)["mask_logits"]  # type: ignore[index]

    def theirs() -> Tensor:
        with torch.inference_mode():
            return peer(images).masks_queries_logits

    return ours, theirs


def step_ways() -> tuple[Call, Call]:
    """Return ours and theirs: a training step, without the optimiser."""
    model, peer = models(320, masked=True)
    images, (masks, classes) = torch.randn(1, 3, 320, 320), objects_of(20, 320)
    model.train()
    model.backbone.unfreeze()
    peer.train()
    loss = MaskLoss()

    def ours() -> Tensor:
        model.zero_grad()
        found: Any = model(images)
        pairs = [(found[f"mask_logits{i}"], found[f"class_logits{i}"]) for i in (".0", ".1", ".2", "")]
        value, _ = loss(pairs, [masks], [classes])
        value.backward()
        return value.detach()

    def theirs() -> Tensor:
        peer.zero_grad()
        value = peer(images, mask_labels=[masks.float()], class_labels=[classes]).loss
        value.backward()
        return value.detach()

    return ours, theirs


def matching_ways() -> tuple[Call, Call]:
    """Return ours and theirs: the queries and objects that are matched."""
    from transformers.models.eomt.modeling_eomt import EomtHungarianMatcher

    masks, classes = objects_of(50, 640)
    logits, scores = 4 * torch.randn(1, QUERIES, 160, 160), torch.randn(1, QUERIES, CLASSES + 1)
    loss, peer = MaskLoss(), EomtHungarianMatcher(2.0, 5.0, 5.0)

    def ours() -> Tensor:
        (matches,), _ = loss.match([(logits, scores)], [masks], [classes], None)
        return torch.stack(matches[0])

    def theirs() -> Tensor:
        (matches,) = peer(logits, scores, [masks], [classes])
        return torch.stack(matches)

    return ours, theirs


WAYS: dict[str, Callable[[], tuple[Call, Call]]] = {
    "image": lambda: image_ways(masked=False),
    "masked": lambda: image_ways(masked=True),
    "step": step_ways,
    "matching": matching_ways,
}
TITLES = {
    "image": "EoMT, ViT-S/16, 640 px",
    "masked": "EoMT, ViT-S/16, 640 px, masked attention",
    "step": "EoMT, training step, ViT-S/16, 320 px, 20 objects",
    "matching": "matching, 100 queries, 50 objects",
}


def main() -> None:
    """Print one table."""
    parser = arguments(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_memory(WAYS[options.memory[0]]()[int(options.memory[1])]))
        return
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "transformers"))
    print(f"batch 1, fp32, {torch.get_num_threads()} threads; {versions}")
    print(
        f"{'way':<10} {'ours s':>8} {'theirs s':>9} {'theirs/ours':>12} {'ours MB':>8} {'theirs MB':>10} "
        f"{'difference':>11}"
    )
    for way in options.ways:
        ours, theirs = WAYS[way]()
        first, second = ours(), theirs()
        difference = float((first - second).abs().max() / second.abs().max())
        times = alternate((ours, theirs), options.repeats, warm_up=1)
        seconds, ratio = [statistics.median(row) for row in times], median_ratio(times[1], times[0])
        memory = [last_number(str(Path(__file__)), "--memory", way, side) for side in (0, 1)]
        print(
            f"{way:<10} {seconds[0]:>8.3f} {seconds[1]:>9.3f} {ratio:>12.2f} {memory[0]:>8.0f} {memory[1]:>10.0f} "
            f"{difference:>11.1e}",
            flush=True,
        )
        peer = versioned("transformers")
        record(
            TITLES[way], peer=peer, ours=f"{seconds[0]:.3f} s", theirs=f"{seconds[1]:.3f} s", ratio=ratio,
        )  # fmt: skip
        record(
            f"{TITLES[way]}, memory",
            peer=peer,
            ours=f"{memory[0]:.0f} MB",
            theirs=f"{memory[1]:.0f} MB",
            ratio=memory[1] / max(memory[0], 1),
        )


if __name__ == "__main__":
    main()
