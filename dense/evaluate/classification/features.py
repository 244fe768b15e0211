"""One vector per image from a frozen backbone: class tokens of the last blocks, the average of the patches, or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dense.backbone import Backbone
from dense.suggest import did_you_mean
from heads.features import Features, Norm

Readout = Literal["class", "average", "class_average", "last4", "last4_average"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
Batches = Tensor | Iterable[Any]  # images, or the batches of a DataLoader


@dataclass(frozen=True)
class Pooled:
    """Pooled features of images, from which a readout selects and concatenates."""

    tokens: Tensor  # N, L, C: class tokens after the final norm, of the last L blocks; L is 0 without a class token
    average: Tensor  # N, C: mean of the patches of the last block, after the final norm
    labels: Tensor | None = None  # N

    def __len__(self) -> int:
        return len(self.average)

    def __getitem__(self, chosen: Tensor | slice) -> Pooled:
        labels = None if self.labels is None else self.labels[chosen]
        return Pooled(self.tokens[chosen], self.average[chosen], labels)

    def readout(self, kind: Readout | None = None) -> Tensor:
        """Return one vector per image, (N, D).

        `class` is the class token, and the default; `average` is the average of the patches, and the default without a
        class token; `class_average` concatenates both. `last4` concatenates the class tokens of the last four blocks
        (fewer if the backbone has fewer), and `last4_average` adds the average of the patches.
        """
        kind = kind or default_readout(self.tokens.shape[1] > 0)
        if kind not in READOUTS:
            raise ValueError(f"readout {kind!r} is none of {', '.join(READOUTS)}.{did_you_mean(str(kind), READOUTS)}")
        if kind == "average":
            return self.average
        if not self.tokens.shape[1]:
            raise ValueError(f"readout {kind!r} needs a class token, and this backbone has none; use 'average'")
        tokens = self.tokens if kind.startswith("last4") else self.tokens[:, -1:]
        parts = [tokens.flatten(1)] + ([self.average] if kind.endswith("average") else [])
        return torch.cat(parts, dim=1)

    def to(self, device: str | torch.device | None) -> Pooled:
        """Move features and labels to a device; None leaves them on theirs."""
        if device is None:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return Pooled(self.tokens.to(device), self.average.to(device), labels)

    @classmethod
    def cat(cls, parts: Sequence[Pooled]) -> Pooled:
        """Concatenate pooled features along the images."""
        labels = [part.labels for part in parts if part.labels is not None]
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.average for part in parts]),
            torch.cat(labels) if labels else None,
        )


def default_readout(class_token: bool) -> Readout:
    """Return the default readout of a backbone with or without a class token."""
    return "class" if class_token else "average"


def blocks_of(readouts: Iterable[Readout]) -> int:
    """Return the number of last blocks whose class tokens these readouts need."""
    return 4 if any(kind.startswith("last4") for kind in readouts) else 1


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside this context, and restore the mode of every submodule afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def statistics(backbone: nn.Module) -> str:
    """Return the statistics that batch norm uses in evaluation mode, in words for a protocol."""
    return "running" if any(isinstance(part, _BatchNorm) for part in backbone.modules()) else "none (no batch norm)"


def final_norm(backbone: Backbone) -> Norm:
    """Return the `norm` that applies the final norm, if the backbone has one, to class tokens and patches."""
    return backbone.spec.norm if backbone.spec.kind == "pyramid" else True


def pool(features: Features, labels: Tensor | None = None) -> Pooled:
    """Return the pooled features, in fp32, of a batch of features."""
    average = features.maps[-1].float().mean((-2, -1))  # B, C
    if not features.has_class_token:
        return Pooled(average.new_zeros(len(average), 0, average.shape[1]), average, labels)
    return Pooled(torch.stack([prefix[:, 0].float() for prefix in features.prefix], dim=1), average, labels)


def extract(
    backbone: Backbone,
    batches: Batches,
    *,
    blocks: int = 1,
    batch_size: int = 64,
    device: str | torch.device | None = "cpu",
) -> Pooled:
    """Return the pooled features of all images, computed batch by batch on the backbone's device.

    batches: images (N, 3, H, W), or an iterable (a DataLoader, say) of such batches or of (images, labels, ...);
    uint8, or float and normalised. blocks: number of last blocks whose class tokens are kept. device: device of the
    result; None for the backbone's.

    The backbone runs in evaluation mode, so batch norm uses its running statistics; the mode of every module is
    restored afterwards.
    """
    if isinstance(batches, Tensor):
        batches = batches.split(batch_size)
    parts: list[Pooled] = []
    with evaluating(backbone):
        for batch in batches:
            images, labels = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
            if len(images):
                parts.append(describe(backbone, images, labels, blocks=blocks).to(device))
    if not parts:
        raise ValueError("there are no images to extract features from")
    return Pooled.cat(parts)  # outside inference mode: plain tensors, which may take part in training


@torch.inference_mode()
def describe(backbone: Backbone, images: Tensor, labels: Tensor | None = None, *, blocks: int = 1) -> Pooled:
    """Return the pooled features of one batch, on the backbone's device and in the backbone's current mode."""
    depth = backbone.spec.depth
    layers = tuple(range(max(depth - blocks, 0), depth)) if backbone.spec.class_token else (depth - 1,)
    images = to_input(backbone, images.to(next(backbone.parameters()).device, non_blocking=True))
    return pool(backbone(images, layers=layers, norm=final_norm(backbone)), labels)


def to_input(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the backbone's input: uint8 images are normalised by its mean and standard deviation."""
    return backbone.normalise(images) if images.dtype == torch.uint8 else images
