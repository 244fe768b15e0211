"""One vector per image from a frozen backbone: class tokens, averages of patches or both, of layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dense.backbone import Backbone
from dense.backbone.spec import HYBRID_STAGES, BackboneSpec, resolve_layers
from dense.suggest import did_you_mean
from heads.features import Features, Norm

Readout = Literal["class", "average", "class_average", "last4", "last4_average"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
Batches = Tensor | Iterable[Any]  # images, or the batches of a DataLoader


class Summary(NamedTuple):
    """Which vector of an image: its class token or the average of its patches, of which layer, after the final norm?"""

    kind: Literal["class", "average"]
    layer: int
    normed: bool


class Choice(NamedTuple):
    """What may be chosen without training: the readout, the layer that it ends in, and the use of the final norm."""

    readout: Readout
    layer: int
    normed: bool

    def __str__(self) -> str:
        return f"{self.readout}, layer {self.layer}, {'after' if self.normed else 'before'} the final norm"


@dataclass(frozen=True)
class Pooled:
    """Pooled features of images, from which a readout selects and concatenates."""

    vectors: Mapping[Summary, Tensor]  # each N, C
    labels: Tensor | None = None  # N

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def __getitem__(self, chosen: Tensor | slice) -> Pooled:
        return self.map(lambda tensor: tensor[chosen])

    def map(self, function: Callable[[Tensor], Tensor]) -> Pooled:
        """Apply `function` to all vectors and to the labels."""
        labels = None if self.labels is None else function(self.labels)
        return Pooled({summary: function(tensor) for summary, tensor in self.vectors.items()}, labels)

    def readout(self, kind: Readout | Choice | None = None) -> Tensor:
        """Return one vector per image, (N, D); without a `Choice`, of the deepest layer, after the final norm.

        `class` is the class token, and the default; `average` is the average of the patches, and the default without a
        class token; `class_average` concatenates both. `last4` concatenates the class tokens of the last four blocks
        up to the layer (fewer if there are fewer), and `last4_average` adds the average of the patches.
        """
        deepest = max(summary for summary in self.vectors if summary.kind == "average")
        tokens = any(summary.kind == "class" for summary in self.vectors)
        if not isinstance(kind, Choice):
            kind = Choice(kind or default_readout(tokens), deepest.layer, deepest.normed)
        name, layer, normed = kind
        if name not in READOUTS:
            raise ValueError(f"readout {name!r} is none of {', '.join(READOUTS)}.{did_you_mean(str(name), READOUTS)}")
        if name != "average" and not tokens:
            raise ValueError(f"readout {name!r} needs a class token, and this backbone has none; use 'average'")
        used = () if name == "average" else range(layer - (3 if name.startswith("last4") else 0), layer + 1)
        parts = [Summary("class", one, normed) for one in used]
        parts += [Summary("average", layer, normed)] if name.endswith("average") else []
        return torch.cat([self.vectors[part] for part in parts if part in self.vectors], dim=1)

    def to(self, device: str | torch.device | None) -> Pooled:
        """Move features and labels to a device; None leaves them on theirs."""
        return self if device is None else self.map(lambda tensor: tensor.to(device))

    @classmethod
    def cat(cls, parts: Sequence[Pooled]) -> Pooled:
        """Concatenate pooled features along the images."""
        labels = [part.labels for part in parts if part.labels is not None]
        vectors = {summary: torch.cat([part.vectors[summary] for part in parts]) for summary in parts[0].vectors}
        return cls(vectors, torch.cat(labels) if labels else None)


def default_readout(class_token: bool) -> Readout:
    """Return the default readout of a backbone with or without a class token."""
    return "class" if class_token else "average"


def choices_of(
    backbone: Backbone,
    layers: Sequence[int | str] | int | str = "last",
    norm: Sequence[bool] | bool | str | None = None,
    readout: Sequence[Readout] | str | None = None,
    default: Sequence[Readout] | None = None,
) -> list[Choice]:
    """Return every combination of readout, layer and norm that this backbone has.

    layers: indices or names of layers, each of which is measured by itself, or "all"; norm: True, False, both, or "all"
    (after the final norm if left out); readout: names, or "all" (`default`, else class token or average, if left out).
    """
    spec = backbone.spec
    layers = tuple(range(spec.depth)) if layers in ("all", ["all"], ("all",)) else layers
    named = (layers,) if isinstance(layers, int | str) else layers
    places = sorted({index for one in named for index in resolve_layers(one, spec)})
    has_norm = final_norm(backbone) is not False
    if norm is None or isinstance(norm, bool):
        norms: Sequence[bool] = (has_norm if norm is None else norm,)
    else:
        norms = ((True, False) if has_norm else (False,)) if norm in ("all", ["all"], ("all",)) else tuple(norm)  # type: ignore[arg-type]
    if True in norms and not has_norm:
        raise ValueError(f"{spec.name} has no final norm; leave norm out, or use norm=False")
    every = readout in ("all", ["all"], ("all",))
    kinds: Any = READOUTS if every else (readout,) if isinstance(readout, str) else readout
    kinds = kinds or default or (default_readout(spec.class_token),)
    for kind in kinds:
        if kind not in READOUTS:
            raise ValueError(f"readout {kind!r} is none of {', '.join(READOUTS)}.{did_you_mean(str(kind), READOUTS)}")
        if kind != "average" and not spec.class_token and not every:
            raise ValueError(f"readout {kind!r} needs a class token, and {spec.name} has none; use 'average'")
    several = len(places) * len(kinds) > 1
    return [
        Choice(kind, layer, normed)
        for layer in places
        for normed in norms
        for kind in kinds
        if _exists(kind, layer, spec, several)
    ]


def _exists(kind: Readout, layer: int, spec: BackboneSpec, several: bool) -> bool:
    """Whether a layer has a class token for this readout and, where several are compared, four blocks up to it."""
    if kind == "average":
        return True
    first = HYBRID_STAGES if spec.kind == "hybrid" else 0
    least = first + 3 if kind.startswith("last4") and several else first
    return spec.class_token and layer >= min(least, spec.depth - 1)


def layers_of(choices: Iterable[Choice]) -> tuple[int, ...]:
    """Return the layers from which these choices read."""
    spans = (range(max(c.layer - 3 if c.readout.startswith("last4") else c.layer, 0), c.layer + 1) for c in choices)
    return tuple(sorted({layer for span in spans for layer in span}))


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
    vectors: dict[Summary, Tensor] = {}
    normed = features.norm is not False
    for layer, prefix, patches in zip(features.layers, features.prefix, features.maps, strict=True):
        if features.has_class_token and prefix.shape[1]:
            vectors[Summary("class", layer, normed)] = prefix[:, 0].float()
        vectors[Summary("average", layer, normed)] = patches.float().mean((-2, -1))
    return Pooled(vectors, labels)


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
    uint8, or float and normalised. blocks: number of last blocks that are pooled. device: device of the
    result; None for the backbone's.

    The backbone runs in evaluation mode, so batch norm uses its running statistics; the mode of every module is
    restored afterwards.
    """
    if isinstance(batches, Tensor):
        batches = batches.split(batch_size)
    with evaluating(backbone):
        return gather(lambda *batch: describe(backbone, *batch, blocks=blocks), batches, device)


Describe = Callable[[Tensor, Tensor | None], Pooled]  # images and labels of one batch


def gather(function: Describe, batches: Iterable[Any], device: str | torch.device | None = "cpu") -> Pooled:
    """Return what `function` makes of all images, on a device; see `extract` for the batches."""
    parts: list[Pooled] = []
    for batch in batches:
        images, labels = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
        if len(images):
            parts.append(function(images, labels).to(device))
    if not parts:
        raise ValueError("there are no images to extract features from")
    return Pooled.cat(parts)  # outside inference mode: plain tensors, which may take part in training


@torch.inference_mode()
def describe(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    blocks: int = 1,
    choices: Sequence[Choice] = (),
) -> Pooled:
    """Return the pooled features of one batch, on the backbone's device and in the backbone's current mode.

    choices: for which the features are read; of the last `blocks` layers after the final norm if there are none.
    """
    depth = backbone.spec.depth
    last = tuple(range(max(depth - blocks, 0), depth)) if backbone.spec.class_token else (depth - 1,)
    layers, norms = layers_of(choices) or last, {choice.normed for choice in choices}
    images = to_input(backbone, images.to(next(backbone.parameters()).device, non_blocking=True))
    if len(norms) < 2:
        norm: Norm = norms.pop() if norms else final_norm(backbone)
        return pool(backbone(images, layers=layers, norm=norm), labels)
    features = backbone(images, layers=layers, norm=False)
    return Pooled({**pool(features).vectors, **pool(backbone.after_norm(features)).vectors}, labels)


def describe_pixels(images: Tensor, labels: Tensor | None = None) -> Pooled:
    """Return raw pixels in place of features: the uint8 images at 16x16 pixels, less their mean."""
    small = F.interpolate(images.float() / 255, size=(16, 16), mode="area").flatten(1)
    return Pooled({Summary("average", 0, False): small - small.mean(1, keepdim=True)}, labels)


PIXELS = Choice("average", 0, False)  # the only readout of `describe_pixels`


def randomly_initialised(backbone: Backbone, seed: int = 0) -> Backbone:
    """Return the same network with random initialisation, frozen and on the same device; no random state changes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU
        return Backbone.from_spec(backbone.spec).freeze().to(next(backbone.parameters()).device)


def to_input(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the backbone's input: uint8 images are normalised by its mean and standard deviation."""
    return backbone.normalise(images) if images.dtype == torch.uint8 else images
