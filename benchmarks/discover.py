"""Discovery against its peers: the same results in less time.

- cut: TokenCut's eigenvector on a 60 x 60 grid against scipy.linalg.eigh of the generalised problem on the same
  graph, second solution only (`subset_by_index`), as in the published code; the second number of ours includes the
  edges of the graph. The cosine between the two vectors is printed.
- attention: from the input of a ViT-S/14's last block at 1036 px to masks of the class token's attention, against
  softmax(Q K^T) of all tokens followed by the same masks; time and peak memory.
- images: embedded scenes of 224 px from uint8 to refined masks, TokenCut with a random ViT-S/16, in images per
  second.

Medians of paired runs that alternate within one run.
"""

from __future__ import annotations

import statistics
from functools import partial
from importlib.metadata import version

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from _claims import record, versioned
from _measure import alternate, arguments, median_ratio, peak_memory, seconds

from dense.backbone import load_backbone
from dense.backbone.attention import attention_rows, project
from dense.data.scenes import Scenes
from dense.discover import Attention, TokenCut, on_grid, refine
from dense.discover.graph import edges, normalised_cut
from dense.discover.source import unit_tokens


def cut(side: int, rounds: int) -> None:
    """Compare one eigenvector."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(1, 384, 7, 7, generator=generator), size=(side, side), mode="bicubic")
    features = smooth + 0.3 * torch.randn(smooth.shape, generator=generator)
    tokens = unit_tokens(features)
    graph = edges(tokens, 0.2)
    weights = np.where(graph[0].numpy() > 0, 1.0, 1e-5)
    degrees = np.diag(weights.sum(1))
    solve = lambda: scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])  # noqa: E731
    ours, whole, theirs = [], [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: normalised_cut(graph)))
        whole.append(ours[-1] + seconds(lambda: edges(tokens, 0.2)))
        theirs.append(seconds(solve))
    x, y = normalised_cut(graph).vectors[0].double().numpy(), solve()[1][:, 0]
    cosine = abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y)
    print(f"cut, {side} x {side} grid, scipy {version('scipy')}: cosine of the vectors {cosine:.9f}")
    for name, values in (("eigenvector", ours), ("edges and eigenvector", whole)):
        ratio = median_ratio(theirs, values)
        print(f"  {name}: {statistics.median(values):.3f} s, scipy {statistics.median(theirs):.2f} s: {ratio:.1f}x")
        record(
            f"TokenCut, {side} x {side} grid, {name}", peer=versioned("scipy"),
            ours=f"{statistics.median(values):.3f} s", theirs=f"{statistics.median(theirs):.2f} s",
            ratio=ratio, least=10,
        )  # fmt: skip


@torch.inference_mode()
def attention(size: int, rounds: int) -> None:
    """Compare one row of the attention matrix with all rows."""
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
    mine, theirs = alternate([ours, full], rounds)
    ratio, one, all_rows = median_ratio(theirs, mine), statistics.median(mine), statistics.median(theirs)
    print(f"attention masks at {size} px, {grid} x {grid} patches, 6 heads: {100 * same:.2f} % of patches the same")
    print(f"  one row {1e3 * one:.1f} ms, all rows {1e3 * all_rows:.0f} ms: {ratio:.1f}x")
    memory, memory_of_all = peak_memory(ours), peak_memory(full)
    print(f"  memory: one row {memory:.0f} MB, all rows {memory_of_all:.0f} MB")
    what, peer = f"attention masks, {size} px", f"all rows, {versioned('torch')}"
    record(what, peer=peer, ours=f"{1e3 * one:.1f} ms", theirs=f"{1e3 * all_rows:.0f} ms", ratio=ratio)
    record(
        f"{what}, memory", peer=peer, ours=f"{memory:.0f} MB" if memory >= 1 else "under 1 MB",
        theirs=f"{memory_of_all:.0f} MB",
        ratio=memory_of_all / memory if memory >= 1 else None,  # less is below the resolution
    )  # fmt: skip


def images(count: int, size: int, batch: int) -> None:
    """Measure the way from uint8 to masks at the size of the images."""
    scenes = Scenes("test", count, size)
    pixels = torch.from_numpy(np.stack([scenes[i].image for i in range(count)])).permute(0, 3, 1, 2)
    backbone = load_backbone("dino_vits16", frozen=True)

    def found(part: torch.Tensor, refinement: str) -> None:
        refine(on_grid(backbone, backbone.normalise(part), TokenCut()), part, refinement)  # type: ignore[arg-type]

    rates: dict[str, list[float]] = {"none": [], "guided": []}
    for refinement in rates:
        found(pixels[:batch], refinement)  # warms up
    for part in pixels.split(batch):
        for refinement, each in rates.items():
            each.append(len(part) / seconds(partial(found, part, refinement)))
    for refinement, each in rates.items():
        rate = statistics.median(each)
        print(f"{count} images of {size} px, TokenCut with ViT-S/16, refine {refinement}: {rate:.1f} images/s")
        record(f"TokenCut from end to end, {size} px, refine {refinement}", ours=f"{rate:.1f} images/s")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of the cut; attention runs twice as many")
    parser.add_argument("--side", type=int, default=60, help="of the grid of the cut")
    parser.add_argument("--images", type=int, default=100, help="from end to end")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    cut(options.side, options.rounds)
    attention(1036, 2 * options.rounds)
    images(options.images, 224, 4)


if __name__ == "__main__":
    main()
