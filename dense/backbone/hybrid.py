"""Adapter over timm's ViTs whose patches are the cells of a ResNet (DPT-Hybrid). One whose convolutions are a stem alone,
without stages a head could see, is a `ViT`."""

from __future__ import annotations

from torch import Tensor

from dense.backbone.vit import Maps, ViT
from heads.features import Norm

STAGES = 2  # stages of the ResNet that a head can see


class Hybrid(ViT):
    """A ViT on a ResNet. As in DPT, layers 0 and 1 are the first two stages, raw and without tokens; the rest are blocks."""

    def _features(self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None) -> tuple[Maps, Maps]:
        stages = self._stages(self._hidden(images, masks))
        maps = tuple(stages[layer] for layer in layers if layer < STAGES)
        prefix = tuple(m.new_zeros(m.shape[0], 0, m.shape[1]) for m in maps)
        blocks = tuple(layer for layer in layers if layer >= STAGES)
        if not blocks:
            return maps, prefix
        tokens = self._tokens(self._projected(stages[-1]), self._grid(images), masks)
        deeper, tokens_of = self._layers(*tokens, blocks, norm)
        return maps + deeper, prefix + tokens_of

    def _patches(self, images: Tensor) -> Tensor:
        return self._projected(self._stages(images)[-1])

    def _projected(self, x: Tensor) -> Tensor:
        """The deepest stage as patches (B, h*w, C)."""
        embed = self.model.patch_embed
        return embed.proj(embed.backbone.norm(x)).flatten(2).transpose(1, 2)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """The map of each stage of the ResNet, strides 4, 8 and 16."""
        resnet = self.model.patch_embed.backbone
        x, maps = resnet.stem(images), []
        for stage in resnet.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.spec.strides[layer] for layer in layers)
