"""A backbone and a head as one network, and as one saved directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

import heads
from dense.backbone import Backbone, BackboneSpec
from dense.backbone.saved import SavedModel
from dense.backbone.weights.report import LoadReport, load_strictly
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.model.guided import guided_filter
from heads.features import Features, Norm, Size
from heads.layers import resize
from heads.memory import as_logarithms
from heads.outputs import MaskKind

Task = Literal["segmentation", "depth", "joint", "restoration", "anomaly", "instance", "panoptic"]
Refinement = Literal["none", "guided"]
Maps = dict[str, Tensor]  # output name -> (B, K, H, W)
STEP = 4  # the guided filter is fitted at a fourth of the size, about that of the cells of a head


@dataclass(frozen=True)
class Inference:
    """How the network is applied to an image of any size, in validation, evaluation and prediction.

    Args:
        resize: working size, to which every image is resized first, in training too: the shorter side in pixels, or
            height and width; null keeps an image's size.
        window: side in pixels of the sliding windows; null applies the network to the whole image.
        stride: pixels between windows; null for two thirds of a window.
        refine: "guided" moves the edges of predicted classes and depth to those of the image, by a guided filter over
            the probabilities, or the depth as the head predicts it, at the working size; its radius is half a patch
            for classes, which are lost where they are thin, and a patch for depth.
        longer: working size as the longer side in pixels, instead of `resize`, in prediction and evaluation alone, of
            objects also in validation.
        focal: focal length in pixels at the working size, where the training data declare it; an image of another
            camera can then be resized to it, so that it has as many pixels per degree.
        reading: channels of the images and what their numbers mean; in a training those of data.channels and
            data.levels.
        square: pad what the network gets, the resized image or a window of it, below and at the right to a square of
            black, as published models of queries were trained, and cut the padding off their masks.
    """

    resize: int | tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    focal: float | None = None
    refine: Refinement = "none"
    longer: int | None = None
    reading: Reading = PHOTOGRAPHS
    square: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.reading, dict):  # as JSON has it
            object.__setattr__(self, "reading", Reading.from_dict(self.reading))
        if isinstance(self.resize, list):  # as JSON has it
            object.__setattr__(self, "resize", tuple(self.resize))
        if self.refine not in get_args(Refinement):
            raise ValueError(f"inference.refine={self.refine!r}: expected none or guided")
        for name, value in asdict(self).items():
            if name in ("refine", "reading", "square") or value is None:
                continue
            sides = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(side, Real if name == "focal" else Integral) for side in sides):
                raise ValueError(f"inference.{name}={value!r}: expected whole pixels, or null")
            if min(sides) < 1:
                raise ValueError(f"inference.{name}={value}: expected at least 1 pixel, or null")
        if self.longer is not None and self.resize is not None:
            raise ValueError(f"inference.resize={self.resize} and longer={self.longer}: expected one of both")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise ValueError(f"inference.stride={self.stride} needs a window of at least as many pixels")

    def size_of(self, image: Size, focal: float | None = None) -> int | Size | None:
        """Return the working size of an image of this height and width; focal: its focal length in pixels, if known."""
        if self.longer is not None:
            factor = self.longer / max(image)
            return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))
        if focal is None or self.focal is None:
            return self.resize
        return max(1, round(image[0] * self.focal / focal)), max(1, round(image[1] * self.focal / focal))

    def padded(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, N, H, W) as the network gets them, see `square`."""
        height, width = images.shape[-2:]
        side = max(height, width)
        return F.pad(images, (0, side - width, 0, side - height)) if self.square and height != width else images

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; without `reading` where images are photographs."""
        plain = {name: value for name, value in asdict(self).items() if name != "reading"}
        return plain | ({"reading": found} if (found := self.reading.to_dict()) else {})

    @property
    def step(self) -> int:
        """Pixels between windows: `stride`, or by default two thirds of a window."""
        return self.stride or max(1, (self.window or 0) * 2 // 3)


def task_of_masks(kind: MaskKind) -> Task:
    """Return the task of a head of queries whose masks are of this kind."""
    return "segmentation" if kind == "semantic" else kind


def before_blocks(spec: BackboneSpec, blocks: int) -> int:
    """Return the layer whose features a head reads that runs the last `blocks` of the backbone itself."""
    if spec.kind == "pyramid" or not 1 <= blocks < spec.depth:
        raise ValueError(
            f"blocks={blocks}: queries join the last blocks of a ViT, at least 1 and fewer than all; {spec.name} has "
            f"{'none' if spec.kind == 'pyramid' else spec.depth}"
        )
    return spec.depth - 1 - blocks


class DenseModel(nn.Module, SavedModel):
    """A backbone and a head: normalised images (B, N, H, W) to maps of the images' size.

    Args:
        backbone: frozen or not.
        head: a head as `heads.build` builds it.
        layers: indices of the layers whose features the head gets.
        norm: whether the final norm is applied to them, see `Backbone.forward`.
        task: the task that the head was trained for.
        classes: class names, for a head with labels.
        inference: how the network is applied to whole images.
        facts: how and on which data the model was trained, for the model card.
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
        self.backbone = backbone
        self.head: Any = head
        self.layers, self.norm, self.task = tuple(layers), norm, task
        self.classes = tuple(classes) if classes else None
        self.inference, self.facts = inference, facts or {}
        self.report: LoadReport | None = None  # what matched when the head's weights were loaded
        if inference.square and task not in ("instance", "panoptic"):
            raise ValueError(f"inference.square pads images for masks of objects; for {task} leave it out")
        blocks: int = getattr(head, "blocks", 0)
        if blocks and self.layers != (read := (before_blocks(backbone.spec, blocks),)):
            raise ValueError(
                f"layers={self.layers}: the head runs the last {blocks} blocks itself, so it reads layer "
                f"{read[0]} of {backbone.spec.depth}"
            )

    # ---- use

    def features(self, images: Tensor) -> Features:
        """Return the features of normalised images; for a head that reads none, features without maps."""
        if not self.head.reads_features:
            size = (images.shape[-2], images.shape[-1])
            return Features((), (), size, size, (0, 0, 0, 0), (), self.layers, self.norm)
        return self.backbone(
            self.head.backbone_input(images, self.backbone.spec.patch), layers=self.layers, norm=self.norm
        )

    def backbone_size(self, size: Size) -> Size:
        """Return the size at which the backbone gets images of `size`."""
        images = self.head.backbone_input(self.backbone.blank(size), self.backbone.spec.patch)
        return (images.shape[-2], images.shape[-1])

    def pixels(self, images: Tensor) -> Tensor | None:
        """Return normalised images as values from 0 to 1 for a head that reads pixels, else None."""
        if not self.head.reads_pixels:
            return None
        self.backbone.check_channels(images)
        mean, std = self.backbone.statistics(images.device)
        return images * std + mean

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """Return normalised images of values from 0 to 1, differentiably."""
        mean, std = self.backbone.statistics(pixels.device)
        return (pixels - mean) / std

    def features_from(self, tensors: Sequence[Tensor], size: Size) -> Features:
        """Return `Features` of images of `size` from their bare tensors: the maps of each layer, then its prefixes."""
        count, size = len(self.layers), (int(size[0]), int(size[1]))  # pinned memory turns tuples into lists
        padded, borders, resized = self.backbone.pad_to_patch_multiple(self.backbone.blank(size, "cpu"))
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

    def decode(self, features: Features, size: Size | None = None, pixels: Tensor | None = None) -> Maps:
        """Return maps by name, of the images' size or of `size`; in training also auxiliary ones.

        pixels: the images with values from 0 to 1, for a head that reads them, see `pixels`.
        """
        return self.head(features, pixels, size, *([self.backbone] if self.head.blocks else []))

    def maps(self, images: Tensor, size: Size | None = None, refine: Refinement | None = None) -> Maps:
        """Return maps by name of normalised images, of the images' size or of `size`.

        refine: of classes and depth, see `Inference`; as it says there if left out.
        """
        return self.refined(self.decode(self.features(images), size, self.pixels(images)), images, refine)

    def maps_of_pixels(self, images: Tensor) -> Maps:
        """Return maps by name of uint8 images."""
        return self.maps(self.backbone.normalise(images))

    def refined(self, maps: Maps, images: Tensor, refine: Refinement | None = None) -> Maps:
        """Return maps of these normalised images with their edges refined, except in training."""
        names = [name for name in ("labels", "depth") if name in maps]
        if self.training or (refine or self.inference.refine) == "none" or not names:
            return maps
        mean, std = self.backbone.statistics(images.device)
        pixels = resize(images * std + mean, (maps[names[0]].shape[-2], maps[names[0]].shape[-1]), False)
        patch, found = self.backbone.spec.patch, dict(maps)
        for name in names:
            values = maps[name].float()
            if name == "labels":
                shares = guided_filter(pixels, values.softmax(1), max(1, patch // 2), step=STEP)
                found |= as_logarithms({name: shares})
            else:  # a linear fit may exceed the values it was fitted to
                low, high = (bound((1, 2, 3), keepdim=True) for bound in (values.amin, values.amax))
                found[name] = guided_filter(pixels, values, patch, step=STEP).clamp(low, high)
        return found

    def forward(self, images: Tensor) -> Tensor | Maps:
        """Return the map of a head with one output, else maps by name."""
        maps = self.maps(images)
        return next(iter(maps.values())) if len(maps) == 1 else maps

    @property
    def outputs(self) -> dict[str, Any]:
        """The head's outputs by name: "depth", "labels", "restored", "anomaly"."""
        return dict(self.head.outputs)

    @property
    def depth_kind(self) -> str | None:
        """The kind of depth that the head predicts: metric, inverse_relative or log; None without depth."""
        output = self.outputs.get("depth")
        return None if output is None else getattr(output, "kind", "metric")

    def physical(self, maps: Maps) -> Maps:
        """Return maps with depth in metres where the head predicts its logarithm; other maps stay as they are."""
        return maps | {"depth": maps["depth"].exp()} if self.depth_kind == "log" else maps

    # ---- saved

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "task": self.task,
            "backbone": self.backbone.spec.to_dict(),
            "layers": list(self.layers),
            "norm": self.norm,
            "head": self.head.spec(),
            "classes": list(self.classes) if self.classes else None,
            "inference": self.inference.to_dict(),
            "facts": self.facts,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DenseModel:
        """Build a model with random initialisation from the content of config.json."""
        missing = [k for k in ("task", "backbone", "layers", "norm", "head") if k not in config]
        if missing:
            raise ValueError(f"config.json holds no {missing[0]!r}; this directory was not saved by dense train")
        facts = dict(config.get("facts") or {})
        if "pictures" in facts:  # the former name
            facts = {"images" if k == "pictures" else k: v for k, v in facts.items()}
        return cls(
            Backbone.from_spec(BackboneSpec.from_dict(config["backbone"])),
            heads.build(config["head"]),
            tuple(config["layers"]),
            config["norm"],
            config["task"],
            config.get("classes"),
            Inference(**config.get("inference", {})),
            facts,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors to save, with the prefixes `backbone.` and `head.`."""
        backbone = {f"backbone.{k}": v for k, v in self.backbone.tensors().items()}
        return backbone | {f"head.{k}": v for k, v in self.head.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returns, strictly."""
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"model.safetensors holds {name!r}, which belongs to neither backbone nor head")
            parts[part][rest] = tensor
        self.backbone.load_tensors(parts["backbone"])
        self.report = load_strictly(self.head, parts["head"], source="model.safetensors", layout="own")
