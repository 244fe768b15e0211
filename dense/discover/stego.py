"""Classes of a set of images by a small trained head, in the spirit of STEGO: codes keep what features agree on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dense.console import progress
from dense.discover.coclusters import CoClusters, Stream
from dense.discover.kmeans import check_count
from dense.discover.results import Regions
from dense.discover.source import check_channels, check_features

MOST = 20_000_000  # numbers kept of the features of all images while the head learns


@dataclass(frozen=True)
class Distillation:
    """How the head learns.

    Pairs of images are each image with itself, with one of its `neighbours` nearest, and with `negatives` others. Two
    patches of a pair attract where their features agree more than most and repel elsewhere: `attract` is the share of
    patches that attract, for the three kinds of pairs. STEGO gives the border as a cosine instead (.18, .12 and .46), which
    has to be found anew for each backbone and each data set. `weights` are the published ones.
    """

    dim: int = 70
    batch: int = 16
    samples: int = 121  # patches an image and step: 11x11
    neighbours: int = 7
    negatives: int = 5
    weights: tuple[float, float, float] = (0.67, 0.25, 0.63)
    attract: tuple[float, float, float] = (0.3, 0.3, 0.1)
    lr: float = 5e-4

    def __post_init__(self) -> None:
        least = {"dim": 1, "batch": 1, "samples": 2, "neighbours": 1, "negatives": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {low}")
        if not all(0 < share < 1 for share in self.attract):
            raise ValueError(f"attract={self.attract}: expected three shares between 0 and 1")


class CodeHead(nn.Module):
    """Features to codes: a linear map and a perceptron of one hidden layer, side by side; rows (..., C) -> (..., D)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows) + self.mlp(rows)


@dataclass(frozen=True)
class Stego:
    """`count` classes of codes; region k is class k in every image.

    Hamilton et al., "Unsupervised Semantic Segmentation by Distilling Feature Correspondences", 2022. Without its CRF.
    """

    head: CodeHead
    mean: Tensor  # C, of the features
    classes: CoClusters  # of the codes

    @property
    def count(self) -> int:
        """How many classes there are."""
        return self.classes.count

    @classmethod
    def fit(
        cls,
        stream: Stream,
        count: int = 20,
        passes: int = 2,
        steps: int = 1000,
        how: Distillation = Distillation(),
        seed: int = 0,
    ) -> Self:
        """Train the head for `steps` on a stream of features that can be started again, then cluster its codes."""
        check_count(count)
        if steps < 0:
            raise ValueError(f"steps={steps}: expected 0 or more, such as 1000")
        patches, mean = _patches(stream(), seed)
        head = distil(F.normalize(patches - mean, dim=-1), steps, how, seed)
        return cls(
            head, mean, CoClusters.fit(lambda: (_codes(head, mean, f) for f in stream()), count, passes, seed=seed)
        )

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Regions:
        """Features (B, C, h, w) -> labels on the grid, the classes' own numbers."""
        check_channels(features, len(self.mean))
        return self.classes(_codes(self.head, self.mean, features))

    def save(self, path: str | Path) -> None:
        """As a safetensors file."""
        tensors = {f"head.{k}": v for k, v in self.head.state_dict().items()} | {"mean": self.mean}
        tensors |= {"code_mean": self.classes.mean, "code_centres": self.classes.centres}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Counterpart of `save`."""
        tensors = load_file(str(path), device=str(device))
        if not {"mean", "code_mean", "code_centres", "head.linear.weight"} <= set(tensors):
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}: expected a head and its codes, as Stego.save writes them"
            )
        dim, channels = tensors["head.linear.weight"].shape
        head = CodeHead(channels, dim).to(device)
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
        return cls(head, tensors["mean"], CoClusters(tensors["code_centres"], tensors["code_mean"]))


@torch.enable_grad()
@torch.inference_mode(False)
def distil(rows: Tensor, steps: int = 1000, how: Distillation = Distillation(), seed: int = 0) -> CodeHead:
    """A head whose codes correspond where features do, after so many steps; unit rows (N, P, C): P patches of each of N images."""
    images, patches, channels = rows.shape
    rows = rows.clone()  # may come from inference
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = CodeHead(channels, how.dim)
    head.to(rows.device)
    optimiser = torch.optim.Adam(head.parameters(), how.lr)
    near = nearest_images(rows, how.neighbours)  # N, k

    def draw(index: Tensor) -> tuple[Tensor, Tensor]:
        """Some patches of images (B,), and their codes."""
        places = torch.randint(patches, (len(index), how.samples), generator=generator).to(rows.device)
        some = rows[index[:, None], places]  # B, S, C
        return some, head(some)

    for _ in progress(range(steps), "learning codes"):
        index = torch.randint(images, (min(how.batch, images),), generator=generator).to(rows.device)
        column = torch.randint(near.shape[1], index.shape, generator=generator).to(rows.device)
        anchor = draw(index)
        pairs = [(draw(index), 0), (draw(near[index, column]), 1)]
        for _ in range(how.negatives):
            other = (
                index + torch.randint(1, max(images, 2), index.shape, generator=generator).to(rows.device)
            ) % images
            pairs.append((draw(other), 2))
        loss = rows.new_zeros(())
        for other_rows, kind in pairs:
            weight = how.weights[kind] / (how.negatives if kind == 2 else 1)
            loss = loss + weight * correspondence_loss(*anchor, *other_rows, how.attract[kind])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.requires_grad_(False)


def correspondence_loss(rows: Tensor, codes: Tensor, others: Tensor, other_codes: Tensor, attract: float) -> Tensor:
    """``-mean(max(S, 0) (F - b))``: S cosines of codes, F cosines of features less each patch's own mean, b the border
    above which the share `attract` of F lies. Rows and others (B, S, C), codes (B, S, D)."""
    with torch.no_grad():
        agreement = F.normalize(rows, dim=-1) @ F.normalize(others, dim=-1).mT  # B, S, S
        agreement = agreement - agreement.mean(-1, keepdim=True)
        flat = agreement.flatten()
        border = flat.kthvalue(max(1, round((1 - attract) * len(flat)))).values
    similarity = F.normalize(codes, dim=-1) @ F.normalize(other_codes, dim=-1).mT
    return -(similarity.clamp_min(0) * (agreement - border)).mean()


def nearest_images(rows: Tensor, count: int) -> Tensor:
    """For each image the others most like it, by mean unit row: (N, P, C) -> (N, k)."""
    means = F.normalize(rows.mean(1), dim=-1)
    count = min(count, len(means) - 1)
    if count < 1:
        raise ValueError("one image has no neighbours; give at least two images, or use cocluster or kmeans")
    near = []
    for start in range(0, len(means), 1024):
        alike = means[start : start + 1024] @ means.T
        alike[torch.arange(len(alike)), torch.arange(start, start + len(alike))] = -2
        near.append(alike.topk(count).indices)
    return torch.cat(near)


def _codes(head: CodeHead, mean: Tensor, features: Tensor) -> Tensor:
    """Features (B, C, h, w) -> codes (B, D, h, w)."""
    rows = F.normalize(check_features(features).movedim(1, -1) - mean, dim=-1)
    return head(rows).movedim(-1, 1)


def _patches(batches: Iterable[Tensor], seed: int, each: int = 256) -> tuple[Tensor, Tensor]:
    """`each` random patches (N, each, C) of images drawn with equal chances, as many as `MOST` allows, and the mean."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    keys: list[float] = []
    total, seen = torch.zeros(()), 0
    for features in batches:
        rows = check_features(features).flatten(2).mT  # B, h*w, C
        total = total.to(rows.device) + rows.sum((0, 1))
        seen += rows.shape[0] * rows.shape[1]
        most = max(2, MOST // (each * rows.shape[2]))
        for image, key in zip(rows, torch.rand(len(rows), generator=generator).tolist(), strict=True):
            some = image[torch.randint(len(image), (each,), generator=generator).to(image.device)]
            if len(kept) < most:
                kept.append(some)
                keys.append(key)
            elif key > min(keys):  # the images with the largest keys stay
                place = keys.index(min(keys))
                kept[place], keys[place] = some, key
    if not kept:
        raise ValueError("no images to learn classes from")
    return torch.stack(kept), total / seen
