"""Linear probes and k-NN of patches and images on embedded scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import Layers
from dense.console import progress
from dense.data.scenes import CLASSES, Scenes
from dense.evaluate.classification.features import evaluating, final_norm, randomly_initialised, statistics
from dense.evaluate.classification.knn import TEMPERATURE, knn_accuracy
from dense.evaluate.patches import LinearClassifier, RidgeRegression, log_depths, shares
from dense.evaluate.protocol import Protocol, Result
from dense.metrics import SegmentationMetrics

K = 20
BATCH = 64
SIDE = 96  # of scenes, about, where none is given


@dataclass(frozen=True)
class RenderedScenes:
    """Rendered scenes of a split."""

    images: Tensor  # N, 3, H, W uint8
    semantic: Tensor  # N, H, W uint8
    depth: Tensor  # N, H, W, infinite at the sky

    @classmethod
    def render(cls, split: str, length: int, size: int, seed: int) -> RenderedScenes:
        """Render `length` scenes into memory."""
        scenes = Scenes(split, length, size, seed)
        images, semantic = np.empty((length, size, size, 3), np.uint8), np.empty((length, size, size), np.uint8)
        depth = np.empty((length, size, size), np.float32)
        for item in progress(range(length), f"scenes of {split}"):
            scene = scenes[item]
            images[item], semantic[item], depth[item] = scene.image, scene.semantic, scene.depth
        return cls(
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(semantic),
            torch.from_numpy(depth),
        )


@dataclass(frozen=True)
class Described:
    """Features of the patches and images of a split."""

    patches: Tensor  # N, h*w, D
    images: dict[str, Tensor]  # name -> (N, D)


class SceneProbe:
    """Probe any number of backbones on scenes that are rendered once.

    - `segmentation_miou`: a linear classifier on patches; the label of a patch is its most frequent class;
    - `depth_abs_rel`: ridge regression of the mean log depth of patches at least half of whose pixels have a depth;
    - `knn_class`, `knn_average`, `knn_object`: k-NN (k 20, T .07) of the solid that covers most pixels, by the class
      token, by the average of all patches, and by the average of its own patches, weighted by its share of each.
    """

    def __init__(self, train: int = 500, val: int = 250, size: int = 96, seed: int = 0) -> None:
        if train < 2 or val < 1:
            raise ValueError(f"train={train} and val={val} scenes; expected at least 2 and 1")
        self.size, self.seed = size, seed
        self.splits = {
            "train": RenderedScenes.render("train", train, size, seed),
            "val": RenderedScenes.render("val", val, size, seed),
        }

    def __call__(self, backbone: Backbone, layers: Layers = "last") -> dict[str, float]:
        """Return the metrics of a backbone on its device, without changing its modes or the random state."""
        patch = cell(backbone)
        self._check(patch)
        return self._measure({name: self._describe(backbone, split, layers) for name, split in self.splits.items()})

    def baselines(self, backbone: Backbone, layers: Layers = "last") -> dict[str, float]:
        """Return baselines: `random/...`, the backbone's random initialisation; `pixels/...`, raw pixels of its patches
        and of the image at 16x16; `histogram/knn_average`, the colour histogram of the image."""
        patch = cell(backbone)
        self._check(patch)
        fresh = randomly_initialised(backbone, self.seed)
        numbers = {f"random/{k}": v for k, v in self(fresh, layers).items()}
        pixels = {name: self._pixels(split, patch) for name, split in self.splits.items()}
        numbers |= {f"pixels/{k}": v for k, v in self._measure(pixels).items()}
        colours = {name: histogram(split.images) for name, split in self.splits.items()}
        return numbers | {"histogram/knn_average": self._knn(colours["train"], colours["val"])}

    # ---- descriptions

    def _describe(self, backbone: Backbone, targets: RenderedScenes, layers: Layers) -> Described:
        device = next(backbone.parameters()).device
        patches: list[Tensor] = []
        tokens: list[Tensor] = []
        with evaluating(backbone), torch.inference_mode():
            for images in targets.images.split(BATCH):
                features = backbone(backbone.normalise(images.to(device)), layers=layers, norm=final_norm(backbone))
                if len({m.shape[-2:] for m in features.maps}) > 1:
                    raise ValueError(f"layers {layers!r} of {backbone.spec.name} have different grids; probe one")
                patches.append(torch.cat([m.float().flatten(2) for m in features.maps], dim=1).transpose(1, 2))
                if features.has_class_token:
                    tokens.append(features.class_token.float())
        joined = torch.cat(patches)  # N, h*w, D
        pooled = {"class": torch.cat(tokens)} if tokens else {}
        return Described(joined, pooled | self._pooled(joined, targets, cell(backbone)))

    def _pixels(self, targets: RenderedScenes, patch: int) -> Described:
        images = targets.images.float() / 255
        patches = torch.nn.functional.unfold(images, patch, stride=patch).transpose(1, 2)  # N, h*w, 3*p*p
        small = torch.nn.functional.interpolate(images, size=(16, 16), mode="area").flatten(1)
        pooled = self._pooled(patches, targets, patch)
        return Described(patches, {"average": small - small.mean(1, keepdim=True), "object": pooled["object"]})

    def _pooled(self, patches: Tensor, targets: RenderedScenes, patch: int) -> dict[str, Tensor]:
        """Return the averages over the image and over its dominant object, each (N, D)."""
        share = torch.cat([shares(s, patch, len(CLASSES)) for s in targets.semantic.split(BATCH)]).flatten(1, 2)
        dominant = dominant_classes(targets)
        weights = share.gather(2, dominant.view(-1, 1, 1).expand(-1, share.shape[1], 1)).to(patches.device)  # N, h*w, 1
        return {"average": patches.mean(1), "object": (patches * weights).sum(1) / weights.sum(1)}

    # ---- numbers

    def _measure(self, described: dict[str, Described]) -> dict[str, float]:
        train, val = described["train"], described["val"]
        numbers = dict(self._dense(train.patches, val.patches))
        for name in val.images:
            numbers[f"knn_{name}"] = self._knn(train.images[name], val.images[name])
        return numbers

    def _dense(self, train: Tensor, val: Tensor) -> Iterator[tuple[str, float]]:
        patch = round(self.size / val.shape[1] ** 0.5)
        labels, depths, valid = {}, {}, {}
        for name, targets in self.splits.items():
            parts = [shares(s, patch, len(CLASSES)).argmax(-1) for s in targets.semantic.split(BATCH)]
            labels[name] = torch.cat(parts).flatten().to(train.device)
            depths[name], valid[name] = (t.flatten().to(train.device) for t in log_depths(targets.depth, patch))
        train, val = train.flatten(0, 1), val.flatten(0, 1)
        classify = LinearClassifier(train, labels["train"], len(CLASSES))
        measure = SegmentationMetrics(len(CLASSES)).to(val.device)
        measure.update(classify(val)[None, None], labels["val"][None, None])
        yield "segmentation_miou", measure.compute()["miou"]
        regress = RidgeRegression(train[valid["train"]], depths["train"][valid["train"]])
        errors = regress(val[valid["val"]]) - depths["val"][valid["val"]]  # of log depth
        yield "depth_abs_rel", float(errors.expm1().abs().mean())

    def _knn(self, train: Tensor, val: Tensor) -> float:
        labels = {name: dominant_classes(targets).to(train.device) for name, targets in self.splits.items()}
        return knn_accuracy(train, labels["train"], val, labels["val"], (K,), TEMPERATURE)[K]

    def _check(self, patch: int) -> None:
        if self.size % patch:
            near = max(patch, round(self.size / patch) * patch)
            raise ValueError(
                f"scenes of {self.size} px are no multiple of the patch, {patch}; use {near} (--size {near})"
            )


def cell(backbone: Backbone) -> int:
    """Pixels per cell of the deepest map."""
    return backbone.spec.patch


def dominant_classes(targets: RenderedScenes) -> Tensor:
    """Return the solid that covers most pixels of each scene, (N,), the lower index on a tie."""
    flat = targets.semantic.flatten(1).long()
    counts = torch.zeros(len(flat), len(CLASSES), dtype=torch.int64).scatter_add_(1, flat, torch.ones_like(flat))
    counts[:, :2] = -1  # sky and ground
    return counts.argmax(1)


def histogram(images: Tensor, bins: int = 8) -> Tensor:
    """Return the square roots of the shares of `bins`**3 colours in images (N, 3, H, W) uint8."""
    red, green, blue = (images.flatten(2).long() * bins // 256).unbind(1)  # N, H*W
    colours = (red * bins + green) * bins + blue
    counts = torch.zeros(len(images), bins**3).scatter_add_(1, colours, torch.ones(colours.shape))
    return (counts / colours.shape[1]).sqrt()


def measure_probe(
    backbone: Backbone,
    *,
    train: int = 500,
    val: int = 250,
    size: int | None = None,
    seed: int = 0,
    layers: Layers = "last",
    baselines: bool = False,
) -> Result:
    """Probe a backbone on embedded scenes; see `SceneProbe`, which keeps the scenes for a second time.

    size: side of the scenes, in whole patches; that nearest to 96 pixels if left out
    """
    size = size or max(1, round(SIDE / cell(backbone))) * cell(backbone)
    probe = SceneProbe(train, val, size, seed)
    numbers: dict[str, Any] = probe(backbone, layers) | (probe.baselines(backbone, layers) if baselines else {})
    protocol = Protocol(
        name="probe",
        train=f"scenes:train ({train} images)",
        val=f"scenes:val ({val} images)",
        view="as rendered",
        resolution=size,
        features=f"patches of layers {','.join(map(str, layers)) if isinstance(layers, tuple) else layers}",
        norm=final_norm(backbone),
        statistics=statistics(backbone),
        classes=len(CLASSES),
        settings={
            "segmentation": "logistic regression of patches, L-BFGS, weight decay 1e-3",
            "depth": "ridge regression of log depth, penalty 1e-3",
            "k": K,
            "temperature": TEMPERATURE,
        },
    )
    return Result(protocol, numbers, backbone.spec)
