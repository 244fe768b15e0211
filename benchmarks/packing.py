"""Packed crops against crops one size at a time, and batch-subset stochastic depth against drop path per sample.

Forward and backward of a ViT-S/16's image features on 2x224 + 8x96, in fp32. "one size at a time" runs the same code on one size
after the other; "by sample" runs timm's blocks with timm's DropPath. Numbers are medians of paired steps, alternating;
the outputs of both are compared first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from _claims import record, versioned
from _measure import alternate, arguments, median_ratio
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from pretrain.network import set_drop_path

Step = Callable[[], Tensor]


def build(rate: float, name: str) -> Backbone:
    """Return a student with uniform stochastic depth of this rate."""
    torch.manual_seed(0)
    backbone = load_backbone(name).train()
    if rate:
        set_drop_path(backbone, rate, uniform=True)
    return backbone


def main() -> None:
    """Print the comparison."""
    parser = arguments(__doc__)
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
        difference = float((by_size(student)() - packed(student)()).abs().max())
    ways: dict[str, Step] = {"one size at a time": by_size(student), "packed": packed(student)}
    for rate in options.rates:
        ways |= {
            f"by sample, {rate}": by_sample(build(rate, options.name)),
            f"subset, {rate}": packed(build(rate, options.name)),
        }
    runs = [lambda step=step: step().square().mean().backward() for step in ways.values()]  # type: ignore[misc]
    times = dict(zip(ways, alternate(runs, options.repeats, warm_up=1), strict=True))
    print(
        f"{options.name}, batch {batch}, 2x224 + 8x96, forward and backward, {torch.get_num_threads()} threads, "
        f"{versioned('torch')}; outputs of both differ by at most {difference:.1e}"
    )
    compared = [("packed crops", "one size at a time", "packed")]
    compared += [(f"batch-subset stochastic depth, {r}", f"by sample, {r}", f"subset, {r}") for r in options.rates]
    for what, peer, ours in compared:
        ratio = median_ratio(times[peer], times[ours])
        mine, theirs = (statistics.median(times[way]) for way in (ours, peer))
        print(f"{what:<40} {mine:>7.2f} s   {peer:<16} {theirs:>7.2f} s   ratio {ratio:.2f}")
        record(
            f"{what}, ViT-S/16, batch {batch}", peer=peer if ours == "packed" else f"{peer}, {versioned('timm')}",
            ours=f"{mine:.2f} s", theirs=f"{theirs:.2f} s", ratio=ratio, least=0.95 if ours == "packed" else 1.0,
        )  # fmt: skip


if __name__ == "__main__":
    main()
