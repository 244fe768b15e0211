"""Memory of sliding windows over large images with 150 classes: ours against sums and counts of the whole image.

The peer is the usual implementation (slide inference of mmsegmentation): a tensor of all classes for the whole image,
summed over windows and divided by counts. Both use the same windows, 512 pixels every 341, and a network of negligible
cost, so that only the accumulation is measured. Target: 40 megapixels need less than 2 GB.

    python benchmarks/sliding.py
"""

from __future__ import annotations

import time

import torch
from _claims import record
from _measure import arguments, peak_memory
from torch import Tensor

from dense.model.inference import slide, starts

CLASSES, WINDOW, STRIDE = 150, 512, 341
WEIGHT = torch.randn(CLASSES, 3, 1, 1)


def network(images: Tensor) -> dict[str, Tensor]:
    """Return logits per pixel."""
    return {"labels": torch.nn.functional.conv2d(images.float(), WEIGHT)}


def ours(image: Tensor) -> Tensor:
    """Return labels, reduced block by block."""
    labels = torch.empty(image.shape[-2:], dtype=torch.uint8)

    def finish(name: str, block: Tensor, top: int, left: int) -> None:
        labels[top : top + block.shape[1], left : left + block.shape[2]] = block.argmax(0).to(torch.uint8)

    with torch.inference_mode():
        slide(network, image, WINDOW, STRIDE, finish, edges="inward")
    return labels


def whole(image: Tensor) -> Tensor:
    """Return labels of the averaged logits of the whole image."""
    height, width = image.shape[-2:]
    with torch.inference_mode():
        total, count = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
        for y in starts(height, WINDOW, STRIDE, "inward"):
            for x in starts(width, WINDOW, STRIDE, "inward"):
                window = slice(y, y + WINDOW), slice(x, x + WINDOW)
                total[:, *window] += network(image[None, :, *window])["labels"][0]
                count[window] += 1
        return total.div_(count).argmax(0).to(torch.uint8)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--both", type=int, nargs=2, default=(2048, 3072), help="height and width for the comparison")
    parser.add_argument("--large", type=int, nargs=2, default=(5120, 7824), help="height and width for ours alone")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {CLASSES} classes, fp32")
    image = torch.randint(0, 256, (3, *options.both), dtype=torch.uint8)
    results, memories = {}, {}
    for name, run in (("ours", ours), ("whole", whole)):
        start = time.perf_counter()
        memory = memories[name] = peak_memory(lambda run=run, name=name: results.__setitem__(name, run(image)))  # type: ignore[misc]
        print(
            f"{name:<6} {image.shape[1]}x{image.shape[2]}: {memory:7.0f} MB, {time.perf_counter() - start:5.1f} s",
            flush=True,
        )
    same = (results["ours"] == results["whole"]).float().mean()
    print(f"labels equal at {100 * float(same):.4f} % of the pixels")
    image = torch.randint(0, 256, (3, *options.large), dtype=torch.uint8)
    start = time.perf_counter()
    memory = peak_memory(lambda: ours(image))
    pixels = image.shape[1] * image.shape[2] / 1e6
    met = "met" if memory < 2000 else "NOT MET"
    size = f"{image.shape[1]}x{image.shape[2]} ({pixels:.0f} megapixels)"
    print(f"ours   {size}: {memory:7.0f} MB, {time.perf_counter() - start:5.1f} s; target 2000 MB {met}")
    record(
        f"windows, {options.both[1]}x{options.both[0]}, {CLASSES} classes, memory", peer="sums of the whole image",
        ours=f"{memories['ours']:.0f} MB", theirs=f"{memories['whole']:.0f} MB",
        ratio=memories["whole"] / memories["ours"],
    )  # fmt: skip
    record(f"windows, {pixels:.0f} megapixels, MB", ours=f"{memory:.0f} MB", value=memory, most=2000)


if __name__ == "__main__":
    main()
