"""Adapter over convolutional backbones: their pyramid as maps with their own strides, and an empty prefix."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from dense.backbone.base import Backbone
from dense.backbone.spec import BackboneSpec
from heads.features import Norm


class Pyramid(Backbone):
    """A timm model with `forward_intermediates` whose stages shrink the image.

    The final norm, where there is one (ConvNeXt), belongs to the deepest stage; shallower stages are left raw by every
    setting of `norm`.
    """

    def __init__(self, spec: BackboneSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model: Any = model

    def _features(
        self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if masks is not None:
            raise ValueError(f"{self.spec.name} is convolutional and has no mask token; masks need a ViT backbone")
        final_norm = self._final_norm()
        if norm is not False and final_norm is None:
            raise ValueError(f"{self.spec.name} has no final norm; use norm=False")
        maps = list(
            self.model.forward_intermediates(
                images, indices=list(layers), norm=False, output_fmt="NCHW", stop_early=True, intermediates_only=True
            )
        )
        if norm is not False and final_norm is not None and layers[-1] == self.spec.depth - 1:
            maps[-1] = final_norm(maps[-1])
        return tuple(maps), tuple(m.new_zeros(m.shape[0], 0, m.shape[1]) for m in maps)

    def _final_norm(self) -> nn.Module | None:
        norm = getattr(getattr(self.model, "head", None), "norm", None)
        return None if norm is None or isinstance(norm, nn.Identity) else norm

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.spec.strides[layer] for layer in layers)

    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute stages in the backward pass, for less memory."""
        self.model.set_grad_checkpointing(enable)
        return self
