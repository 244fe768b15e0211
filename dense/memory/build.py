"""From annotated images to a model that segments by their patches, saved and used like any other model."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.console import progress
from dense.data.labelled.sample import IGNORE, DataError, LabelledSource
from dense.data.transforms import resize_image
from dense.model.network import DenseModel, Inference
from dense.suggest import did_you_mean
from heads.features import Norm
from heads.layers import to_padded_size
from heads.memory import MemoryHead
from heads.outputs import Classes

Choice = Literal["balanced", "random", "coreset"]
SURPLUS = 4  # times its part that an image may give to a coreset


def usual_layer(depth: int) -> int:
    """Return the block at three quarters of the depth: on CamVid better than the last one."""
    return max(0, round(0.75 * depth) - 1)


@torch.inference_mode()
def build_memory(
    backbone: Backbone,
    source: LabelledSource,
    *,
    layers: Layers | list[int] | None = None,
    norm: Norm = True,
    resize: int | tuple[int, int] | None = 448,
    patches: int = 100_000,
    choice: Choice = "balanced",
    neighbours: int = 30,
    temperature: float = 0.02,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
) -> DenseModel:
    """Return a model whose head remembers patches of annotated images.

    Args:
        backbone: frozen.
        source: images with masks.
        layers: of the features; the block at three quarters of the depth if left out.
        norm: whether the final norm is applied to them.
        resize: working size of images here and in prediction: the shorter side, or height and width; None keeps it.
        patches: largest number that is kept, divided equally among the images.
        choice: of the patches of an image that has more than its part: "balanced" prefers those of classes that few of
            its patches hold (Hummingbird), "random", or "coreset", which covers the features of all images by greedy
            k-centres.
        neighbours, temperature: of the vote, see `heads.MemoryHead`.
        seed: of the choice.
        facts: of the model card.
    """
    if choice not in get_args(Choice):
        raise ValueError(
            f"choice={choice!r}: expected {', '.join(get_args(Choice))}.{did_you_mean(choice, get_args(Choice))}"
        )
    if patches < 1:
        raise ValueError(f"patches={patches}: expected at least 1")
    if source.classes is None:
        raise DataError("a memory needs images with masks, and these have none")
    spec = backbone.spec
    chosen = resolve_layers(usual_layer(spec.depth) if layers is None else layers, spec)
    inference, count = Inference(resize=resize), len(source.classes)
    outputs = {"labels": Classes(count, names=tuple(source.classes))}
    channels = [spec.channels[layer] if spec.channels else spec.dim for layer in chosen]
    reader = MemoryHead(channels, outputs, 1)
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    each = max(1, patches // max(len(source), 1)) * (SURPLUS if choice == "coreset" else 1)
    vectors, shares = list[Tensor](), list[Tensor]()
    for index in progress(range(len(source)), "annotated images"):
        sample = source.read(index)
        if sample.labels is None:
            continue
        image = resize_image(sample.image, inference.size_of(sample.image.shape[:2]))
        batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        features = backbone(backbone.normalise(batch), layers=chosen, norm=norm)
        own = reader.vectors(features).flatten(0, 2).cpu()
        held = patch_shares(torch.from_numpy(sample.labels), features, count)
        known = held.sum(1) > 0
        own, held = own[known], held[known] / held[known].sum(1, keepdim=True)
        if len(own) > each:
            places = _part(held, each, "random" if choice == "coreset" else choice, generator)
            own, held = own[places], held[places]
        vectors.append(own)
        shares.append(held)
    if not sum(map(len, vectors)):
        raise DataError(f"none of {len(source)} masks labels a patch; annotate at least one object")
    bank, labels = torch.cat(vectors), torch.cat(shares)
    if len(bank) > patches:
        places = k_centres(bank, patches, seed) if choice == "coreset" else torch.arange(patches)
        bank, labels = bank[places], labels[places]
    head = MemoryHead(channels, outputs, len(bank), neighbours=neighbours, temperature=temperature)
    head.fill(bank, labels)
    about = {"annotated images": len(source), "patches": len(bank), "choice": choice, "seed": seed}
    classes = tuple(source.classes)
    return DenseModel(
        backbone, head.to(device), chosen, norm, "segmentation", classes, inference, about | (facts or {})
    ).eval()


def patch_shares(labels: Tensor, features: Any, count: int) -> Tensor:
    """Return the share (N, K) of each class in each patch of labels (H, W); the rest of a patch is unknown."""
    stride = features.strides[-1]
    size = tuple(features.image_size)
    resized = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    known = resized != IGNORE
    one_hot = F.one_hot(resized.where(known, 0), count).float() * known[..., None]
    padded = to_padded_size(one_hot.permute(2, 0, 1)[None], features)
    return F.avg_pool2d(padded, stride)[0].flatten(1).T


def _part(held: Tensor, most: int, choice: str, generator: torch.Generator) -> Tensor:
    """Return the indices of `most` patches, given the share of each class (N, K)."""
    luck = torch.rand(len(held), generator=generator)
    if choice == "random":
        return luck.argsort()[:most]
    present = (held > 0).float()
    return ((present @ present.sum(0)) * luck).argsort()[:most]


def k_centres(vectors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the indices of `count` rows that cover unit vectors: each next one is the farthest from those before."""
    first = int(torch.randint(len(vectors), (1,), generator=torch.Generator().manual_seed(seed)))
    places, nearest = [first], vectors @ vectors[first]
    while len(places) < min(count, len(vectors)):
        places.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[places[-1]])
    return torch.tensor(places)
