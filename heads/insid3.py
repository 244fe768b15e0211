"""Segmentation from one or a few annotated images: the clusters of an image that resemble the annotated object.

Cuttano et al., "INSID3", 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.features import Features, Size, check_channels
from heads.head import DenseHead
from heads.memory import as_logarithms, check_memory
from heads.options import Count, Fraction, checked
from heads.outputs import Classes, Output

MOST = 16_384  # patches of an image, since clustering needs the square of their number
BACKGROUND = ("background", "0")  # names of a class that is what the others leave


class Insid3Head(DenseHead):
    """Clusters of patches that resemble annotated patches, by features without what position alone explains.

    A patch is a candidate for a class if it resembles the class's prototype and if its nearest annotated patch, in the
    majority of the annotated images, has the class. The patches are clustered; the seed is the cluster of candidates
    that is nearest to the prototype. Clusters are joined to it whose likeness to the prototype, times likeness to the
    seed, times share of candidates is above `least`. A class named background is what the others leave; without
    one, such patches take the class with the nearest prototype.

    in_channels: of the map. patches: of the annotated images. rank: directions of position that are removed.
    cluster: least mean cosine within a cluster. least: of a cluster's score, see above.
    """

    exports = False  # since it clusters

    @checked
    def __init__(
        self,
        in_channels: int,
        outputs: Mapping[str, Output],
        patches: int,
        rank: Count,
        cluster: Fraction = 0.6,
        least: Fraction = 0.2,
    ) -> None:
        super().__init__(outputs)
        if list(outputs) != ["labels"] or not isinstance(outputs["labels"], Classes):
            raise ValueError("a memory has one output, labels, of classes")
        if not 0 <= rank < in_channels:
            raise ValueError(f"rank={rank}: expected 0 or more, below the {in_channels} channels")
        self.in_channels, self.cluster, self.least = in_channels, cluster, least
        count, names = outputs["labels"].count, outputs["labels"].names or ()
        self.rest = next((i for i, name in enumerate(names) if name in BACKGROUND), None)
        self.register_buffer("basis", torch.zeros(in_channels, rank))
        self.register_buffer("bank", torch.zeros(patches, in_channels, dtype=torch.float16))
        self.register_buffer("inside", torch.zeros(patches, count, dtype=torch.bool))
        self.register_buffer("image", torch.zeros(patches, dtype=torch.int32))
        self.register_buffer("prototypes", torch.zeros(count, in_channels))
        self.register_load_state_dict_post_hook(check_memory)
        self.basis: Tensor  # orthonormal columns
        self.bank: Tensor  # unit vectors without position
        self.inside: Tensor  # the classes of each patch
        self.image: Tensor  # the annotated image of each patch
        self.prototypes: Tensor  # unit vectors, one per class; zeros for a class that no patch has

    def fill(self, empty: Tensor, images: list[tuple[Tensor, Tensor]]) -> None:
        """Remember annotated images.

        empty: features (N, D) of an image without content, from which the directions of position are taken.
        images: features (n, D) of the patches of each image, and their classes (n, K) as booleans.
        """
        images = [(vectors, inside.to(vectors.device)) for vectors, inside in images]
        units = F.normalize(empty.double(), dim=1)
        directions = torch.linalg.svd(units - units.mean(0), full_matrices=False).Vh
        rank = self.basis.shape[1]
        self.basis[:, : len(directions)] = directions[:rank].T.float()
        vectors = [self.debiased(v) for v, _ in images]
        means = torch.stack([_means(v, inside) for v, (_, inside) in zip(vectors, images, strict=True)])  # images, K, D
        self.prototypes.copy_(F.normalize(means.sum(0), dim=1))
        self.bank.copy_(torch.cat(vectors))
        self.inside.copy_(torch.cat([inside for _, inside in images]))
        self.image.copy_(torch.cat([torch.full((len(v),), i) for i, v in enumerate(vectors)]))

    def debiased(self, vectors: Tensor) -> Tensor:
        """Return unit vectors (N, D) without the directions of position."""
        units, basis = F.normalize(vectors.float(), dim=1), self.basis.to(vectors.device)
        return F.normalize(units - units @ basis @ basis.T, dim=1)

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Return 1 for the class of each patch and 0 for the others, (B, K, h, w)."""
        check_channels(features.maps, (self.in_channels,))
        maps = features.maps[0]
        found = [self.classify(one.flatten(1).T).unflatten(0, one.shape[1:]) for one in maps]
        return {"labels": torch.stack(found).permute(0, 3, 1, 2)}

    def classify(self, vectors: Tensor) -> Tensor:
        """Return 1 for the class of each patch (N, D) and 0 for the others, (N, K)."""
        if len(vectors) > MOST:
            raise ValueError(f"{len(vectors)} patches are too many to cluster, at most {MOST}; choose a smaller resize")
        raw, own = F.normalize(vectors.float(), dim=1), self.debiased(vectors)
        cosines = own @ self.prototypes.T  # N, K
        candidates = self.candidates(own, cosines)
        clusters = average_linkage(raw, self.cluster)
        count = int(clusters.max()) + 1
        one_hot = F.one_hot(clusters, count).float()  # N, C
        size = one_hot.sum(0)
        centres, own_centres = (F.normalize(one_hot.T @ v, dim=1) for v in (raw, own))
        likeness = one_hot.T @ cosines / size[:, None]  # C, K
        share = one_hot.T @ candidates.float() / size[:, None]  # C, K
        nearness = (own_centres @ self.prototypes.T).where(share > 0, -torch.inf)
        scores = torch.zeros_like(share)
        for label in range(cosines.shape[1]):
            if label == self.rest or not candidates[:, label].any():
                continue
            seed = int(nearness[:, label].argmax())
            share[seed, label] = 1
            scores[:, label] = likeness[:, label] * (centres @ centres[seed]) * share[:, label]
            scores[seed, label] = max(float(scores[seed, label]), 2 * self.least)  # the seed stays
        best, found = scores.max(1)
        other = likeness.argmax(1) if self.rest is None else torch.full_like(found, self.rest)
        labels = found.where(best > self.least, other)
        return F.one_hot(labels[clusters], cosines.shape[1]).float()

    def candidates(self, own: Tensor, cosines: Tensor) -> Tensor:
        """Return the patches that may have each class (N, K), by prototype and by nearest annotated patch."""
        alike = cosines > 0
        for label in (~alike.any(0)).nonzero()[:, 0].tolist():
            alike[:, label] = cosines[:, label] >= cosines[:, label].quantile(0.9)
        images = int(self.image.max()) + 1
        votes = torch.zeros_like(cosines)
        for number in range(images):
            places = (self.image == number).nonzero()[:, 0]
            nearest = (own @ self.bank[places].float().T).argmax(1)
            votes += self.inside[places][nearest]
        holds = torch.stack([self.inside[self.image == number].any(0) for number in range(images)]).sum(0)
        needed = (holds + 1) // 2  # the majority of the images that hold the class
        return alike & (votes >= needed.clamp_min(1))

    def forward(self, features: Features, images: Tensor | None = None, size: Size | None = None) -> dict[str, Tensor]:
        return as_logarithms(super().forward(features, images, size))

    def options(self) -> dict[str, Any]:
        return {
            "name": "insid3",
            "in_channels": self.in_channels,
            "patches": len(self.bank),
            "rank": self.basis.shape[1],
            "cluster": self.cluster,
            "least": self.least,
        }


def _means(vectors: Tensor, inside: Tensor) -> Tensor:
    """Return the mean vector of each class, (K, D); zeros of a class that no vector has."""
    held = inside.float()
    return held.T @ vectors / held.sum(0).clamp_min(1)[:, None]


def average_linkage(units: Tensor, cosine: float) -> Tensor:
    """Return the cluster (N,) of each unit vector, by average linkage down to a mean cosine."""
    from scipy.cluster.hierarchy import fcluster, linkage  # here, since other predictions do not need it
    from scipy.spatial.distance import squareform

    if len(units) == 1:
        return torch.zeros(1, dtype=torch.int64, device=units.device)
    distances = (1 - units @ units.T).clamp_min(0).cpu()
    distances.fill_diagonal_(0)
    tree = linkage(squareform(distances.numpy(), checks=False), method="average")
    return torch.from_numpy(fcluster(tree, 1 - cosine, "distance") - 1).long().to(units.device)
