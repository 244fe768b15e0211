"""Features of image files, one by one and at their own size, and their form on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dense.backbone.base import Backbone
from dense.backbone.spec import Layers
from dense.data.image import ImageError, read_image
from dense.files import replacing
from heads.features import Features, Norm


def extract(
    backbone: Backbone, paths: Sequence[Path], layers: Layers | None = None, norm: Norm | None = None
) -> Iterator[tuple[Path, Features | ImageError]]:
    """Yield the features of each image at its own size, or the error that its file raised."""
    device = next(backbone.parameters()).device
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            yield path, error
            continue
        with torch.inference_mode():
            pixels = torch.from_numpy(image).unsqueeze(0).to(device)
            try:
                yield path, backbone(backbone.normalise(pixels), layers=layers, norm=norm)
            except ValueError as error:  # smaller than one patch
                yield path, ImageError(f"{path}: {error}")


def save(stem: Path, form: str, features: Features) -> None:
    """Write map_N (C, h, w) and prefix_N (P, C) of each layer N to STEM.npz or STEM.safetensors; "none" writes none."""
    pairs = zip(("map", "prefix"), (features.maps, features.prefix), strict=True)
    named = {f"{name}_{n}": t for name, all_ in pairs for n, t in zip(features.layers, all_, strict=True)}
    tensors = {name: tensor[0].cpu().contiguous() for name, tensor in named.items()}
    if form == "none":
        return
    with replacing(f"{stem}.{form}", sum(tensor.nbytes for tensor in tensors.values())) as file:
        if form == "safetensors":
            save_file(tensors, file)
        else:
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(file, **arrays)
