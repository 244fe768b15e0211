"""Segmentation without training: each patch takes the labels of its nearest neighbours in a memory of labelled patches.

Balazevic et al., "Towards In-Context Scene Understanding" (Hummingbird), 2023.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Features, Size, check_channels
from heads.head import DenseHead
from heads.layers import resize
from heads.options import Count, Positive, as_tuple, checked
from heads.outputs import Classes, Output

SEEN = 1 << 24  # similarities that are in memory at once
ADDED = 1 << 16  # patches that are added to an index at once
ROUNDED = 1e-2  # error of a length that half precision explains
LEAST = 1e-6  # probability whose logarithm stands for none


class BankHead(DenseHead):
    """Base of heads that compare patches with a bank of unit vectors.

    Features of several layers are normalised one by one and concatenated.
    """

    exports = False  # its search depends on the number of images
    bank: Tensor  # N, D

    def __init__(self, in_channels: int | Sequence[int], outputs: Mapping[str, Output], patches: int) -> None:
        super().__init__(outputs)
        self.in_channels = as_tuple(in_channels)
        self.register_buffer("bank", torch.zeros(patches, sum(self.in_channels), dtype=torch.float16))
        self.register_load_state_dict_post_hook(check_memory)

    def vectors(self, features: Features) -> Tensor:
        """Return the unit vectors of all patches, (B, h, w, D)."""
        check_channels(features.maps, self.in_channels)
        size = (features.maps[-1].shape[-2], features.maps[-1].shape[-1])
        units = [F.normalize(resize(m.float(), size, False), dim=1) for m in features.maps]
        return F.normalize(torch.cat(units, 1), dim=1).permute(0, 2, 3, 1)


def check_memory(head: nn.Module, keys: object = None) -> None:
    """Raise if a memory that was read from a file has numbers that none has: its bank holds unit vectors."""
    found = ""
    for name, values in head.named_buffers():
        if values.is_floating_point() and not values.isfinite().all():
            found = f"numbers that are not finite ({name})"
        elif name == "bank" and any(((p.float().norm(dim=1) - 1).abs() > ROUNDED).any() for p in values.split(ADDED)):
            found = "vectors that are not of length 1 (bank)"
        elif name == "shares" and (values < 0).any():
            found = "negative shares of classes (shares)"
        if found:
            raise ValueError(f"the memory holds {found}: its file is damaged; make it again")


class MemoryHead(BankHead):
    """Labels by nearest neighbours: weights softmax(cosine / temperature) over the `neighbours` nearest patches.

    The result is the logarithm of probabilities, which are resized before the logarithm, so that its softmax gives them
    back.

    in_channels: of each map. patches: of the memory. neighbours, temperature: of the vote; published are 30 with 0.02
    and 0.07. lists: 0 searches exactly; otherwise the memory is divided into so many lists by k-means, and `probes`
    of them, the nearest, are searched by faiss on the CPU.
    """

    @checked
    def __init__(
        self,
        in_channels: int | Sequence[int],
        outputs: Mapping[str, Output],
        patches: int,
        neighbours: int = 30,
        temperature: Positive = 0.02,
        lists: Count = 0,
        probes: int = 32,
    ) -> None:
        super().__init__(in_channels, outputs, patches)
        if lists and not 1 <= probes <= lists <= patches:
            raise ValueError(f"lists={lists}, probes={probes}: expected 1 <= probes <= lists <= {patches} patches")
        if list(outputs) != ["labels"] or not isinstance(outputs["labels"], Classes):
            raise ValueError("a memory has one output, labels, of classes")
        self.neighbours, self.temperature = neighbours, temperature
        self.register_buffer("shares", torch.zeros(patches, outputs["labels"].count, dtype=torch.float16))
        self.lists, self.probes = lists, probes
        self.register_buffer("centres", torch.zeros(lists, sum(self.in_channels), dtype=torch.float16))
        self._index: Any = None  # of faiss, made when it is needed
        self.centres: Tensor  # of the lists
        self.shares: Tensor  # of each class in each patch

    def fill(self, vectors: Tensor, shares: Tensor) -> None:
        """Store unit vectors (N, D) and the share of each class in each patch (N, K)."""
        self.bank.copy_(vectors)
        self.shares.copy_(shares)
        self._index = None
        if self.lists:
            self.centres.copy_(centres(vectors, self.lists))

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and indices (Q, k) of the nearest patches of queries (Q, D), in parts.

        A search of lists may find fewer; the cosine of a place that stays empty is -1.
        """
        if not self.lists:
            return nearest(queries, self.bank, self.neighbours)
        values, places = self.index().search(queries.float().cpu().numpy(), min(self.neighbours, len(self.bank)))
        found = torch.from_numpy(values).clamp_min(-1), torch.from_numpy(places).clamp_min(0)
        return found[0].to(queries.device), found[1].to(queries.device)

    def index(self) -> Any:
        """Return faiss's index of the lists; it holds the memory a second time, in fp32."""
        if self._index is None:
            faiss, dim = import_faiss(), self.bank.shape[1]
            quantizer = faiss.IndexFlatIP(dim)
            quantizer.add(self.centres.float().cpu().numpy())
            index = faiss.IndexIVFFlat(quantizer, dim, self.lists, faiss.METRIC_INNER_PRODUCT)
            for part in self.bank.split(ADDED):
                index.add(part.float().cpu().numpy())
            index.nprobe = self.probes
            self._index = index, quantizer  # which the index does not keep alive
        return self._index[0]

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Return the share of each class (B, K, h, w), as the neighbours have it."""
        vectors = self.vectors(features)
        cosines, places = self.nearest(vectors.flatten(0, 2))
        weights = (cosines.float() / self.temperature).softmax(1)
        votes = torch.einsum("qk,qkc->qc", weights, self.shares[places].float())
        return {"labels": votes.unflatten(0, vectors.shape[:3]).permute(0, 3, 1, 2)}

    def forward(self, features: Features, images: Tensor | None = None, size: Size | None = None) -> dict[str, Tensor]:
        return as_logarithms(super().forward(features, images, size))

    def options(self) -> dict[str, Any]:
        return {
            "name": "memory",
            "in_channels": list(self.in_channels),
            "patches": len(self.bank),
            "neighbours": self.neighbours,
            "temperature": self.temperature,
            "lists": self.lists,
            "probes": self.probes,
        }


def as_logarithms(shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the logarithms of maps of probabilities, whose softmax gives them back."""
    return {name: x.clamp_min(LEAST).log() for name, x in shares.items()}


def nearest(queries: Tensor, bank: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return cosines and indices (Q, k) of the nearest unit vectors in a bank (N, D), exactly, in parts."""
    k = min(neighbours, len(bank))
    found: tuple[Tensor, Tensor] | None = None
    step = max(k, SEEN // max(len(queries), 1))
    for start in range(0, len(bank), step):
        cosines = queries @ bank[start : start + step].to(queries.dtype).T
        values, places = cosines.topk(min(k, cosines.shape[1]), dim=1)
        places = places + start
        if found is not None:
            values, places = torch.cat([found[0], values], 1), torch.cat([found[1], places], 1)
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            places = places.gather(1, order)
        found = values, places
    assert found is not None
    return found


def centres(vectors: Tensor, count: int) -> Tensor:
    """Return the unit centres (count, D) of lists of vectors (N, D), by spherical k-means."""
    model = import_faiss().Kmeans(
        vectors.shape[1], count, niter=6, seed=0, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=40,
    )  # fmt: skip
    model.train(vectors.float().cpu().numpy())
    return torch.from_numpy(model.centroids)


def import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ImportError(
            "a memory with lists needs faiss: pip install 'dino-dense[curate]', or lists=0, which searches exactly"
        ) from None
