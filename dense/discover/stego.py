"""Classes of a set of images by a small trained head, in the spirit of STEGO: codes correspond where features do."""

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
from dense.discover.kmeans import CoClusters, Stream, check_count
from dense.discover.results import Regions
from dense.discover.source import check_channels, check_features
from dense.files import replacing

SAMPLE = 20_000_000  # numbers kept of the features of all images for training the head


@dataclass(frozen=True)
class Distillation:
    """Hyperparameters of the training of the head.

    Each image is paired with itself, with one of its `neighbours` nearest images, and with `negatives` other images.
    Two patches of a pair attract each other where the similarity of their features is high and repel each other
    elsewhere: `attract` is the share of patches that attract, for the three kinds of pairs. STEGO sets a threshold on
    the cosine instead (.18, .12 and .46), which has to be tuned for each backbone and data set. `weights` are the
    published ones.
    """

    dim: int = 70
    batch: int = 16
    samples: int = 121  # patches per image and step: 11x11
    neighbours: int = 7
    negatives: int = 5
    weights: tuple[float, float, float] = (0.67, 0.25, 0.63)
    attract: tuple[float, float, float] = (0.3, 0.3, 0.1)
    lr: float = 5e-4

    def __post_init__(self) -> None:
        for name, least in {"dim": 1, "batch": 1, "samples": 2, "neighbours": 1, "negatives": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not all(0 < share < 1 for share in self.attract):
            raise ValueError(f"attract={self.attract}: expected three shares between 0 and 1")


class CodeHead(nn.Module):
    """Codes (..., D) of features (..., C): the sum of a linear map and an MLP with one hidden layer."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows) + self.mlp(rows)


@dataclass(frozen=True)
class Stego:
    """`count` classes of codes; label k is class k in every image.

    Hamilton et al., "Unsupervised Semantic Segmentation by Distilling Feature Correspondences", 2022. Without its CRF.
    """

    head: CodeHead
    mean: Tensor  # C, of the features
    classes: CoClusters  # of the codes

    @property
    def count(self) -> int:
        return self.classes.count

    @classmethod
    def fit(
        cls,
        stream: Stream,
        count: int = 20,
        passes: int = 2,
        steps: int = 1000,
        settings: Distillation = Distillation(),
        seed: int = 0,
    ) -> Self:
        """Train the head for `steps` on a stream of features that can be started again, then cluster its codes."""
        check_count(count)
        if steps < 0:
            raise ValueError(f"steps={steps}: expected 0 or more, such as 1000")
        patches, mean = _sample_patches(stream(), seed)
        head = distil(F.normalize(patches - mean, dim=-1), steps, settings, seed)
        return cls(
            head, mean, CoClusters.fit(lambda: (_codes(head, mean, f) for f in stream()), count, passes, seed=seed)
        )

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Regions:
        """Return class numbers on the grid of features (B, C, h, w)."""
        check_channels(features, len(self.mean))
        return self.classes(_codes(self.head, self.mean, features))

    def save(self, path: str | Path) -> None:
        tensors = {f"head.{k}": v for k, v in self.head.state_dict().items()} | {"mean": self.mean}
        tensors |= {"code_mean": self.classes.mean, "code_centres": self.classes.centres}
        with replacing(path) as file:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, file)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a file that `save` wrote."""
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
def distil(rows: Tensor, steps: int = 1000, settings: Distillation = Distillation(), seed: int = 0) -> CodeHead:
    """Train a head on unit rows (N, P, C), P patches per image, so that codes correspond where features do."""
    images, patches, channels = rows.shape
    rows = rows.clone()  # tensors of inference mode cannot be trained on
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = CodeHead(channels, settings.dim)
    head.to(rows.device)
    optimiser = torch.optim.Adam(head.parameters(), settings.lr)
    near = nearest_images(rows, settings.neighbours)  # N, k

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(rows.device)

    def draw(index: Tensor) -> tuple[Tensor, Tensor]:
        """Return random patches (B, S, C) of images (B,), and their codes."""
        chosen = rows[index[:, None], integers(0, patches, len(index), settings.samples)]
        return chosen, head(chosen)

    for _ in progress(range(steps), "learning codes"):
        index = integers(0, images, min(settings.batch, images))
        column = integers(0, near.shape[1], len(index))
        anchor = draw(index)
        pairs = [(draw(index), 0), (draw(near[index, column]), 1)]
        for _ in range(settings.negatives):
            other = (index + integers(1, max(images, 2), len(index))) % images
            pairs.append((draw(other), 2))
        loss = rows.new_zeros(())
        for drawn, kind in pairs:
            weight = settings.weights[kind] / (settings.negatives if kind == 2 else 1)
            loss = loss + weight * correspondence_loss(*anchor, *drawn, settings.attract[kind])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.requires_grad_(False)


def correspondence_loss(rows: Tensor, codes: Tensor, others: Tensor, other_codes: Tensor, attract: float) -> Tensor:
    """Return ``-mean(max(S, 0) (F - b))`` for rows and others (B, S, C) and their codes (B, S, D).

    S are cosines of codes, F cosines of features less each patch's mean, b the threshold that the share `attract` of F
    exceeds.
    """
    with torch.no_grad():
        agreement = F.normalize(rows, dim=-1) @ F.normalize(others, dim=-1).mT  # B, S, S
        agreement = agreement - agreement.mean(-1, keepdim=True)
        flat = agreement.flatten()
        threshold = flat.kthvalue(max(1, round((1 - attract) * len(flat)))).values
    similarity = F.normalize(codes, dim=-1) @ F.normalize(other_codes, dim=-1).mT
    return -(similarity.clamp_min(0) * (agreement - threshold)).mean()


def nearest_images(rows: Tensor, count: int) -> Tensor:
    """Return the k other images most similar to each, by mean unit row: (N, P, C) -> (N, k)."""
    means = F.normalize(rows.mean(1), dim=-1)
    count = min(count, len(means) - 1)
    if count < 1:
        raise ValueError("one image has no neighbours; give at least two images, or use cocluster or kmeans")
    near = []
    for start in range(0, len(means), 1024):
        cosines = means[start : start + 1024] @ means.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2
        near.append(cosines.topk(count).indices)
    return torch.cat(near)


def _codes(head: CodeHead, mean: Tensor, features: Tensor) -> Tensor:
    """Return codes (B, D, h, w) of features (B, C, h, w)."""
    rows = F.normalize(check_features(features).movedim(1, -1) - mean, dim=-1)
    return head(rows).movedim(-1, 1)


def _sample_patches(batches: Iterable[Tensor], seed: int, each: int = 256) -> tuple[Tensor, Tensor]:
    """Return `each` random patches (N, each, C) of a uniform sample of images, and the mean (C,) of all patches."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    keys: list[float] = []
    total, count = torch.zeros(()), 0
    for features in batches:
        rows = check_features(features).flatten(2).mT  # B, h*w, C
        total = total.to(rows.device) + rows.sum((0, 1))
        count += rows.shape[0] * rows.shape[1]
        most = max(2, SAMPLE // (each * rows.shape[2]))
        for image, key in zip(rows, torch.rand(len(rows), generator=generator).tolist(), strict=True):
            patches = image[torch.randint(len(image), (each,), generator=generator).to(image.device)]
            if len(kept) < most:
                kept.append(patches)
                keys.append(key)
            elif key > min(keys):  # images with the largest keys are kept
                place = keys.index(min(keys))
                kept[place], keys[place] = patches, key
    if not kept:
        raise ValueError("no images to learn classes from")
    return torch.stack(kept), total / count
