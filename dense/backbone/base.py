"""The one interface to every backbone: images of any size in, `Features` out."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from dense.backbone.hub import SavedModel
from dense.backbone.spec import BackboneSpec, Borders, Layers, check_norm, fit, resolve_layers
from dense.backbone.weights.report import LoadReport, load_strictly
from heads.features import Features, Norm

Query = Literal["class", "registers"] | tuple[int, int]
Projection = Literal["query", "key", "value", "token"]


class Backbone(nn.Module, SavedModel, abc.ABC):
    """A feature extractor with a fixed contract; `ViT`, `Eva` and `Pyramid` adapt timm's models to it.

    It never chooses a device and never hides a numerical choice: they are all in `spec`. Frozen is frozen: after
    `freeze()` no parameter has a gradient and `train()` leaves it in evaluation mode, yet gradients still flow through
    it to the image.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.frozen = False
        self.report: LoadReport | None = None  # what matched when weights were loaded
        self.carried: dict[str, Tensor] = {}  # official tensors the forward never reads, kept for an exact export

    # ---- use

    def forward(
        self,
        images: Tensor,
        layers: Layers | list[int] | None = None,
        norm: Norm | None = None,
        masks: Tensor | None = None,
    ) -> Features:
        """Features of normalised images (B, 3, H, W), any H and W of at least one patch.

        layers: block indices, "last", "last4", "even4" or "default"; norm: apply the final norm to every layer (True),
        to none (False) or to the last block alone ("last"); both default to `spec`. masks: (B, h, w) or (B, h*w), true
        where a patch is replaced by the mask token before positions are added.
        """
        resolved = resolve_layers(layers, self.spec)
        norm = self.spec.norm if norm is None else norm
        check_norm(norm)
        padded, borders, resized = self.fit(images)
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

    def image_feature(self, images: Tensor) -> Tensor:
        """One vector an image (B, C): the class token after the final norm, or the mean of the deepest map."""
        return self.image_features([images])[0]

    def image_features(
        self,
        groups: Sequence[Tensor],
        masks: Tensor | None = None,
        patches: bool = False,
        norm: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`picture_feature` of images of several sizes, one group (B, 3, H, W) after the other: (sum of B, C).

        With `patches` also the deepest patches (B, h*w, C) of the first group, after the final norm. masks: of the first
        group, see `forward`. norm: takes the place of the final norm for the vectors of all groups but the first.
        """
        vectors, tokens = [], None
        for number, images in enumerate(groups):
            own = norm if number else None
            normed = None if self.spec.kind == "pyramid" else own is None
            features = self(images, layers="last", norm=normed, masks=None if number else masks)
            vector = features.class_token if features.has_class_token else features.maps[-1].mean((-2, -1))
            vectors.append(vector if own is None else own(vector))
            if patches and number == 0:
                tokens = features.maps[-1].flatten(2).mT
        return torch.cat(vectors), tokens

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) or (B, H, W, 3) -> float (B, 3, H, W), by `spec.mean` and `spec.std`, where they are."""
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images.dtype}")
        if images.shape[-1] == 3 and images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.spec.mean, self.spec.std))
        return (images.float().div_(255) - mean) / std

    def fit(self, images: Tensor) -> tuple[Tensor, Borders, bool]:
        """Check images (B, 3, H, W) and bring them to a multiple of the patch by `spec.padding`."""
        if images.ndim != 4:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        if images.shape[1] != 3:
            raise ValueError(
                f"expected 3 channels (RGB), got {images.shape[1]} in {tuple(images.shape)}; drop the alpha channel or "
                "convert with .convert('RGB') first"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"expected float images normalised by spec.mean and spec.std, got {images.dtype}; "
                "divide by 255 and normalise first"
            )
        smallest = 1 if self.spec.kind == "pyramid" else self.spec.patch
        return fit(images, self.spec.patch, self.spec.padding, smallest)

    @abc.abstractmethod
    def _features(
        self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Maps (B, C, h, w) and prefix tokens (B, P, C) of images whose size fits."""

    @abc.abstractmethod
    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels per cell of each chosen map."""

    @abc.abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute each block in the backward pass, for less memory."""

    def attention(self, images: Tensor, layer: int = -1, query: Query = "class") -> Tensor:
        """Attention of one query to every patch, (B, heads, h, w); see `ViT.attention`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no attention; use a ViT backbone")

    def qkv(self, images: Tensor, layer: int = -1, which: Projection = "key", positions: bool = False) -> Tensor:
        """Query, key, value or token features, (B, C, h, w); see `ViT.qkv`."""
        raise ValueError(f"{self.spec.name} is convolutional and has no queries or keys; use a ViT backbone")

    # ---- frozen

    def freeze(self) -> Self:
        """No gradients for the parameters, evaluation mode for good."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> Self:
        """Undo `freeze`; the mode stays evaluation until `train()` is called."""
        self.frozen = False
        return self.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    # ---- saved

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Keep tensors of the official layout that this model does not use, under their official names."""
        self.carried = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def export_official(self, path: str | Path | None = None) -> dict[str, Tensor]:
        """The state dict in its release's own layout; also written to `path` (.pth or .safetensors) when one is given."""
        from dense.backbone.weights.official import export_official

        return export_official(self, path)

    @classmethod
    def from_spec(cls, spec: BackboneSpec) -> Backbone:
        """Build the right adapter, with random initialisation."""
        from dense.backbone.build import build

        return build(spec)

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"backbone": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Backbone:
        """Counterpart of `config`."""
        if "backbone" not in config:
            raise ValueError(
                "config.json holds no 'backbone'; this directory was not saved by Backbone.save_pretrained"
            )
        return cls.from_spec(BackboneSpec.from_dict(config["backbone"]))

    def tensors(self) -> dict[str, Tensor]:
        """What model.safetensors holds: the state dict and, under `carried.`, the carried tensors."""
        return self.state_dict() | {f"carried.{k}": v for k, v in self.carried.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Counterpart of `tensors`, strict."""
        self.carry({k.removeprefix("carried."): v for k, v in tensors.items() if k.startswith("carried.")})
        own = {k: v for k, v in tensors.items() if not k.startswith("carried.")}
        self.report = load_strictly(self, own, source="model.safetensors", layout="own")

    def extra_repr(self) -> str:
        """One line of facts under the class name."""
        s = self.spec
        return f"{s.name} ({s.family}), patch {s.patch}, dim {s.dim}, depth {s.depth}, positions {s.positions}, frozen {self.frozen}"


def any_requires_grad(parameters: Iterable[Tensor | None]) -> bool:
    """Whether gradients are recorded and some tensor wants one."""
    return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters)
