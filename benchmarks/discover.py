"""Discovery against its peers: the same predictions for less time.

- cut: TokenCut's eigenvector on a 60 x 60 grid against scipy.linalg.eigh of the generalised problem on the same graph,
  second solution alone (`subset_by_index`), as the published code calls it; ours includes the graph's edges in the second
  figure. The cosine between the two vectors is printed.
- attention: the class token's attention of a ViT-S/14's last block at 1036 px, from that block's input to masks, against
  softmax(Q K^T) of all tokens followed by the same masks; time and peak memory beyond what was there.
- images: embedded scenes of 224 px from uint8 to refined masks, TokenCut with a random ViT-S/16, in images a second.

Medians of paired runs that alternate within one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from _claims import record, versioned
from _measure import peak_memory

from dense.backbone import load_backbone
from dense.backbone.attention import attention_rows, project
from dense.data.scenes import Scenes
from dense.discover import Attention, TokenCut, on_grid, refine
from dense.discover.graph import edges, normalised_cut
from dense.discover.source import unit_tokens


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cut(side: int, rounds: int) -> None:
    """One eigenvector."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(1, 384, 7, 7, generator=generator), size=(side, side), mode="bicubic")
    features = smooth + 0.3 * torch.randn(smooth.shape, generator=generator)
    tokens = unit_tokens(features)
    alike = edges(tokens, 0.2)
    weights = np.where(alike[0].numpy() > 0, 1.0, 1e-5)
    degrees = np.diag(weights.sum(1))
    solve = lambda: scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])  # noqa: E731
    ours, whole, theirs = [], [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: normalised_cut(alike)))
        whole.append(ours[-1] + seconds(lambda: edges(tokens, 0.2)))
        theirs.append(seconds(solve))
    x, y = normalised_cut(alike).vectors[0].double().numpy(), solve()[1][:, 0]
    cosine = abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y)
    print(f"cut, {side} x {side} grid, scipy {version('scipy')}: cosine of the vectors {cosine:.9f}")
    for name, values in (("eigenvector", ours), ("edges and eigenvector", whole)):
        ratio = statistics.median(t / o for t, o in zip(theirs, values, strict=True))
        print(f"  {name}: {statistics.median(values):.3f} s, scipy {statistics.median(theirs):.2f} s: {ratio:.1f}x")
        record(
            f"TokenCut, {side} x {side} grid, {name}", peer=versioned("scipy"), ours=f"{statistics.median(values):.3f} s",
            theirs=f"{statistics.median(theirs):.2f} s", ratio=ratio, least=10,
        )  # fmt: skip


@torch.inference_mode()
def attention(size: int, rounds: int) -> None:
    """One row against all."""
    backbone = load_backbone("dinov2_vits14", frozen=True)
    grid = size // backbone.spec.patch
    x = torch.randn(1, grid * grid + 1, 384, generator=torch.Generator().manual_seed(0))
    attn = backbone.model.blocks[-1].attn
    masks = Attention(mode="heads")

    def ours() -> torch.Tensor:
        return masks(attention_rows(attn, x, slice(0, 1), None, 1)[:, :, 0, 1:].unflatten(-1, (grid, grid))).masks

    def full() -> torch.Tensor:
        query, key = project(attn, x, "query"), project(attn, x, "key")
        rows = ((query * attn.scale) @ key.mT).softmax(-1)  # B, heads, N, N
        return masks(rows[:, :, 0, 1:].unflatten(-1, (grid, grid))).masks

    same = float((ours() == full()).float().mean())
    pairs = [(seconds(ours), seconds(full)) for _ in range(rounds)]
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    one, all_rows = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    print(f"attention masks at {size} px, {grid} x {grid} patches, 6 heads: {100 * same:.2f} % of patches the same")
    print(f"  one row {1e3 * one:.1f} ms, all rows {1e3 * all_rows:.0f} ms: {ratio:.1f}x")
    memory, memory_of_all = peak_memory(ours), peak_memory(full)
    print(f"  memory: one row {memory:.0f} MB, all rows {memory_of_all:.0f} MB")
    what, peer = f"attention masks, {size} px", f"all rows, {versioned('torch')}"
    record(what, peer=peer, ours=f"{1e3 * one:.1f} ms", theirs=f"{1e3 * all_rows:.0f} ms", ratio=ratio)
    record(
        f"{what}, memory", peer=peer, ours=f"{memory:.0f} MB" if memory >= 1 else "under 1 MB", theirs=f"{memory_of_all:.0f} MB",
        ratio=memory_of_all / memory if memory >= 1 else None,  # less cannot be told
    )  # fmt: skip


def images(count: int, size: int, batch: int) -> None:
    """From uint8 to masks at the images' size."""
    scenes = Scenes("test", count, size)
    pixels = torch.from_numpy(np.stack([scenes[i].image for i in range(count)])).permute(0, 3, 1, 2)
    backbone = load_backbone("dino_vits16", frozen=True)

    def found(part: torch.Tensor, how: str) -> None:
        refine(on_grid(backbone, backbone.normalise(part), TokenCut()), part, how)  # type: ignore[arg-type]

    rates: dict[str, list[float]] = {"none": [], "guided": []}
    for how in rates:
        found(pixels[:batch], how)  # warms up
    for part in pixels.split(batch):
        for how, each in rates.items():
            each.append(len(part) / seconds(partial(found, part, how)))
    for how, each in rates.items():
        rate = statistics.median(each)
        print(f"{count} images of {size} px, TokenCut with ViT-S/16, refine {how}: {rate:.1f} images/s")
        record(f"TokenCut from end to end, {size} px, refine {how}", ours=f"{rate:.1f} images/s")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of the cut; attention takes as many more")
    parser.add_argument("--side", type=int, default=60, help="of the grid that is cut")
    parser.add_argument("--pictures", type=int, default=100, help="that are taken from end to end")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    cut(options.side, options.rounds)
    attention(1036, 2 * options.rounds)
    images(options.images, 224, 4)


if __name__ == "__main__":
    main()
