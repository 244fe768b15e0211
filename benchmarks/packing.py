"""Packed crops against crops one size at a time, and batch-subset stochastic depth against drop path by sample.

Forward and backward of a ViT-S/16's image features on 2x224 + 8x96, in fp32. "by size" runs the same code on one size
after the other; "by sample" runs timm's blocks with timm's DropPath. Figures are medians of paired steps, alternating;
the outputs of packed and by size are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _claims import record, versioned
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from pretrain.network import set_drop_path

Step = Callable[[], Tensor]


def build(rate: float, name: str) -> Backbone:
    """A student; rate: of stochastic depth, uniform."""
    torch.manual_seed(0)
    backbone = load_backbone(name).train()
    if rate:
        set_drop_path(backbone, rate, uniform=True)
    return backbone


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    batch = options.batch
    crops = [torch.randn(2 * batch, 3, 224, 224), torch.randn(8 * batch, 3, 96, 96)]
    student = build(0.0, options.name)

    def by_size(backbone: Backbone) -> Step:
        return lambda: torch.cat([backbone.image_features([crop])[0] for crop in crops])

    def by_sample(backbone: Backbone) -> Step:
        return lambda: Backbone.image_features(backbone, crops)[0]

    def packed(backbone: Backbone) -> Step:
        return lambda: backbone.image_features(crops)[0]

    with torch.no_grad():
        apart = float((by_size(student)() - packed(student)()).abs().max())
    ways: dict[str, Step] = {"by size": by_size(student), "packed": packed(student)}
    for rate in options.rates:
        ways |= {
            f"by sample, {rate}": by_sample(build(rate, options.name)),
            f"subset, {rate}": packed(build(rate, options.name)),
        }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats + 1):  # the first warms up
        for way, step in ways.items():
            start = time.perf_counter()
            step().square().mean().backward()
            if repeat:
                times[way].append(time.perf_counter() - start)
    print(
        f"{options.name}, batch {batch}, 2x224 + 8x96, forward and backward, {torch.get_num_threads()} threads, "
        f"{versioned('torch')}; outputs of packed and by size differ by at most {apart:.1e}"
    )
    compared = [("packed crops", "by size", "packed")]
    compared += [(f"batch-subset stochastic depth, {r}", f"by sample, {r}", f"subset, {r}") for r in options.rates]
    for what, peer, ours in compared:
        ratio = statistics.median(a / b for a, b in zip(times[peer], times[ours], strict=True))
        mine, theirs = (statistics.median(times[way]) for way in (ours, peer))
        print(f"{what:<40} {mine:>7.2f} s   {peer:<16} {theirs:>7.2f} s   ratio {ratio:.2f}")
        record(
            f"{what}, ViT-S/16, batch {batch}", peer=peer if ours == "packed" else f"{peer}, {versioned('timm')}",
            ours=f"{mine:.2f} s", theirs=f"{theirs:.2f} s", ratio=ratio, least=0.95 if ours == "packed" else 1.0,
        )  # fmt: skip


if __name__ == "__main__":
    main()
