"""The one interface to every backbone: images of any size in, `Features` out."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dense.backbone.build import build_timm
from dense.backbone.saved import SavedModel
from dense.backbone.spec import BackboneSpec, Layers, Padding, check_channels, check_norm, resolve_layers
from dense.backbone.weights.official import export_official
from dense.backbone.weights.report import UNUSED, LoadReport, load_strictly, split_unused
from heads.features import Features, Norm, Size, Step

FLOOR = 224  # pixels of the shorter side that the padding policy `floor` at least gives
LONGEST = 4096  # pixels of the longer side to which it enlarges at most
Borders = tuple[int, int, int, int]  # top, bottom, left, right, in pixels
Query = Literal["class", "registers"] | tuple[int, int]
Projection = Literal["query", "key", "value", "token"]


class Backbone(nn.Module, SavedModel, abc.ABC):
    """A feature extractor with a fixed contract; `ViT`, `Eva`, `Hybrid` and `Pyramid` adapt timm's models to it.

    It never chooses a device, and every numerical choice is a field of `spec`. Frozen is frozen: after `freeze()` no
    parameter has a gradient and `train()` leaves the backbone in evaluation mode, yet gradients still flow through it
    to the image.
    """

    adapters: ClassVar[dict[str, type[Backbone]]] = {}  # `spec.kind` -> adapter; each adapter registers itself

    def __init_subclass__(cls, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind is not None:  # sharding makes subclasses of its own
            Backbone.adapters[kind] = cls

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.frozen = False
        self.report: LoadReport | None = None  # what matched when weights were loaded
        self.unused_tensors: dict[str, Tensor] = {}  # official tensors that `forward` never reads, for an exact export

    @classmethod
    def from_spec(cls, spec: BackboneSpec) -> Backbone:
        """Return the adapter for a spec, with random initialisation."""
        return cls.adapters[spec.kind](spec, build_timm(spec))  # type: ignore[call-arg]

    # ---- features

    def forward(
        self,
        images: Tensor,
        layers: Layers | list[int] | None = None,
        norm: Norm | None = None,
        masks: Tensor | None = None,
    ) -> Features:
        """Return features of normalised images (B, N, H, W), any H and W of at least one patch.

        N: as many channels as `spec.channels` names.


        layers: block indices, "last", "last4", "even4" or "default"; norm: apply the final norm to every layer (True),
        to none (False) or to the last block alone ("last"); both default to `spec`. masks: (B, h, w) or (B, h*w), true
        where the mask token replaces a patch before positions are added.
        """
        resolved = resolve_layers(layers, self.spec)
        norm = self.spec.norm if norm is None else norm
        check_norm(norm)
        padded, borders, resized = self.pad_to_patch_multiple(images)
        maps, prefix = self._features(padded, resolved, norm, masks)
        height, width = padded.shape[-2:]
        return Features(
            maps=maps,
            prefix=prefix,
            image_size=(images.shape[-2], images.shape[-1]),
            padded_size=(height, width),
            padding=borders,
            strides=self._strides(resolved),
            layers=resolved,
            norm=norm,
            has_class_token=self.spec.class_token,
            resized=resized,
        )

    def after_norm(self, features: Features) -> Features:
        """Return features that were read with norm=False as norm=True would have given them, without a second pass."""
        if features.norm is not False:
            raise ValueError(f"these features were read with norm={features.norm!r}; read them with norm=False")
        pairs = [self._after_norm(*pair) for pair in zip(features.layers, features.maps, features.prefix, strict=True)]
        return replace(features, maps=tuple(m for m, _ in pairs), prefix=tuple(p for _, p in pairs), norm=True)

    @abc.abstractmethod
    def _after_norm(self, layer: int, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the final norm to the map and the prefix tokens of one layer, if it has one."""

    def last_blocks(self, grid: Size, extra: int) -> Step:
        """Lend blocks to a head that runs them with tokens of its own; see `ViT.last_blocks`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no blocks to lend; use a ViT backbone")

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm behind the last block to tokens (B, N, C)."""
        raise ValueError(f"{self.spec.name} is convolutional and has no norm of tokens; use a ViT backbone")

    def image_feature(self, images: Tensor) -> Tensor:
        """Return one vector per image (B, C): the class token after the final norm, or the mean of the deepest map."""
        return self.image_features([images])[0]

    def image_features(
        self,
        groups: Sequence[Tensor],
        masks: Tensor | None = None,
        patches: bool = False,
        local_norm: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `image_feature` of images of several sizes, one group (B, N, H, W) after the other: (sum of B, C).

        patches: also return the deepest patches (B, h*w, C) of the first group, after the final norm. masks: of the
        first group, see `forward`. local_norm: replaces the final norm for all groups but the first.
        """
        vectors, tokens = [], None
        for number, images in enumerate(groups):
            other = local_norm if number else None
            norm = None if self.spec.kind == "pyramid" else other is None
            features = self(images, layers="last", norm=norm, masks=None if number else masks)
            vector = features.class_token if features.has_class_token else features.maps[-1].mean((-2, -1))
            vectors.append(vector if other is None else other(vector))
            if patches and number == 0:
                tokens = features.maps[-1].flatten(2).mT
        return torch.cat(vectors), tokens

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (B, N, H, W) or (B, H, W, N) by `spec.mean` and `spec.std`: float (B, N, H, W)."""
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images.dtype}")
        count = len(self.spec.channels)
        if images.ndim == 4 and images.shape[-1] == count and images.shape[1] != count:
            images = images.permute(0, 3, 1, 2)
        self.check_channels(images)
        mean, std = self.statistics(images.device)
        return (images.float().div_(255) - mean) / std

    def statistics(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel, (1, N, 1, 1)."""
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.spec.mean, self.spec.std))
        return mean, std

    def blank(self, size: Size, device: torch.device | str = "meta") -> Tensor:
        """Return an image (1, N, H, W) without content, from which other shapes follow."""
        return torch.empty(1, len(self.spec.channels), *size, device=device)

    def check_channels(self, images: Tensor) -> None:
        """Raise unless images (B, N, H, W) have the channels of the backbone."""
        if images.ndim != 4:
            raise ValueError(
                f"expected images of shape (B, {len(self.spec.channels)}, H, W), got {tuple(images.shape)}"
            )
        check_channels(images.shape[1], self.spec.channels, f" in {tuple(images.shape)}")

    def pad_to_patch_multiple(self, images: Tensor) -> tuple[Tensor, Borders, bool]:
        """Check images (B, N, H, W) and bring both sides to a multiple of the patch, as `spec.padding` says."""
        self.check_channels(images)
        if not images.is_floating_point():
            raise ValueError(
                f"expected float images normalised by spec.mean and spec.std, got {images.dtype}; "
                "divide by 255 and normalise first"
            )
        smallest = 1 if self.spec.kind == "pyramid" else self.spec.patch
        return pad_to_multiple(images, self.spec.patch, self.spec.padding, smallest)

    def _apart(self, images: Tensor) -> Tensor:
        """Return each channel as an image of its own, (B*N, 1, H, W), where the network sees one at a time."""
        return images.flatten(0, 1).unsqueeze(1) if self.spec.each_channel else images

    def _together(self, x: Tensor) -> Tensor:
        """Return the mean over channels of what the network gave for each of them: (B*N, ...) to (B, ...)."""
        return x.unflatten(0, (-1, len(self.spec.channels))).mean(1) if self.spec.each_channel else x

    @abc.abstractmethod
    def _features(
        self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return maps (B, C, h, w) and prefix tokens (B, P, C) of images whose sides are multiples of the patch."""

    @abc.abstractmethod
    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stride of each chosen map in pixels."""

    @abc.abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute activations in the backward pass, to save memory."""

    def attention(self, images: Tensor, layer: int = -1, query: Query = "class") -> Tensor:
        """Return the attention of one query to every patch, (B, heads, h, w); see `ViT.attention`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no attention; use a ViT backbone")

    def qkv(self, images: Tensor, layer: int = -1, which: Projection = "key", positions: bool = False) -> Tensor:
        """Return query, key, value or token features, (B, C, h, w); see `ViT.qkv`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no queries or keys; use a ViT backbone")

    def tokens_and_attention(self, images: Tensor, norm: bool, patches: bool = True) -> tuple[Tensor, Tensor]:
        """Return the last tokens, and the attention of the last block, in one pass; see `ViT.tokens_and_attention`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no attention; use a ViT backbone")

    # ---- freezing

    def freeze(self) -> Self:
        """Take gradients from all parameters and stay in evaluation mode."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> Self:
        """Undo `freeze`; the backbone stays in evaluation mode until `train()` is called."""
        self.frozen = False
        return self.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set training mode as nn.Module does; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    # ---- saving

    def keep_unused(self, tensors: dict[str, Tensor]) -> None:
        """Keep tensors of the official layout that this model does not use, under their official names."""
        self.unused_tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def export_official(self, path: str | Path | None = None) -> dict[str, Tensor]:
        """Return the state dict in its release's own layout, and write it to `path` (.pth or .safetensors) if given."""
        return export_official(self, path)

    def config(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        return {"backbone": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Backbone:
        """Build the backbone that a config.json describes, with random initialisation."""
        if "backbone" not in config:
            raise ValueError(
                "config.json holds no 'backbone'; this directory was not saved by Backbone.save_pretrained"
            )
        return cls.from_spec(BackboneSpec.from_dict(config["backbone"]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the contents of model.safetensors: the state dict and, under a prefix, the unused tensors."""
        return self.state_dict() | {f"{UNUSED}{name}": tensor for name, tensor in self.unused_tensors.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load the contents of model.safetensors; a partial match raises."""
        state, unused = split_unused(tensors)
        self.keep_unused(unused)
        self.report = load_strictly(self, state, source="model.safetensors", layout="own")

    def extra_repr(self) -> str:
        s = self.spec
        size = f"patch {s.patch}, dim {s.dim}, depth {s.depth}"
        return f"{s.name} ({s.family}), {size}, positions {s.positions}, frozen {self.frozen}"


def pad_to_multiple(
    images: Tensor, multiple: int, policy: Padding, smallest: int | None = None
) -> tuple[Tensor, Borders, bool]:
    """Bring (B, C, H, W) to a multiple of `multiple`; return the images, the borders added and whether it resized them.

    `pad` adds zeros (the mean colour) around the centre, `crop` cuts around the centre and gives negative borders,
    `resize` stretches to the nearest multiple, `floor` to the largest one not above the size, once an image whose
    shorter side is below FLOOR was enlarged to it. A side below `smallest` (by default `multiple`) raises, except with
    `floor`; there an image raises whose longer side would be enlarged to more than LONGEST.
    """
    height, width = images.shape[-2:]
    smallest = multiple if smallest is None or policy == "crop" else smallest
    if min(height, width) < smallest and policy != "floor":
        raise ValueError(
            f"an image of {height}x{width} is smaller than one patch of {smallest}x{smallest}; enlarge it first"
        )
    if policy in ("resize", "floor"):
        if policy == "floor":
            larger = max(1.0, -(-FLOOR // multiple) * multiple / min(height, width))
            size = tuple(int(n * larger + 1e-6) // multiple * multiple for n in (height, width))
            if larger > 1 and max(size) > LONGEST:
                raise ValueError(
                    f"padding='floor' would enlarge an image of {height}x{width} to {size[0]}x{size[1]}, for a shorter "
                    f"side of {FLOOR} pixels, and enlarges to {LONGEST} at most; crop the image, or use another padding"
                )
        else:
            size = tuple(max(multiple, round(n / multiple) * multiple) for n in (height, width))
        if size == (height, width):
            return images, (0, 0, 0, 0), False
        return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False), (0, 0, 0, 0), True
    rest = [-n % multiple if policy == "pad" else n % multiple for n in (height, width)]
    if not any(rest):
        return images, (0, 0, 0, 0), False
    sign = 1 if policy == "pad" else -1
    top, bottom, left, right = (sign * n for side in rest for n in (side // 2, side - side // 2))
    return F.pad(images, (left, right, top, bottom)), (top, bottom, left, right), False


def any_requires_grad(parameters: Iterable[Tensor | None]) -> bool:
    """Return whether gradients are recorded and some tensor requires one."""
    return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters)
