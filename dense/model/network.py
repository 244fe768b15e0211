"""A backbone and a head as one network, and as one saved directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import heads
from dense.backbone import Backbone, BackboneSpec
from dense.backbone.saved import SavedModel
from dense.backbone.weights.report import LoadReport, load_strictly
from heads.features import Features, Norm, Size

Task = Literal["segmentation", "depth", "joint", "restoration"]


@dataclass(frozen=True)
class Inference:
    """How images of any size meet the network.

    resize: bring the shorter side to so many pixels first; None leaves images as they are. window, stride: see the
    image through overlapping windows of that side, in pixels; None sees it whole.
    """

    resize: int | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ValueError(f"inference.{name}={value}: expected at least 1 pixel, or null")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise ValueError(f"inference.stride={self.stride} needs a window of at least as many pixels")


class DenseModel(nn.Module, SavedModel):
    """Normalised images (B, 3, H, W) in, maps of their size out.

    backbone: frozen or not. head: what `heads.build` builds. layers, norm: what the head sees. classes: names, of a head
    with labels. facts: how and on what it was trained, for the model card.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        layers: tuple[int, ...],
        norm: Norm,
        task: Task,
        classes: tuple[str, ...] | None = None,
        inference: Inference = Inference(),
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.layers, self.norm, self.task = tuple(layers), norm, task
        self.classes = tuple(classes) if classes else None
        self.inference, self.facts = inference, facts or {}
        self.report: LoadReport | None = None  # what matched when the head's weights were loaded

    # ---- use

    def features(self, images: Tensor) -> Features:
        """What the head sees of normalised images; maps of a head that reads none are not computed."""
        head: Any = self.head
        if not head.reads_features:
            size = (images.shape[-2], images.shape[-1])
            return Features((), (), size, size, (0, 0, 0, 0), (), self.layers, self.norm)
        return self.backbone(head.backbone_input(images, self.backbone.spec.patch), layers=self.layers, norm=self.norm)

    def seen(self, size: Size) -> Size:
        """At which size the backbone sees images of `size`."""
        shown = self.head.backbone_input(torch.empty(1, 3, *size, device="meta"), self.backbone.spec.patch)  # type: ignore[operator]
        return (shown.shape[-2], shown.shape[-1])

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images as values of 0 to 1."""
        mean, std = self._statistics(images)
        return images * std + mean

    def normal(self, pixels: Tensor) -> Tensor:
        """Counterpart of `pixels`."""
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.backbone.spec
        mean, std = (torch.tensor(v, device=like.device).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
        return mean, std

    def restored(self, tensors: Sequence[Tensor], size: Size) -> Features:
        """Features from their tensors, the maps and then the prefixes of each layer, of images of `size`."""
        count, size = len(self.layers), (int(size[0]), int(size[1]))  # pinned memory makes lists of tuples
        padded, borders, resized = self.backbone.pad_to_patch_multiple(torch.empty(1, 3, *size, device="cpu"))
        return Features(
            maps=tuple(t.float() for t in tensors[:count]),
            prefix=tuple(t.float() for t in tensors[count:]),
            image_size=size,
            padded_size=(padded.shape[-2], padded.shape[-1]),
            padding=borders,
            strides=self.backbone._strides(self.layers),
            layers=self.layers,
            norm=self.norm,
            has_class_token=self.backbone.spec.class_token,
            resized=resized,
        )

    def decode(self, features: Features, size: Size | None = None, images: Tensor | None = None) -> dict[str, Tensor]:
        """Maps by name, of the images' size or of `size`; in training also auxiliary ones. images: the normalised
        images, for a head that reads them."""
        if self.head.reads_pixels and images is not None:
            return self.head(features, self.pixels(images), size)
        return self.head(features, size=size)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The map of a head with one output, else maps by name."""
        maps = self.decode(self.features(images), images=images)
        return next(iter(maps.values())) if len(maps) == 1 else maps

    @property
    def outputs(self) -> dict[str, Any]:
        """The head's outputs by name: "depth", "labels", "restored"."""
        return dict(self.head.outputs)  # type: ignore[arg-type]

    @property
    def depth_kind(self) -> str | None:
        """What its depth is: metric, inverse_relative or log."""
        output = self.outputs.get("depth")
        return None if output is None else getattr(output, "kind", "metric")

    # ---- saved

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "task": self.task,
            "backbone": self.backbone.spec.to_dict(),
            "layers": list(self.layers),
            "norm": self.norm,
            "head": self.head.spec(),  # type: ignore[operator]
            "classes": list(self.classes) if self.classes else None,
            "inference": asdict(self.inference),
            "facts": self.facts,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DenseModel:
        """A model with random initialisation."""
        missing = [k for k in ("task", "backbone", "layers", "norm", "head") if k not in config]
        if missing:
            raise ValueError(f"config.json holds no {missing[0]!r}; this directory was not saved by dense train")
        return cls(
            Backbone.from_spec(BackboneSpec.from_dict(config["backbone"])),
            heads.build(config["head"]),
            tuple(config["layers"]),
            config["norm"],
            config["task"],
            config.get("classes"),
            Inference(**config.get("inference", {})),
            config.get("facts"),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Head and backbone, each under its name."""
        backbone = {f"backbone.{k}": v for k, v in self.backbone.tensors().items()}
        return backbone | {f"head.{k}": v for k, v in self.head.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Counterpart of `tensors`, strict."""
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"model.safetensors holds {name!r}, which belongs to neither backbone nor head")
            parts[part][rest] = tensor
        self.backbone.load_tensors(parts["backbone"])
        self.report = load_strictly(self.head, parts["head"], source="model.safetensors", layout="own")

    def with_backbone(self, backbone: Backbone) -> DenseModel:
        """The same head on another copy of the backbone it was trained on; a backbone that differs raises."""
        if different := self.backbone.spec.difference(backbone.spec):
            raise ValueError(
                f"this head was trained on another backbone ({'; '.join(different)}, where here is the head's); train a "
                "new head"
            )
        return DenseModel(
            backbone, self.head, self.layers, self.norm, self.task, self.classes, self.inference, self.facts
        )


def normalised(backbone: Backbone, images: Tensor) -> Tensor:
    """uint8 images normalised where they are; others as they come."""
    return backbone.normalise(images) if images.dtype == torch.uint8 else images
