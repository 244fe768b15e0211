"""DINO loss, forward and backward, against a log-softmax per pair and against lightly's: time and memory.

    python benchmarks/dino_loss.py --images 8 --crops 10 --prototypes 65536 --dtype bfloat16

Prints medians over alternating rounds and their ratios. Memory is the peak of the allocations of the loss and its
backward pass, the gradient of the logits included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import lightly  # type: ignore[import-untyped]
import torch
from _claims import record
from _measure import arguments
from lightly.loss import DINOLoss as LightlyLoss  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from pretrain.losses import DINOLoss

Loss = Callable[[Tensor, Tensor], Tensor]


def textbook(logits: Tensor, targets: Tensor) -> Tensor:
    """Loop over pairs of different views, at temperature 0.1, in the dtype of the logits."""
    views = targets.chunk(2)
    crops = (logits / 0.1).chunk(len(logits) // len(views[0]))
    pairs = [(view, crop) for t, view in enumerate(views) for v, crop in enumerate(crops) if v != t]
    return torch.stack([-(view * F.log_softmax(crop, dim=-1)).sum(-1).mean() for view, crop in pairs]).mean()


def of_lightly(crops: int, prototypes: int) -> Loss:
    """Return lightly's loss, which needs fp32 and computes the targets itself (here from their logarithms)."""
    loss = LightlyLoss(output_dim=prototypes, center_momentum=1.0)

    def run(logits: Tensor, targets: Tensor) -> Tensor:
        return loss(list(targets.log().chunk(2)), list(logits.float().chunk(crops)), teacher_temp=1.0)

    return run


def milliseconds(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    leaf = logits.detach().clone().requires_grad_()
    start = time.perf_counter()
    loss(leaf, targets).backward()
    return 1000 * (time.perf_counter() - start)


def peak_megabytes(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    leaf = logits.detach().clone().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(leaf, targets).backward()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--crops", type=int, default=10)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    torch.manual_seed(0)
    logits = (0.2 * torch.randn(args.crops * args.images, args.prototypes)).to(getattr(torch, args.dtype))
    targets = (2 * torch.randn(2 * args.images, args.prototypes)).softmax(-1)
    losses: dict[str, Loss] = {
        "this project": DINOLoss(0.1),
        "textbook": textbook,
        f"lightly {lightly.__version__}": of_lightly(args.crops, args.prototypes),
    }
    print(
        f"{args.crops} crops of {args.images} images, K = {args.prototypes}, {args.dtype}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s)"
    )
    times = [[milliseconds(loss, logits, targets) for loss in losses.values()] for _ in range(args.rounds)]
    first = peak_megabytes(DINOLoss(0.1), logits, targets)
    for index, (name, loss) in enumerate(losses.items()):
        median = statistics.median(row[index] for row in times)
        ratio = statistics.median(row[index] / row[0] for row in times)
        memory = peak_megabytes(loss, logits, targets)
        value = loss(logits, targets).item()
        print(f"{name:16} loss {value:9.5f}  {median:8.1f} ms ({ratio:.2f}x)  {memory:8.1f} MB ({memory / first:.2f}x)")
        if index:
            setting = f"{args.crops} crops of {args.images}, K {args.prototypes}, {args.dtype}"
            size = f"DINO loss and its gradient, {setting}"
            mine = statistics.median(row[0] for row in times)
            record(size, peer=name, ours=f"{mine:.1f} ms", theirs=f"{median:.1f} ms", ratio=ratio)
            record(
                f"{size}, memory", peer=name, ours=f"{first:.0f} MB", theirs=f"{memory:.0f} MB", ratio=memory / first
            )


if __name__ == "__main__":
    main()
