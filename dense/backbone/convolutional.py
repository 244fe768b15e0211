"""Adapters over timm's models with convolutional stages: pyramids such as ResNet, and hybrids of a ResNet and a ViT."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from dense.backbone.base import Backbone
from dense.backbone.spec import HYBRID_STAGES, BackboneSpec
from dense.backbone.vit import Maps, ViT
from heads.features import Norm


class Pyramid(Backbone, kind="pyramid"):
    """A timm model with `forward_intermediates` whose stages have their own strides; the prefix is empty.

    The final norm, where there is one (ConvNeXt, ResNetV2), belongs to the deepest stage; every setting of `norm`
    leaves shallower stages raw.
    """

    def __init__(self, spec: BackboneSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model: Any = model

    def _features(self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None) -> tuple[Maps, Maps]:
        if masks is not None:
            raise ValueError(f"{self.spec.name} is convolutional and has no mask token; masks need a ViT backbone")
        final_norm = None if norm is False else self._final_norm()
        pixels = self._apart(images).contiguous(memory_format=torch.channels_last)  # faster, above all in bfloat16
        maps = list(
            self.model.forward_intermediates(
                pixels,
                indices=list(layers),
                norm=False,
                output_fmt="NCHW",
                stop_early=True,
                intermediates_only=True,
            )
        )
        maps = [self._together(m) for m in maps]
        if final_norm is not None and layers[-1] == self.spec.depth - 1:
            maps[-1] = final_norm(maps[-1])
        return tuple(maps), _no_tokens(maps)

    def _final_norm(self) -> nn.Module:
        for owner in (getattr(self.model, "head", None), self.model):
            norm = getattr(owner, "norm", None)
            if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
                return norm
        raise ValueError(f"{self.spec.name} has no final norm; use norm=False")

    def _after_norm(self, layer: int, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        norm = self._final_norm()
        return (norm(patches) if layer == self.spec.depth - 1 else patches), prefix

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.spec.strides[layer] for layer in layers)

    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute stages in the backward pass, to save memory."""
        self.model.set_grad_checkpointing(enable)
        return self


class Hybrid(ViT, kind="hybrid"):
    """A ViT on a ResNet.

    As in DPT, layers 0 and 1 are the first two stages, raw and without a prefix; the other layers are blocks.
    """

    def _features(self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None) -> tuple[Maps, Maps]:
        images = self._apart(images)
        if masks is not None and self.spec.each_channel:
            masks = masks.repeat_interleave(len(self.spec.channels), 0)
        stages = self._stages(self._hide_masked(images, masks))
        maps = tuple(self._together(stages[layer]) for layer in layers if layer < HYBRID_STAGES)
        blocks = tuple(layer for layer in layers if layer >= HYBRID_STAGES)
        if not blocks:
            return maps, _no_tokens(maps)
        embedded = self._tokens(self._project(stages[-1]), self._grid(images), masks)
        deeper, prefix = self._layers(*embedded, blocks, norm)
        return maps + deeper, _no_tokens(maps) + prefix

    def _after_norm(self, layer: int, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        return (patches, prefix) if layer < HYBRID_STAGES else super()._after_norm(layer, patches, prefix)

    def _patches(self, images: Tensor) -> Tensor:
        return self._project(self._stages(images)[-1])

    def _project(self, x: Tensor) -> Tensor:
        """Project the deepest stage to patches (B, h*w, C)."""
        embed = self.model.patch_embed
        return embed.proj(embed.backbone.norm(x)).flatten(2).transpose(1, 2)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """Return the map of each stage of the ResNet, of strides 4, 8 and 16."""
        resnet = self.model.patch_embed.backbone
        x, maps = resnet.stem(images), []
        for stage in resnet.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.spec.strides[layer] for layer in layers)


def _no_tokens(maps: list[Tensor] | Maps) -> Maps:
    """Return an empty prefix (B, 0, C) for each map."""
    return tuple(m.new_zeros(m.shape[0], 0, m.shape[1]) for m in maps)
