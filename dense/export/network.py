"""The network in an exported file, and the sizes that it supports."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.backbone.base import FLOOR
from dense.backbone.positions import interpolate_positions
from dense.backbone.spec import Layers, resolve_layers
from dense.model.network import DenseModel
from heads.features import Norm, Size

Maps = dict[str, Tensor]


class ExportNetwork(nn.Module):
    """Map images (B, N, H, W) to tensors by name.

    model: a trained model, with its outputs; or a backbone, with `map_N` (B, C, h, w) and, where it has prefix tokens,
    `prefix_N` (B, P, C) for each layer. raw: images have values from 0 to 255; else they are normalised. raw_depth:
    depth as the head predicts it, such as its logarithm; else in metres.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: DenseModel | Backbone,
        raw: bool = False,
        layers: Layers | None = None,
        norm: Norm | None = None,
        raw_depth: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.raw, self.raw_depth = model, raw, raw_depth
        if isinstance(model, DenseModel):
            if layers is not None or norm is not None:
                raise ValueError("layers and norm are saved with a trained model; leave them out")
            self.layers, self.norm = model.layers, model.norm
        else:
            self.layers, self.norm = resolve_layers(layers, model.spec), model.spec.norm if norm is None else norm
        mean, std = self.backbone.statistics()
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    @property
    def backbone(self) -> Backbone:
        """The backbone of the model, or the model itself."""
        return self.model.backbone if isinstance(self.model, DenseModel) else self.model

    def forward(self, images: Tensor) -> Maps:
        if self.raw:
            images = images * self.scale + self.shift
        if isinstance(self.model, DenseModel):
            maps = self.model.decode(self.model.features(images), None, self.model.pixels(images))  # not refined
            return maps if self.raw_depth else self.model.physical(maps)
        features = self.model(images, layers=self.layers, norm=self.norm)
        maps = {f"map_{n}": m for n, m in zip(features.layers, features.maps, strict=True)}
        prefix = {f"prefix_{n}": p for n, p in zip(features.layers, features.prefix, strict=True)}
        return maps | {n: p for n, p in prefix.items() if p.shape[1] > 0}

    def at(self, size: Size) -> ExportNetwork:
        """Return the network with its position table interpolated for images of `size`; other weights are shared."""
        if not has_table(self.backbone):
            return self
        if isinstance(self.model, DenseModel):
            size = self.model.backbone_size(size)
        baked = copy.deepcopy(self, {id(p): p for p in self.parameters()})
        backbone: Any = baked.backbone
        padded, old = padded_size(backbone, size), backbone.table_grid
        new = (padded[0] // backbone.spec.patch, padded[1] // backbone.spec.patch)
        table, cells = backbone.model.pos_embed, old[0] * old[1]
        prefix, patches = table.split((table.shape[1] - cells, cells), 1)  # 1, P, C and 1, h*w, C
        patches = interpolate_positions(patches, old, new, backbone.spec.positions)
        backbone.model.pos_embed = nn.Parameter(torch.cat((prefix, patches), 1), requires_grad=False)
        backbone.spec = replace(backbone.spec, image_size=padded)
        return baked


def example(network: ExportNetwork, batch: int, size: Size) -> Tensor:
    """Return random images in the range that the network expects."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch, len(network.backbone.spec.channels), *size, generator=generator) * 255
    return noise if network.raw else noise * network.scale + network.shift


def has_table(backbone: Backbone) -> bool:
    """Return whether positions are a table that was learned on one grid."""
    return backbone.spec.positions not in ("rope", "none")


def padded_size(backbone: Backbone, size: Size) -> Size:
    """Return the size to which the backbone pads images of `size`."""
    height, width = backbone.pad_to_patch_multiple(backbone.blank(size))[0].shape[-2:]
    return height, width


def check_size(backbone: Backbone, size: Size, dynamic: bool) -> None:
    """Raise for a size that a file cannot support, with an alternative."""
    spec = backbone.spec
    fits = all(n % spec.patch == 0 for n in size)
    near = tuple(max(spec.patch, round(n / spec.patch) * spec.patch) for n in size)
    if min(size) < 1:
        raise ValueError(f"size={size}: expected a height and a width in pixels")
    if dynamic and has_table(backbone):
        raise ValueError(
            f"dynamic sizes need positions without a table, and {spec.name} learned one for {spec.image_size[0]}x"
            f"{spec.image_size[1]} (positions={spec.positions!r}), which a file holds for one size alone; export one "
            "file per size, or use a backbone with rotary positions (DINOv3) or a convolutional one"
        )
    if dynamic and (not fits or min(size) < 2 * spec.patch):
        raise ValueError(
            f"size={size}: with dynamic sizes every side is a multiple of {spec.patch}, at least {2 * spec.patch}; "
            f"use {tuple(max(n, 2 * spec.patch) for n in near)}"
        )
    resizes = {"resize": not fits, "floor": not fits or min(size) < FLOOR}
    if resizes.get(spec.padding):
        least = f" and at least {FLOOR}" if spec.padding == "floor" else ""
        raise ValueError(
            f"size={size}: {spec.name} has padding={spec.padding!r}, an antialiased bicubic resize that ONNX lacks; "
            f"use a size of whole patches of {spec.patch}{least}, such as {near}"
        )
