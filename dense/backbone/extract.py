"""Features of image files, one by one and at their own size, and their form on disk."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dense.backbone.base import Backbone
from dense.backbone.spec import Layers
from dense.data.image import ImageError, read_image
from dense.data.levels import Reading
from dense.files import PARTIAL, note, replacing
from heads.features import Features, Norm


def extract(
    backbone: Backbone, paths: Sequence[Path], layers: Layers | None = None, norm: Norm | None = None
) -> Iterator[tuple[Path, Features | ImageError]]:
    """Yield the features of each image at its own size, or the error that its file raised."""
    device, reading = next(backbone.parameters()).device, Reading.of_spec(backbone.spec)
    for path in paths:
        try:
            image = read_image(path, reading=reading)
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
    """Write map_N (C, h, w) and prefix_N (P, C) of each layer N to STEM.npz, STEM.safetensors, or features.zarr/STEM.

    "none" writes none.
    """
    pairs = zip(("map", "prefix"), (features.maps, features.prefix), strict=True)
    named = {f"{name}_{n}": t for name, all_ in pairs for n, t in zip(features.layers, all_, strict=True)}
    tensors = {name: tensor[0].cpu().contiguous() for name, tensor in named.items()}
    if form == "none":
        return
    if form == "zarr":
        _save_zarr(stem, tensors)
        return
    with replacing(f"{stem}.{form}", sum(tensor.nbytes for tensor in tensors.values())) as file:
        if form == "safetensors":
            save_file(tensors, file)
        else:
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(file, **arrays)


STORE = "features.zarr"


def need(package: str) -> Any:
    """Return an optional package; raise with the extra that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} is missing ({error}); install it with: pip install 'dino-dense[tables]'"
        ) from None


def _save_zarr(stem: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a group of arrays that is complete or absent to a store of zarr."""
    zarr = need("zarr")
    place = stem.parent / STORE / stem.name
    partial = place.with_name(f".{os.getpid()}{PARTIAL}")
    try:
        group = zarr.open_group(str(partial), mode="w")
        for name, tensor in tensors.items():
            array = tensor.numpy()
            group.create_array(
                name, shape=array.shape, chunks=tuple(map(max, array.shape, (1,) * 3)), dtype=array.dtype
            )
            group[name][...] = array
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for file in sorted(place.rglob("*")):
        if file.is_file():
            note(file)


def close_store(folder: Path, facts: dict[str, Any]) -> None:
    """Write the root of a store, with these facts as its attributes."""
    need("zarr").open_group(str(folder / STORE), mode="a").attrs.update(facts)
    note(folder / STORE / "zarr.json")
